"""Rows become prompts: labels of every type, answers, conversations; what is none is told, all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.prompts import Prompt
from edgekit.prompts.rows import read_prompts
from edgekit.recipe import Data, Recipe, Teacher
from edgekit.tables import Row, Table
from tests.prompts.test_prompts import gathered


def write_lines(folder: Path, rows: list[dict[str, object]]) -> Path:
    """The same kind of rows for calibrate and verify, other words in each."""
    for name, word in {"calibrate": "old garden", "verify": "new harbour"}.items():
        lines = [json.dumps(row).replace("PLACE", f"{word} {number}") for number, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def generated(folder: Path, rows: list[dict[str, object]], **data: object) -> list[Prompt]:
    """The verify split of a recipe for text-generation."""
    write_lines(folder, rows)
    asked = Data(calibrate="calibrate.jsonl", verify="verify.jsonl", **({"label": None} | data))  # type: ignore[arg-type]
    made = Recipe(task="text-generation", teacher=Teacher(source="x"), data=asked, path=folder / "recipe.toml")
    return gathered(made, folder / "out", ("calibrate", "verify"))["verify"]


TURN = {"role": "user", "content": "where is the PLACE?"}
SAID = {"role": "assistant", "content": "over there"}


def test_conversations(tmp_path: Path) -> None:
    """A last turn of the assistant is the wanted answer; turns keep every key, for the template."""
    system = {"role": "system", "content": "Be brief."}
    rows: list[dict[str, object]] = [
        {"talk": [system, TURN, SAID]},
        {"talk": [TURN | {"name": "Ann"}, SAID, {"role": "user", "content": "and how far is the sea?"}]},
    ]
    first, second = generated(tmp_path, rows, messages="talk")
    assert first == Prompt(
        text="where is the new harbour 0?",
        label="over there",
        messages=[system, {"role": "user", "content": "where is the new harbour 0?"}],
    )
    assert second.label is None
    assert second.text == "where is the new harbour 1?\nand how far is the sea?"
    assert second.messages is not None
    assert [set(turn) for turn in second.messages] == [{"role", "content", "name"}, *[{"role", "content"}] * 2]


def test_answers_and_choices(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"question": "is the PLACE near?", "reply": "yes", "options": ["yes", "no"]},
        {"question": "what lies behind the PLACE?", "reply": "", "options": None},
        {"question": "who owns this PLACE?", "reply": None, "options": None},
    ]
    found = generated(tmp_path, rows, text="question", answer="reply", choices="options")
    assert [(row.label, row.choices) for row in found] == [("yes", ["yes", "no"]), (None, None), (None, None)]
    assert found[0].text == "is the new harbour 0 near?"


@pytest.mark.parametrize(
    ("row", "data", "said"),
    [
        ({"text": "a PLACE"}, {"messages": "talk"}, "data.messages: no column 'talk' (its columns: text)"),
        ({"text": "a PLACE"}, {"answer": "reply"}, "data.answer: no column 'reply' (its columns: text)"),
        ({"text": "a PLACE"}, {"choices": "options"}, "data.choices: no column 'options' (its columns: text)"),
        ({"talk": "a PLACE"}, {"messages": "talk"}, "row 1: talk: not a conversation; expected [{"),
        ({"talk": [{"role": "user"}]}, {"messages": "talk"}, "row 1: talk: not a conversation"),
        ({"talk": [{"role": "system", "content": "PLACE"}]}, {"messages": "talk"}, "row 1: talk: the user says nothing"),
        ({"talk": []}, {"messages": "talk"}, "row 1: talk: the user says nothing; remove the row"),
        ({"text": "PLACE", "reply": 7}, {"answer": "reply"}, "row 1: reply: 7 is not a string"),
        ({"text": "PLACE", "reply": "a", "o": ["b", "c"]}, {"answer": "reply", "choices": "o"}, "row 1: o: the wanted answer 'a' is not among them"),
        ({"text": "PLACE", "reply": "a", "o": ["a"]}, {"answer": "reply", "choices": "o"}, "row 1: o: expected a list of two or more strings"),
        ({"text": "PLACE", "reply": "a", "o": ["a", ""]}, {"answer": "reply", "choices": "o"}, "none of them empty"),
        ({"text": "PLACE", "reply": "a", "o": "a"}, {"answer": "reply", "choices": "o"}, "row 1: o: expected a list of two"),
    ],
)  # fmt: skip
def test_bad_rows_of_generation(tmp_path: Path, row: dict[str, object], data: dict[str, object], said: str) -> None:
    with pytest.raises(EdgekitError) as told:
        generated(tmp_path, [row], **data)
    assert said in told.value.message
    assert "calibrate.jsonl" in told.value.message


def test_tools_reach_the_prompt(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    rows: list[dict[str, object]] = [
        {"talk": [TURN, SAID], "can": [tool]},
        {"talk": [{"role": "user", "content": "who owns this PLACE?"}], "can": []},
    ]
    first, second = generated(tmp_path, rows, messages="talk", tools="can")
    assert (first.tools, second.tools) == ([tool], None)
    with pytest.raises(EdgekitError, match="row 1: can: not valid JSON"):
        generated(tmp_path, [{"talk": [TURN], "can": "f("}], messages="talk", tools="can")


CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": None}}}


def test_a_turn_keeps_what_the_template_reads(tmp_path: Path) -> None:
    """Tool calls with content null, their results, reasoning: nothing is dropped, nothing is filled in."""
    talk = [
        TURN | {"name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "north", "tool_call_id": "1"},
        SAID,
    ]
    (found,) = generated(tmp_path, [{"talk": talk}], messages="talk")
    assert found.messages is not None
    assert found.messages[1:] == talk[1:3]
    assert found.messages[0]["name"] == "Ann"
    assert found.label == "over there"


def test_a_last_turn_that_calls_is_no_answer(tmp_path: Path) -> None:
    rows = [Row(number=1, values={"talk": [TURN, {"role": "assistant", "content": "", "tool_calls": [CALL]}]})]
    reading = read_prompts(Table(columns=["talk"], rows=rows), Data(messages="talk", label=None), "rows.jsonl")
    assert reading.prompts[0].label is None
    assert dict(reading.converted) == {"a last turn that calls a tool to no answer": 1}


def test_text_parts_are_a_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "where is the PLACE?"}, {"type": "text", "text": "Quickly."}]
    rows: list[dict[str, object]] = [
        {
            "talk": [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
            ]
        }
    ]
    (found,) = generated(tmp_path, rows, messages="talk")
    assert (found.text, found.label) == ("where is the new harbour 0?\nQuickly.", "no")
    assert found.messages == [{"role": "user", "content": found.text}]
    image = [{"talk": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}]
    with pytest.raises(EdgekitError, match="a part of a turn is 'image_url'; only text is supported"):
        generated(tmp_path, image, messages="talk")  # type: ignore[arg-type]


def test_sharegpt(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "where is the PLACE?"}]
    (found,) = generated(
        tmp_path, [{"conversations": [*turns, {"from": "gpt", "value": "there"}]}], messages="conversations"
    )
    assert found.label == "there"
    assert found.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "where is the new harbour 0?"},
    ]


def labelled(*labels: object, **data: object) -> list[str | None]:
    """The labels that a column of these values gives."""
    rows = [
        Row(number=number, values={"text": f"a {number}", "label": label}) for number, label in enumerate(labels, 1)
    ]
    reading = read_prompts(Table(columns=["text", "label"], rows=rows), Data(**data), "rows.x")  # type: ignore[arg-type]
    assert reading.converted.total() == sum(not isinstance(label, str) for label in labels)
    return [row.label for row in reading.prompts]


def test_labels_of_other_types() -> None:
    assert labelled("2024-01-01", "007", 7, 1.0, -0.0, True, False) == [
        "2024-01-01",
        "007",
        "7",
        "1",
        "0",
        "true",
        "false",
    ]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (["a"], 'row 1: label: ["a"] is not one label: several labels a text are not supported'),
        (["a", "b"], "several labels a text are not supported"),
        ({"a": 1}, "several labels a text are not supported"),
        (1.5, "row 1: label: 1.5 is no class: a label is a text or a whole number"),
        (float("nan"), "row 1: label: no label"),
        ("  ", "row 1: label: no label"),
        ("\ud800", "row 1: label: holds half of a character"),
    ],
)
def test_what_is_no_label(label: object, said: str) -> None:
    with pytest.raises(EdgekitError) as told:
        labelled(label)
    assert said in told.value.message


def test_a_label_map_renames() -> None:
    assert labelled(0, "1", "other", labels={"0": "card_arrival", "1": "lost"}) == ["card_arrival", "lost", "other"]


def test_all_bad_rows_are_told_in_one_message() -> None:
    values = [{"text": f"a {number}", "label": "x" if number % 2 else None} for number in range(30)]
    rows = [Row(number=number, values=value) for number, value in enumerate(values, 1)]
    rows.append(Row(number=31, problem="line 31: not valid JSON"))
    table = Table(columns=["text", "label"], rows=rows)
    with pytest.raises(EdgekitError) as told:
        read_prompts(table, Data(), "rows.jsonl")
    assert told.value.message.startswith("rows.jsonl: 16 rows are no prompts: row 1: label: no label; add one, ")
    assert "row 19: label" in told.value.message
    assert "row 21: label" not in told.value.message
    assert told.value.message.endswith(
        '; and 6 more. Mend them, or set data.bad_rows = "drop" (--drop-bad-rows) to go on without them'
    )
    reading = read_prompts(table, Data(bad_rows="drop"), "rows.jsonl")
    assert [row.row for row in reading.prompts] == list(range(2, 31, 2))
    assert dict(reading.dropped) == {"bad rows": 16}


def test_a_row_as_long_as_a_book_is_told() -> None:
    rows = [
        Row(number=place, values={"text": text}) for place, text in enumerate(("a text", "ab " * 400_000, "more"), 1)
    ]
    table = Table(columns=["text"], rows=rows)
    with pytest.raises(
        EdgekitError, match=r"rows: row 2: text: 1,200,000 characters, and 1,000,000 are the most; split"
    ):
        read_prompts(table, Data(label=None), "rows")
    reading = read_prompts(table, Data(label=None, bad_rows="drop"), "rows")
    assert [prompt.text for prompt in reading.prompts] == ["a text", "more"]
    assert reading.dropped == {"bad rows": 1}
    talk = Row(number=1, values={"said": [{"role": "user", "content": "ab " * 400_000}]})
    with pytest.raises(EdgekitError, match=r"row 1: said: 1,200,0\d\d characters"):
        read_prompts(Table(columns=["said"], rows=[talk]), Data(label=None, messages="said"), "rows")


def test_empty_texts_are_left_out_and_counted() -> None:
    """Silence may be out of scope, and then it stays."""
    texts = ["", " \t", "\u200b\ufeff", "...", ""]
    rows = [Row(number=1, values={"text": text, "label": "x"}) for text in texts[:4]]
    rows.append(Row(number=5, values={"text": "", "label": "oos"}))
    reading = read_prompts(Table(columns=["text", "label"], rows=rows), Data(out_of_scope="oos"), "rows.x")
    assert [(row.text, row.label) for row in reading.prompts] == [("...", "x"), ("", "oos")]
    assert dict(reading.dropped) == {"empty texts": 3}


def test_columns_within_columns() -> None:
    rows = [
        Row(number=1, values={"data": {"text": "a", "more": {"label": "x"}}, "data.text": "flat"}),
        Row(number=2, values={"data": {"text": "b", "more": {"label": "y"}}}),
    ]
    table = Table(columns=["data", "data.text"], rows=rows)
    reading = read_prompts(table, Data(text="data.text", label="data.more.label"), "rows.jsonl")
    assert [(row.text, row.label) for row in reading.prompts] == [("flat", "x"), ("b", "y")]
    with pytest.raises(EdgekitError, match=r"no column 'data\.txt' \(its columns: data\.text, data\.more\)"):
        read_prompts(
            Table(columns=["data"], rows=[Row(number=1, values={"data": {"text": "b", "more": None}})]),
            Data(text="data.txt", label=None), "x",
        )  # fmt: skip


def test_a_missing_header_is_told() -> None:
    rows = [Row(number=1, values={"where is my new card now": "b", "card_arrival": "x"})]
    table = Table(columns=["where is my new card now", "card_arrival"], rows=rows)
    with pytest.raises(
        EdgekitError, match=r"no column 'text' .*; its first line looks like a row \('where is my new card"
    ):
        read_prompts(table, Data(), "rows.csv")
