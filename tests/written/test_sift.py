"""Which written answers teach, of which prompts, and what is told of the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.prompts import PromptSet
from edgekit.written.journal import Journal, Written
from edgekit.written.questions import beginning, read_questions
from edgekit.written.sift import Sifting, describe, is_repeating, sift
from tests.conftest import ROOT

USUAL = Sifting(samples=1, begin=1.0, own=False, cut_off="drop", shortest=1, longest=None)
LONG = "the kettle boils on the stove while it rains outside"


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Sifts: rows of train, answers of each question, further splits; gives the facts and the train rows that come of it."""

    def made(
        rows: Sequence[dict[str, Any]],
        answers: Sequence[Sequence[Written | str]],
        sifting: Sifting = USUAL,
        **splits: Sequence[dict[str, Any]],
    ) -> tuple[dict[str, Any], list[Any]]:
        prompts, written, out = (tmp_path / name for name in ("prompts", "written", "out"))
        for folder in (prompts, written, out):
            folder.mkdir()
        for name, part in {"train": rows, "verify": [], **splits}.items():
            (prompts / f"{name}.jsonl").write_text("".join(json.dumps({"label": None} | row) + "\n" for row in part))
        journal = Journal(written, Written)
        for place, samples in enumerate(answers):
            for sample, one in enumerate(samples):
                journal.add((place, sample), one if isinstance(one, Written) else Written(answer=one, end="stop"))
        facts = sift(prompts, written, sifting, out)
        assert (out / "verify.jsonl").read_bytes() == (prompts / "verify.jsonl").read_bytes()
        return facts, PromptSet(folder=out).split("train")

    return made


def test_answers_take_the_place_of_the_datas_own(make: Any) -> None:
    rows = [
        {"text": "one", "label": "own", "choices": ["own", "other"], "group": "g"},
        {"text": "two"},
        {"text": "one"},
    ]
    facts, train = make(rows, [["first"], ["second"]])
    assert [(row.text, row.label, row.choices, row.group) for row in train] == [
        ("one", "first", None, "g"),
        ("two", "second", None, None),
    ]
    assert facts == {"rows": 2, "kept": 2, "left_out": {}}
    assert describe(facts, "a model") == "train: 2 answers written by a model"


def test_the_datas_own_may_stay_beside_them(make: Any) -> None:
    sifting = Sifting(**{**vars(USUAL), "own": True, "samples": 2})
    facts, train = make([{"text": "one", "label": "Own."}, {"text": "two"}], [["own", "more"], ["a", "A!"]], sifting)
    assert [row.label for row in train] == ["Own.", "more", "a"]
    assert facts == {"rows": 3, "kept": 2, "left_out": {"said before": 2}}


def test_what_cannot_teach_is_counted_by_its_reason(make: Any) -> None:
    sifting = Sifting(**{**vars(USUAL), "samples": 10, "shortest": 3, "longest": 200})
    answers = [
        "fine answer",
        Written(answer=None, end="failed"),
        " \n",
        Written(answer="it goes on and", end="length"),
        "ok",
        "x y z " * 3 + "long " * 100,
        "I do not know. " * 12,
        "Fine  answer!",
        "half of it \ud83d",
        "bytes \N{REPLACEMENT CHARACTER}",
    ]
    facts, train = make([{"text": "one"}], [answers], sifting)
    assert [row.label for row in train] == ["fine answer"]
    assert facts["left_out"] == {
        "cut off at max_tokens": 1,
        "empty": 1,
        "not Unicode": 2,
        "repeating themselves": 1,
        "said before": 1,
        "too long": 1,
        "too short": 1,
        "without an answer": 1,
    }
    told = describe(facts, "a model")
    assert told.startswith(
        "train: 1 answers written by a model; left out: 1 cut off at max_tokens, 1 empty, 2 not Unicode"
    )


def test_an_answer_that_was_cut_off_may_stay(make: Any) -> None:
    sifting = Sifting(**{**vars(USUAL), "cut_off": "keep"})
    answers = [[Written(answer="it goes on", end="length")], ["it ends"]]
    _, train = make([{"text": "one"}, {"text": "two"}], answers, sifting)
    assert [(row.label, row.unfinished) for row in train] == [("it goes on", True), ("it ends", False)]


@pytest.mark.parametrize("split", ["calibrate", "verify", "final", "recover"])
def test_nothing_that_is_judged_on_is_taught(make: Any, split: str) -> None:
    """An answer that is nearly a text or a wanted answer of another split is left out; short ones say nothing."""
    answers = [
        [LONG.upper() + "!"],
        ["yes"],
        ["the best rooms of a house are those with windows"],
        [LONG[4:] + " now, I think so"],
    ]
    other = [
        {"text": LONG},
        {"text": "is it", "label": "yes"},
        {"text": "which", "label": "The best room of a house are those with windows"},
    ]
    facts, train = make([{"text": name, "label": "own"} for name in "abcd"], answers, **{split: other})
    assert [row.text for row in train] == ["b", "d"]
    assert facts["left_out"] == {"nearly what another split has": 2}


def test_of_running_text_the_beginning_is_asked(make: Any) -> None:
    sifting = Sifting(**{**vars(USUAL), "begin": 0.7})
    text = f"{LONG}\nand then the cat\ncomes in and sleeps"
    verify = [{"text": f"{LONG}\nsoup is ready"}]
    facts, train = make(
        [{"text": text}, {"text": "asked whole", "label": "x"}], [["soup is ready"], ["y"]], sifting, verify=verify
    )
    assert [(row.text, row.label) for row in train] == [("asked whole", "y")]
    assert facts["left_out"] == {"nearly what another split has": 1}


def test_beginnings_end_with_a_line_or_a_word() -> None:
    assert beginning("one two\nthree four", 0.75) == "one two\n"
    assert beginning("one two three four", 0.6) == "one two"
    assert beginning("onetwothree", 0.5) == "onetw"
    assert beginning("one two", 1.0) == "one two"


def test_a_prompt_without_anything_left_is_not_asked(tmp_path: Path) -> None:
    rows = [{"text": "ab", "label": None}, {"text": "one two three", "label": None}, {"text": "ab", "label": "own"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions, places = read_questions(tmp_path, 0.4)
    assert ([one.text for one in questions], places) == (["one", "ab"], [None, 0, 1])


def test_where_nothing_stays_it_says_why(make: Any) -> None:
    with pytest.raises(EdgekitError, match=r"none of the written answers can teach \(2 empty\).*\[answers\]"):
        make([{"text": "one"}, {"text": "two"}], [[""], [" "]])


def test_texts_of_people_do_not_repeat_themselves() -> None:
    """Source code, whose lines are alike, and prose; a loop does, whatever comes before it."""
    paths = sorted((ROOT / "edgekit" / "pipeline").rglob("*.py"))
    assert [path.name for path in paths if is_repeating(path.read_text(encoding="utf-8"))] == []
    assert not is_repeating((ROOT / "LICENSE").read_text(encoding="utf-8"))
    assert is_repeating("It is a fine day and I would like to say " + "that I would " * 12)
    assert is_repeating("私は知りません。" * 12)
    assert not is_repeating("no " * 10)
