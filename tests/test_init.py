"""`init`: what a file looks like is guessed, shown and written; what a build would refuse writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.init import PROPOSED, Asked, init
from edgekit.recipe import Recipe, load_recipe
from edgekit.tables import Form, sniff
from tests.conftest import PATTERNS, SUBJECTS, Answer

Command = Callable[..., Answer]


def write(out: Path, **options: object) -> Recipe:
    given: dict[str, Any] = {"task": "text-classification", "teacher": "org/name", "data": "rows.csv"}
    columns = {key: options.pop(key) for key in ("text", "label", "messages", "answer", "group") if key in options}
    check = options.pop("check", None)
    init(out, Asked(**given | {"columns": columns} | options), check=check)  # type: ignore[arg-type]
    return load_recipe(out)


@pytest.mark.parametrize(
    ("name", "head", "text", "label"),
    [
        ("rows.csv", "ID,Utterance,Intent\n1,a,b\n", "Utterance", "Intent"),
        ("rows.tsv", "sentence\tcategory\na\tb\n", "sentence", "category"),
        ("rows.jsonl", '{"label": 1, "text": "a"}\n', "text", "label"),
        ("rows.csv", '\ufeff"text","label"\na,b\n', "text", "label"),
        ("rows.jsonl", '{"data": {"text": "a", "intent": "b"}, "id": 1}\n', "data.text", "data.intent"),
    ],
)
def test_init_guesses_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: str, text: str, label: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(head, encoding="utf-8")
    recipe = write(Path("made/recipe.toml"), data=name, layers=2, finetune=True)
    assert (recipe.data.text, recipe.data.label) == (text, label)
    assert recipe.data.path == f"../{name}"
    assert recipe.locate(recipe.data.path) == tmp_path / name
    assert recipe.data.split is not None
    assert recipe.student is not None
    assert recipe.teacher.finetune == {"epochs": 10}
    assert [one.name for one in Path("made").iterdir()] == ["recipe.toml"]


def test_init_asks_where_it_cannot_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(EdgekitError, match=r"rows\.csv: which column is the text\? give --text \(its columns: a, b\)"):
        write(Path("recipe.toml"))
    assert not Path("recipe.toml").exists()


def test_init_of_embeddings_has_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text\na\n")
    recipe = write(Path("recipe.toml"), task="feature-extraction")
    assert not recipe.data.label
    assert recipe.student is None


def test_init_writes_nothing_that_fails_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text("old")

    def refuse(recipe: Recipe) -> None:
        raise EdgekitError(f"{recipe.path}: no")

    with pytest.raises(EdgekitError, match=r"^recipe\.toml: no$"):
        write(Path("recipe.toml"), check=refuse)
    assert Path("recipe.toml").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_init_quotes_what_people_call_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'rows "of" mine, ünï.csv'
    Path(name).write_text('te"xt,label\na,b\n', encoding="utf-8")
    recipe = write(Path("recipe.toml"), data=name, text='te"xt')
    assert recipe.data.path == name
    assert recipe.data.text == 'te"xt'


ROWS = [(pattern.format(subject), label) for subject in SUBJECTS for label, pattern in PATTERNS.items()]


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.csv", "text,label\na,b\n", Form()),
        ("a.csv", 'text;label\n"a, b, c";d\n', Form(delimiter=";")),
        ("a.csv", "text\tlabel\na, b\tc\n", Form(delimiter="\t")),
        ("a.csv", "sep=;\ntext;label\na;b\n", Form()),
        ("a.tsv", "text\tlabel\na,b\tc,d\n", Form()),
        ("a.tsv", "text|label\na|c\n", Form(delimiter="|")),
        ("a.csv", "text;label\ncaf\u00e9;b\n".encode("cp1252"), Form(delimiter=";", encoding="cp1252")),
        ("a.csv", b"text,label\n\x81,b\n", Form(encoding="latin-1")),
        ("a.csv", "text,label\ncaf\u00e9,b\n".encode("utf-16"), Form()),
        ("a.csv", "text;label\ncaf\u00e9;b\n".encode("utf-16-be"), Form(delimiter=";", encoding="utf-16-be")),
        ("a.csv", "text;label\ncaf\u00e9;b\n".encode("utf-8-sig"), Form(delimiter=";")),
        ("a.jsonl", '{"text": "caf\u00e9; a"}\n'.encode("latin-1"), Form(encoding="cp1252")),
        ("a.parquet", b"x", Form()),
    ],
)
def test_sniff(tmp_path: Path, name: str, content: str | bytes, form: Form) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert sniff(tmp_path / name) == form


def test_an_export_of_a_sheet(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    """Semicolons, Windows' encoding, German names, a rare label, near duplicates: one command, and a recipe that builds."""
    lines = ["Nr;Text;Kategorie", *(f"{number};{text};{label}" for number, (text, label) in enumerate(ROWS))]
    lines += ["99;Grüße, please turn the big kitchen light on;light_on", "100;one more;rare", "101;;music"]
    (tmp_path / "Tickets (1).CSV").write_bytes("\r\n".join(lines).encode("cp1252"))
    answer = command("init", "--teacher", checkpoint, "--data", "Tickets (1).CSV", "--finetune", "--label", "Kategorie")
    assert answer.code == 0, answer.err
    assert "Tickets (1).CSV: 33 rows of .csv, delimiter ';', encoding 'cp1252'" in answer.out
    assert "columns: label = 'Kategorie', text = 'Text'; not used: Nr" in answer.out
    assert "labels: 1 have fewer than 3 rows" in answer.out
    assert "; 3 labels (light_off, light_on, music)" in answer.out
    assert "empty texts" in answer.out
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert (recipe.data.delimiter, recipe.data.encoding, recipe.data.min_per_label) == (";", "cp1252", 3)
    assert recipe.data.near_duplicates == "drop"
    dry = command("build", "-t", "laptop-cpu", "--dry-run")
    assert dry.code == 0, dry.err
    assert "3 labels" in dry.out


@pytest.mark.parametrize(
    "names",
    [("train.csv", "validation.csv", "test.csv"), ("Train.csv", "dev.csv", "verify.csv"), ("train.csv", "test.csv")],
)
def test_a_folder_of_splits(command: Command, checkpoint: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    """The columns of its files are looked at, and what they share is dropped."""
    (tmp_path / "data [v2]").mkdir()
    parts = [ROWS[:15], ROWS[15:21], ROWS[18:]] if len(names) == 3 else [ROWS[:18], ROWS[18:]]
    for name, part in zip(names, parts, strict=True):
        rows = "".join(f"{text},{label}\n" for text, label in part)
        (tmp_path / "data [v2]" / name).write_text(f"sentence,intent\n{rows}")
    answer = command("init", "--teacher", checkpoint, "--data", "data [v2]", "--json", "--finetune")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert any("text = 'sentence', label = 'intent'" in line for line in told["found"])
    if len(names) == 3:
        assert "calibrate: 3 rows left out (3 near duplicates); 3 stay" in told["found"]
    assert load_recipe(tmp_path / "recipe.toml").data.label == "intent"


def test_two_files_of_one_split(command: Command, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train.csv", "test.csv", "verify.jsonl"):
        (tmp_path / "data" / name).write_text("text,label\na,b\n")
    answer = command("init", "--teacher", "a/b", "--data", "data")
    assert answer.code == 1
    assert "test.csv and verify.jsonl are both its verify split" in answer.err


def test_only_tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no teacher gets a small English encoder, to be fine-tuned."""
    monkeypatch.chdir(tmp_path)
    Path("tickets.csv").write_text("text,label\na,b\nc,d\n")
    written = init(Path("recipe.toml"), Asked(task="text-classification", data="tickets.csv"))
    recipe = load_recipe(Path("recipe.toml"))
    assert (recipe.teacher.source, recipe.teacher.finetune) == (PROPOSED, {"epochs": 10})
    assert any("ENGLISH" in line for line in written.lines)
    with pytest.raises(EdgekitError, match="--teacher: missing; name a decoder"):
        init(Path("other.toml"), Asked(task="text-generation", data="tickets.csv"))


def test_conversations_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}], "who": "x"}\n')
    recipe = write(Path("recipe.toml"), task="text-generation", data="rows.jsonl", group="who")
    assert (recipe.data.messages, recipe.data.group, recipe.data.label) == ("messages", "who", None)
    Path("rows.csv").write_text("prompt,reply\na,b\n")
    recipe = write(Path("recipe.toml"), task="text-generation", answer="reply")
    assert (recipe.data.text, recipe.data.answer) == ("prompt", "reply")
    with pytest.raises(EdgekitError, match=r"--label: text-generation has no labels; --answer names"):
        write(Path("recipe.toml"), task="text-generation", label="reply")
    with pytest.raises(EdgekitError, match=r"data\.answer: for text-generation only"):
        write(Path("recipe.toml"), label="reply", answer="reply")


def test_a_header_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("where is my new card now,card_arrival\nno,lost\n")
    with pytest.raises(
        EdgekitError, match=r"rows\.csv: its first line looks like a row .'where is my new card now'.*put a line"
    ):
        write(Path("recipe.toml"))


def test_bad_rows_are_dropped_where_asked(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    lines = ["text,label", *(f"{text},{label}" for text, label in ROWS), "no label,", "a, b,music"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    line = ("init", "--teacher", checkpoint, "--data", "rows.csv")
    answer = command(*line)
    assert answer.code == 1
    assert "2 rows are no prompts: row 31: label: no label" in answer.err
    assert not (tmp_path / "recipe.toml").exists()
    answer = command(*line, "--drop-bad-rows")
    assert answer.code == 0, answer.err
    assert "(2 bad rows)" in answer.out
    (tmp_path / "recipe.toml").write_text((tmp_path / "recipe.toml").read_text().replace('bad_rows = "drop"', ""))
    dry = ("build", "-t", "laptop-cpu", "--dry-run", "--set", "data.max_length=32")
    assert command(*dry).code == 1
    assert "2 bad rows" in command(*dry, "--drop-bad-rows").out
