"""Prompts: whatever the data is, it becomes three disjoint splits, or an error that names the file, the row or the column."""

from __future__ import annotations

import csv
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.duplicates import words
from edgekit.errors import EdgekitError
from edgekit.prompts import SPLITS, Prompt, PromptSet, gather
from edgekit.prompts.splits import read_splits
from edgekit.recipe import Data, Recipe, Split, Teacher
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_data

ROWS = [
    {"text": pattern.format(subject), "label": label} for subject in SUBJECTS for label, pattern in PATTERNS.items()
]


def recipe(folder: Path, **data: object) -> Recipe:
    return Recipe(
        task="text-classification",
        teacher=Teacher(source="x"),
        data=Data(**data),  # type: ignore[arg-type]
        path=folder / "recipe.toml",
    )


def gathered(made: Recipe, out: Path, splits: tuple[str, ...] = SPLITS) -> dict[str, list[Prompt]]:
    out.mkdir(exist_ok=True)
    facts = gather(made, splits, out)
    parts = {name: PromptSet(folder=out).split(name) for name in splits}
    assert facts["rows"] == {name: len(part) for name, part in parts.items()}
    return parts


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


def test_folder_of_splits(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    parts = gathered(recipe(tmp_path, path="data"), tmp_path / "out")
    assert {name: len(part) for name, part in parts.items()} == {"train": 12, "calibrate": 6, "verify": 12}
    assert {row.label for row in parts["verify"]} == set(LABELS)
    assert PromptSet(folder=tmp_path / "out").split("other") == []


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_file_gives_the_same(tmp_path: Path, suffix: str) -> None:
    odd = [
        {"text": 'say "hi", then\tstop\nand on', "label": "music"},
        {"text": "NA", "label": "light_on"},
        {"text": "007", "label": "light_off"},
    ]
    write_rows(tmp_path / f"rows{suffix}", ROWS + odd)
    parts = gathered(recipe(tmp_path, path=f"rows{suffix}", split=Split(calibrate=0.3, verify=0.4)), tmp_path / "out")
    found = {(row.text, row.label) for part in parts.values() for row in part}
    assert found == {(row["text"], row["label"]) for row in ROWS + odd}


def test_a_text_keeps_its_split(tmp_path: Path) -> None:
    """Rows go where their words say: order, other rows, case and punctuation do not move a text; another seed does."""
    made = recipe(tmp_path, path="rows.jsonl", split=Split(calibrate=0.3, verify=0.4))
    write_rows(tmp_path / "rows.jsonl", ROWS)
    first = gathered(made, tmp_path / "a")
    shuffled = [row | {"text": row["text"].upper() + "!"} for row in ROWS] + [{"text": "one more", "label": "music"}]
    random.Random(0).shuffle(shuffled)
    write_rows(tmp_path / "rows.jsonl", shuffled)
    second = gathered(made, tmp_path / "b")
    for name in SPLITS:
        assert {words(row.text) for row in first[name]} <= {words(row.text) for row in second[name]}


def test_line_ends_of_other_alphabets_stay_in_the_text(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for str.splitlines, not for JSON lines."""
    make_data(tmp_path / "data")
    text = "turn\u2028the\u0085volume\u2029up"
    with (tmp_path / "data" / "verify.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"text": text, "label": "music"}, ensure_ascii=False) + "\n")
    assert gathered(recipe(tmp_path, path="data"), tmp_path / "out")["verify"][-1].text == text


def test_class_numbers_become_names(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list([row | {"label": LABELS.index(row["label"])} for row in ROWS])
    table = table.cast_column("label", datasets.ClassLabel(names=LABELS))
    table.to_parquet(tmp_path / "rows.parquet")
    parts = gathered(recipe(tmp_path, path="rows.parquet", split=Split(calibrate=0.3, verify=0.4)), tmp_path / "out")
    assert {row.label for row in parts["verify"]} == set(LABELS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` takes for the data set org/name; the recipe lies elsewhere."""
    import datasets

    (tmp_path / "here" / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "here" / "org" / "name"


HALF = len(ROWS) // 2


def test_hub_splits_have_our_names(hub: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    for ours, theirs in {"train": "train", "calibrate": "validation", "verify": "test"}.items():
        (data / f"{ours}.jsonl").rename(hub / f"{theirs}.jsonl")
    parts = gathered(recipe(tmp_path, path="org/name"), tmp_path / "out")
    assert {name: len(part) for name, part in parts.items()} == {"train": 12, "calibrate": 6, "verify": 12}
    assert parts["verify"][0].text == json.loads((hub / "test.jsonl").read_text().split("\n")[0])["text"]


@pytest.mark.parametrize("splits", [SPLITS, ("calibrate", "verify")])
def test_hub_without_validation_gives_calibrate_a_share_of_train(
    hub: Path, tmp_path: Path, splits: tuple[str, ...]
) -> None:
    """BANKING77's layout: train and test."""
    write_rows(hub / "train.jsonl", ROWS[:HALF])
    write_rows(hub / "test.jsonl", ROWS[HALF:])
    made = recipe(tmp_path, path="org/name", split=Split(calibrate=0.4, verify=0.2))
    parts = gathered(made, tmp_path / "out", splits)
    assert [row.text for row in parts["verify"]] == [row["text"] for row in ROWS[HALF:]]
    found = {row.text for row in parts["calibrate"]}
    assert 0.2 * HALF < len(found) < 0.6 * HALF
    rest = {row["text"] for row in ROWS[:HALF]} - found
    if "train" in splits:
        assert {row.text for row in parts["train"]} == rest


def test_hub_without_test_is_refused(hub: Path, tmp_path: Path) -> None:
    write_rows(hub / "train.jsonl", ROWS)
    with pytest.raises(
        EdgekitError, match=r"recipe\.toml: data\.path: org/name: has no test split \(has: train\); save"
    ):
        gathered(recipe(tmp_path, path="org/name"), tmp_path / "out")


def test_hub_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def names(name: str, *, revision: str | None) -> list[str]:
        asked.append((name, revision))
        return ["train", "test"]

    def load(name: str, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, revision))
        return datasets.Dataset.from_list(ROWS[:HALF] if split == "train" else ROWS[HALF:])

    monkeypatch.setattr(datasets, "get_dataset_split_names", names)
    monkeypatch.setattr(datasets, "load_dataset", load)
    half = Split(calibrate=0.5)
    gathered(recipe(tmp_path, path="org/name@refs/pr/1", split=half), tmp_path / "out")
    gathered(recipe(tmp_path, path="org/name", split=half), tmp_path / "out")
    assert asked == [("org/name", "refs/pr/1")] * 3 + [("org/name", None)] * 3


def test_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(name: str, *, revision: str | None) -> None:
        raise ValueError

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(
        EdgekitError, match=r"recipe\.toml: data\.path: org/name: cannot be loaded with datasets: ValueError"
    ):
        gathered(recipe(tmp_path, path="org/name"), tmp_path / "out")


def test_unlabelled(tmp_path: Path) -> None:
    for name, subjects in {"calibrate": SUBJECTS[:5], "verify": SUBJECTS[5:]}.items():
        (tmp_path / f"{name}.csv").write_text("text\n" + "".join(f"the {one} is dark\n" for one in subjects))
    made = recipe(tmp_path, calibrate="calibrate.csv", verify="verify.csv", label="")
    parts = gathered(made, tmp_path / "out", ("calibrate", "verify"))
    assert {row.label for part in parts.values() for row in part} == {None}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "recipe.toml: data.path: missing key"),
        ({"path": "no/such/folder"}, "recipe.toml: data.path: no such file or folder: "),
        ({"path": "data", "train": "x"}, "recipe.toml: data: give either path or a file per split"),
        ({"train": "data/train.jsonl"}, "recipe.toml: data.calibrate: missing key"),
        ({"train": "data/train.jsonl", "calibrate": "x", "verify": "y"}, "recipe.toml: data.calibrate: no such file: "),
        ({"path": "data/train.jsonl"}, "recipe.toml: data.split: missing key"),
        ({"path": "."}, "no train split in it; expected train.csv"),
        ({"path": "data", "text": "txet"}, "train.jsonl: data.text: no column 'txet' (its columns: text, label)"),
        ({"path": "data", "label": "intent"}, "train.jsonl: data.label: no column 'intent' (its columns: text, label)"),
        ({"path": "data", "out_of_scope": "musik"}, "data.out_of_scope: no row of the train split has the label 'musik' (did you mean music?)"),
    ],
)  # fmt: skip
def test_bad_keys(tmp_path: Path, data: dict[str, object], said: str) -> None:
    make_data(tmp_path / "data")
    with pytest.raises(EdgekitError) as told:
        gathered(recipe(tmp_path, **data), tmp_path / "out")
    assert said in told.value.message
    assert list((tmp_path / "out").glob("*")) == []


HEAD = "text,label\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "train.csv: empty; expected rows with texts"),
        (HEAD, "train.csv: no rows below the header line; add some"),
        (
            HEAD + "a,x\nb,x\n",
            "train.csv: label: the train split has only the class 'x'; a classifier needs at least two",
        ),
        (HEAD + "a,x\nb,X\n", "train.csv: labels 'X' and 'x' differ by case or spaces only"),
        (HEAD + "a,x\nb,x \n", "train.csv: labels 'x' and 'x ' differ by case or spaces only"),
        (HEAD + "a,x\nb,\n", "train.csv: row 2: label: no label"),
        (HEAD.encode() + b"caf\xe9,x\n", "train.csv: byte 14 (0xe9) is not UTF-8; save the file as UTF-8"),
        (HEAD.encode("utf-16-le"), "train.csv: holds zero bytes, as UTF-16 does; if it is that, set data.encoding"),
        ('text,label\n"a,x\nb,y\n', "train.csv: line 3: not valid CSV: unexpected end of data"),
        (HEAD + "on, please,x\nb,y\n", "train.csv: line 2: 3 fields, but the header has 2; put texts that hold"),
        ("text,text\na,x\n", "train.csv: line 1: two columns have the same name"),
        (HEAD + "a,light_on\nb,light_of\n", "the train split lacks the label 'light_off' that calibrate has"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str | bytes, said: str) -> None:
    data = make_data(tmp_path / "data")
    (data / "train.jsonl").unlink()
    (data / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EdgekitError) as told:
        gathered(recipe(tmp_path, path="data"), tmp_path / "out")
    assert said in told.value.message
    assert "\n" not in told.value.message
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"', "train.jsonl: line 1: not valid JSON: Expecting ',' delimiter: line 1 column 13 (char 12)"),
        ('{"text": 3, "label": "x"}\n', "train.jsonl: row 1: text: 3 is not a string"),
        (
            '{"text": "a", "label": "x"}\n{"text": null, "label": "y"}\n',
            "train.jsonl: row 2: text: None is not a string",
        ),
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', "train.jsonl: row 2: label: no label"),
        ("[1, 2]\n", "train.jsonl: line 1: [1, 2] is not an object with the columns"),
    ],
)
def test_bad_json(tmp_path: Path, content: str, said: str) -> None:
    data = make_data(tmp_path / "data")
    (data / "train.jsonl").write_text(content)
    with pytest.raises(EdgekitError) as told:
        gathered(recipe(tmp_path, path="data"), tmp_path / "out")
    assert said in told.value.message
    assert "\n" not in told.value.message


@pytest.mark.parametrize(
    ("again", "found"),
    [
        ("please turn the attic light on", True),  # in verify already
        ("Please turn the ATTIC light on!!", True),
        ("light on the attic please turn", True),
        ("please turn the attic light off, not on", False),
        ("???", False),
    ],
)
def test_overlap_is_refused_or_dropped(tmp_path: Path, again: str, found: bool) -> None:
    data = make_data(tmp_path / "data")
    assert "attic" not in (data / "train.jsonl").read_text()
    verify = PATTERNS["light_on"].format("attic")
    with (data / "verify.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": verify, "label": "light_on"}) + "\n")
    rest = [line for line in (data / "calibrate.jsonl").read_text().splitlines() if "attic" not in line]
    (data / "calibrate.jsonl").write_text("\n".join(rest) + "\n")
    with (data / "train.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": again, "label": "light_on"}) + "\n")
    made = recipe(tmp_path, path="data")
    if not found:
        assert len(gathered(made, tmp_path / "out")["train"]) == 13
        return
    with pytest.raises(
        EdgekitError, match=r"recipe\.toml: data: 1 texts of train are \(nearly\) in verify too"
    ) as told:
        gathered(made, tmp_path / "out")
    assert repr(again) in told.value.message
    assert "near_duplicates" in told.value.message
    dropped = gathered(recipe(tmp_path, path="data", near_duplicates="drop"), tmp_path / "out")
    assert (len(dropped["train"]), len(dropped["verify"])) == (12, 13)


def add_rows(path: Path, *rows: tuple[str, str]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


@pytest.mark.parametrize("policy", ["refuse", "drop"])
@pytest.mark.parametrize(
    ("again", "said", "left"),
    [
        ([("PLAY jazz, 7 times!", "music")], "row 13 ('play jazz 5 times') and row 14 ('PLAY jazz, 7 times!');", 13),
        ([("play jazz 5 times", "light_on")], "row 14 ('play jazz 5 times') with the labels 'music' and 'light_on';", 12),
        ([("play jazz 5 times", "music")] * 99, "verify has 99 texts that repeat another", 13),
        ([("play jazz", "music")], None, 14),
    ],
)  # fmt: skip
def test_a_text_counts_once_in_verify(
    tmp_path: Path, policy: str, again: list[tuple[str, str]], said: str | None, left: int
) -> None:
    """Two texts fifty times over are not a hundred independent prompts: every bound counts them."""
    data = make_data(tmp_path / "data")
    add_rows(data / "verify.jsonl", ("play jazz 5 times", "music"), *again)
    made = recipe(tmp_path, path="data", near_duplicates=policy)
    if said is None or policy == "drop":
        assert len(gathered(made, tmp_path / "out")["verify"]) == left
        return
    with pytest.raises(EdgekitError) as told:
        gathered(made, tmp_path / "out")
    assert said in told.value.message
    assert "verify.jsonl: verify has " in told.value.message
    assert 'near_duplicates = "drop"' in told.value.message


def test_places_are_those_of_the_one_file(tmp_path: Path) -> None:
    """A file that is split by rule is named with its own rows, not the split's."""
    write_rows(tmp_path / "rows.jsonl", [*ROWS, *({**row, "text": row["text"].upper()} for row in ROWS)])
    with pytest.raises(EdgekitError) as told:
        gathered(recipe(tmp_path, path="rows.jsonl", split=Split()), tmp_path / "out")
    found = re.search(r"rows\.jsonl: verify has .* row (\d+) \('.*'\) and row (\d+) ", told.value.message)
    assert found is not None
    assert int(found[2]) == int(found[1]) + len(ROWS)


def test_what_is_dropped_is_checked_after(tmp_path: Path) -> None:
    """Dropping can empty a split, or take its last text of a label; neither goes on to training."""
    made = recipe(tmp_path, path="data", near_duplicates="drop")
    data = make_data(tmp_path / "data")
    (data / "train.jsonl").write_bytes((data / "verify.jsonl").read_bytes())
    with pytest.raises(
        EdgekitError, match=r"the train split has no rows after 12 rows were left out \(12 near duplicates\)"
    ):
        gathered(made, tmp_path / "out")
    data = make_data(tmp_path / "data")
    add_rows(data / "train.jsonl", ("is it cold", "weather"))
    add_rows(data / "calibrate.jsonl", ("will it rain tomorrow", "weather"))
    add_rows(data / "verify.jsonl", ("it is cold", "weather"))
    with pytest.raises(
        EdgekitError,
        match=r"the train split lacks the label 'weather' .* after 1 rows were left out \(1 near duplicates\); every .*: 'weather' 2\. Add",
    ):
        gathered(made, tmp_path / "out")


def test_a_group_is_in_one_split(tmp_path: Path) -> None:
    """Tickets of one customer go together, whatever their words are."""
    rows = [row | {"who": f"customer {number % 12}"} for number, row in enumerate(ROWS)]
    write_rows(tmp_path / "rows.jsonl", rows)
    parts = gathered(
        recipe(tmp_path, path="rows.jsonl", group="who", split=Split(calibrate=0.3, verify=0.4)), tmp_path / "out"
    )
    groups = {name: {row.group for row in part} for name, part in parts.items()}
    assert set.union(*groups.values()) == {f"customer {number}" for number in range(12)}
    assert sum(map(len, groups.values())) == 12


def test_a_group_of_two_files_is_refused_or_dropped(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    for name in SPLITS:
        rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        groups = {"train": 7.0, "calibrate": None, "verify": 8.0}
        told = [
            row | {"who": 7 if (name, number) == ("verify", 0) else groups[name]} for number, row in enumerate(rows)
        ]
        write_rows(data / f"{name}.jsonl", told[::-1] if name == "train" else told)
    with pytest.raises(EdgekitError, match=r"data\.group: 12 rows of train are of groups .* row 1 of group '7'; keep"):
        gathered(recipe(tmp_path, path="data", group="who"), tmp_path / "out")
    made = recipe(tmp_path, path="data", group="who", near_duplicates="drop")
    with pytest.raises(
        EdgekitError,
        match=r"the train split has no rows after 12 rows were left out \(12 of groups that another split has\)",
    ):
        gathered(made, tmp_path / "out")
    without = recipe(tmp_path, path="data", group="who")
    parts = gathered(without, tmp_path / "out", ("calibrate", "verify"))
    assert [row.group for row in parts["verify"]][:2] == ["7", "8"]
    assert {row.group for row in parts["calibrate"]} == {None}


def of_label(count: int, label: str) -> list[dict[str, str]]:
    """Texts of a label that share few words with each other."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [{"text": f"the {one * 4} has a {label} {one * 5} or {one * 6}", "label": label} for one in letters[:count]]


def test_every_split_gets_every_label(tmp_path: Path) -> None:
    """A label of few rows is in each split, though its hashes send none there; the others stay where their hashes send them."""
    rows = [*of_label(24, "many"), *of_label(24, "more"), *of_label(3, "few"), *of_label(4, "some")]
    write_rows(tmp_path / "rows.jsonl", rows)
    made = recipe(tmp_path, path="rows.jsonl", split=Split(calibrate=0.1, verify=0.2), near_duplicates="drop")
    parts = gathered(made, tmp_path / "out")
    for name in SPLITS:
        assert {row.label for row in parts[name]} == {"many", "more", "few", "some"}


def test_labels_of_fewer_rows_than_splits(tmp_path: Path) -> None:
    rows = [*of_label(24, "many"), *of_label(24, "more"), *of_label(2, "rare"), *of_label(1, "once")]
    write_rows(tmp_path / "rows.jsonl", rows)
    shares = {"path": "rows.jsonl", "split": Split(calibrate=0.2, verify=0.3), "near_duplicates": "drop"}
    with pytest.raises(EdgekitError) as told:
        gathered(recipe(tmp_path, **shares), tmp_path / "out")
    assert "the train split lacks the label '" in told.value.message
    assert "'once' 1" in told.value.message
    assert "set data.min_per_label = 3 to leave out labels of fewer rows" in told.value.message
    made = recipe(tmp_path, **shares, min_per_label=3)
    facts = gather(made, SPLITS, tmp_path / "out")
    assert facts["labels"] == ["many", "more"]
    assert sum(counts.get("of rare labels", 0) for counts in facts["dropped"].values()) == 3


def test_sums_are_not_one_text(tmp_path: Path) -> None:
    """Numbers are what is asked for where the answers differ, and where nobody knows them."""
    generator = random.Random(1)
    sums = [(generator.randint(10, 999), generator.randint(10, 999)) for _ in range(300)]
    rows = [{"text": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in sums]
    write_rows(tmp_path / "rows.jsonl", rows)
    for answer in ("answer", None):
        data = Data(
            path="rows.jsonl", label=None, answer=answer, split=Split(calibrate=0.2, verify=0.4), near_duplicates="drop"
        )
        made = Recipe(task="text-generation", teacher=Teacher(source="x"), data=data, path=tmp_path / "recipe.toml")
        parts = gathered(made, tmp_path / "out", ("calibrate", "verify"))
        assert len(parts["calibrate"]) > 30
        assert len(parts["verify"]) > 70
    timers = [{"text": f"set {n} timers", "label": "timer"} for n in range(99)]
    write_rows(tmp_path / "rows.jsonl", [*timers, *ROWS])
    facts = gather(recipe(tmp_path, path="rows.jsonl", split=Split(calibrate=0.3, verify=0.4), near_duplicates="drop", min_per_label=1), SPLITS, tmp_path / "out")  # fmt: skip
    assert "timer" not in facts["labels"]


def test_what_is_left_out_or_odd_is_told(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    text = PATTERNS["music"].format(SUBJECTS[0])
    add_rows(data / "train.jsonl", (text, "light_on"), (" ", "music"), (PATTERNS["music"].format(SUBJECTS[9]), "music"))
    add_rows(
        data / "verify.jsonl", ("quite another thing to say", "music"), ("quite another thing to say!", "light_on")
    )
    add_rows(data / "calibrate.jsonl", ("", "music"))
    facts = gather(recipe(tmp_path, path="data", near_duplicates="drop"), SPLITS, tmp_path)
    assert facts["rows"] == {"train": 13, "calibrate": 6, "verify": 12}
    assert facts["dropped"] == {
        "train": {"empty texts": 1, "near duplicates": 1},
        "calibrate": {"empty texts": 1},
        "verify": {"with contradicting labels": 2},
    }
    assert facts["unusual"] == {"train": {"whose text other rows have with another label": 2}}
    assert facts["notes"] == [
        "train: 2 rows left out (1 empty texts, 1 near duplicates); 13 stay",
        "calibrate: 1 rows left out (1 empty texts); 6 stay",
        "verify: 2 rows left out (2 with contradicting labels); 12 stay",
        "train: 2 rows whose text other rows have with another label",
    ]
    with pytest.raises(
        EdgekitError, match=r"verify has 1 texts with two labels, such as row 13 .* 'music' and 'light_on'; nobody"
    ):
        gather(recipe(tmp_path, path="data"), SPLITS, tmp_path)


def test_texts_that_differ_by_numbers_alone_are_too_few(tmp_path: Path) -> None:
    rows = [{"text": f"pay the bill {row}", "label": "pay"} for row in range(60)]
    rows += [{"text": f"ship box {row}", "label": "ship"} for row in range(60)]
    write_rows(tmp_path / "rows.csv", rows)
    with pytest.raises(EdgekitError, match="its 120 rows are 2 texts that differ by more than numbers"):
        gathered(recipe(tmp_path, path="rows.csv", split=Split()), tmp_path / "out")


def test_a_recovery_split_is_filled_where_groups_are_large(tmp_path: Path) -> None:
    """A group that is larger than the share leaves its place to those that fit."""
    many, more = of_label(26, "many"), of_label(26, "more")
    parts = {"train": many[:24] + more[:24], "calibrate": [many[24], more[24]], "verify": [many[25], more[25]]}
    for name, rows in parts.items():
        groups = [f"{name} {'large' if place % 3 else place}" for place in range(len(rows))]
        own = [row | {"group": group} for row, group in zip(rows, groups, strict=True)]
        write_rows(tmp_path / f"{name}.jsonl", own)
    files = {name: f"{name}.jsonl" for name in SPLITS}
    for seed in range(12):
        made = replace(recipe(tmp_path, **files, group="group", recover=0.1), seed=seed)
        assert len(read_splits(made, (*SPLITS, "recover"))["recover"].prompts) == 4


def test_judging_splits_are_the_same_whatever_is_held_out(tmp_path: Path) -> None:
    """Of one file: with a recovery split, and where nothing needs train rows, calibrate and verify have the same rows."""
    rows = [*of_label(24, "many"), *of_label(24, "more"), *of_label(3, "few"), *of_label(4, "some")]
    write_rows(tmp_path / "rows.jsonl", rows)
    shares = {"path": "rows.jsonl", "split": Split(calibrate=0.3, verify=0.5)}
    for seed in range(6):
        found = []
        for recover, splits in (
            (None, SPLITS),
            (None, ("calibrate", "verify")),
            (0.2, ("calibrate", "verify", "recover")),
        ):
            parts = read_splits(replace(recipe(tmp_path, **shares, recover=recover), seed=seed), splits)
            found.append({name: parts[name].prompts for name in ("calibrate", "verify")})
        assert found[0] == found[1] == found[2]


def test_recovery_rows_save_no_rare_label(tmp_path: Path) -> None:
    """A file of recovery prompts changes nothing of the other splits; a label that it alone has leaves it."""
    make_data(tmp_path / "data")
    write_rows(tmp_path / "more.jsonl", [*of_label(9, "light_on"), *of_label(9, "music"), *of_label(9, "new")])
    for least, labels in ((10, ["light_off", "light_on", "music"]), (11, [])):
        made = recipe(tmp_path, path="data", recover="more.jsonl", min_per_label=least)
        if labels:
            assert gather(made, (*SPLITS, "recover"), tmp_path)["labels"] == labels
        else:
            with pytest.raises(EdgekitError, match="of rare labels"):
                gather(made, (*SPLITS, "recover"), tmp_path)
