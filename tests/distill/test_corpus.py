"""A train split that is larger than memory: the same student as of one that is held, and little of it held at a time."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgekit import stored
from edgekit.distill import teachers
from edgekit.distill.corpus import write_corpus
from edgekit.distill.journal import FILE as JOURNAL
from edgekit.prompts import SPLITS, gather
from edgekit.recipe import load_recipe
from edgekit.tasks.text_generation import Passage
from edgekit.workspace import file_sha256
from tests.conftest import LABELS, make_checkpoint, make_data
from tests.steps import create, distill

OPTIONS = {"epochs": 2, "batch": 4, "precision": "fp32", "device": "cpu"}
MADE = OPTIONS | {"vocabulary": 300, "hidden": 32, "heads": 2, "layers": 2, "intermediate": 64, "epochs": 1}


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is taken for one that is larger than memory."""
    monkeypatch.setattr(stored, "HELD", 0)


class _Killed(Exception):
    pass


def killed(done: int, _total: int, note: str = "") -> None:
    if done >= 3 and note.startswith("loss"):
        raise _Killed


def test_passages_come_back_from_their_file(tmp_path: Path) -> None:
    passages = [
        Passage(ids=[*range(index, 2 * index + 1)], start=index % 3, prompt=index // 2) for index in range(2500)
    ]
    corpus = write_corpus(passages, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [corpus[7], corpus[-1], *corpus[2:4]] == [passages[7], passages[-1], *passages[2:4]]
    assert list(corpus) == passages
    assert list(corpus.lengths) == [len(one.ids) for one in passages]
    assert list(corpus.starts) == [one.start for one in passages]
    assert write_corpus(passages, tmp_path).digest == corpus.digest
    passages[9] = Passage(ids=[9], start=0, prompt=4)
    assert write_corpus(passages, tmp_path).digest != corpus.digest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers and running text, of which some is several passages."""
    rows = [{"text": f"what follows {place}", "label": f"it is {place + 1} " * (1 + place % 5)} for place in range(13)]
    rows += [{"text": "and so on, and on, " * (1 + place), "label": None} for place in range(9)]
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder made of them."""
    folder = tmp_path_factory.mktemp("teacher")
    create(data, options=MADE, max_length=32, out=folder)
    return folder


@pytest.mark.usefixtures("streamed")
def test_a_decoder_that_is_made_is_the_same_one(data: Path, teacher: Path, tmp_path: Path) -> None:
    create(data, options=MADE, max_length=32, out=new(tmp_path / "made"))
    same(teacher, tmp_path / "made")


def test_a_decoder_that_is_taught_is_the_same_one(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, and so after it was killed; nothing of what it read stays in its folder."""
    monkeypatch.setattr(teachers, "SIGNAL_BYTES", 0)
    asked: dict[str, Any] = {"task": "text-generation", "layers": 1, "max_length": 32}
    asked["options"] = OPTIONS | {"packing": True}
    held = distill(teacher, data, out=new(tmp_path / "held"), **asked)
    monkeypatch.setattr(stored, "HELD", 0)
    monkeypatch.setattr("edgekit.distill.loop.SNAPSHOT_SECONDS", 0.0)
    with pytest.raises(_Killed):
        distill(teacher, data, out=new(tmp_path / "streamed"), progress=killed, **asked)
    assert distill(teacher, data, out=tmp_path / "streamed", **asked) == held
    same(tmp_path / "held", tmp_path / "streamed")


def test_a_classifier_is_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels, the texts that say nothing, fewer tokens, and a teacher that is asked each time."""
    monkeypatch.setattr(teachers, "SIGNAL_BYTES", 0)
    teacher, data = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")
    asked: dict[str, Any] = {"task": "text-classification", "layers": 1, "max_length": 32, "options": OPTIONS}
    held = distill(teacher, data, out=new(tmp_path / "held"), **asked)
    monkeypatch.setattr(stored, "HELD", 0)
    assert distill(teacher, data, out=new(tmp_path / "streamed"), **asked) == held
    same(tmp_path / "held", tmp_path / "streamed")


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def same(one: Path, other: Path) -> None:
    files = [sorted(path.name for path in folder.iterdir() if path.name != JOURNAL) for folder in (one, other)]
    assert files[0] == files[1]
    assert [file_sha256(one / name) for name in files[0]] == [file_sha256(other / name) for name in files[0]]


def test_little_of_a_large_file_is_held(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file to the first steps: of what a file has more than another a part, and several times as much where all is held."""

    def most(name: str, rows: int) -> tuple[int, int]:
        """A file's bytes, and the most that Python's objects and numpy's arrays took."""
        folder = new(tmp_path / name)
        for split, count in (("train", rows), ("calibrate", 5), ("verify", 5)):
            texts = (f"{split} {place:x} " + f"{place * place:b} and {place:o} " * 20 for place in range(count))
            (folder / f"{split}.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
        table = 'task = "text-generation"\n[teacher]\nsource = "teacher"\n[student]\nlayers = 1\n[data]\npath = "."\n'
        (folder / "recipe.toml").write_text(table)
        asked: dict[str, Any] = {"task": "text-generation", "layers": 1, "max_length": 256, "options": OPTIONS}
        recipe, prompts = load_recipe(folder / "recipe.toml"), new(folder / "prompts")
        tracemalloc.start()
        gather(recipe, SPLITS, prompts)
        with suppress(_Killed):
            distill(teacher, prompts, out=new(folder / "student"), progress=killed, **asked)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return (folder / "train.jsonl").stat().st_size, peak

    with monkeypatch.context() as streamed:
        streamed.setattr(stored, "HELD", 1 << 12)
        most("first", 40)  # what is imported
        (small, base), (large, more) = most("small", 40), most("large", 700)
    assert more - base < 0.3 * (large - small)
    assert most("held", 700)[1] - base > 2 * (large - small)
