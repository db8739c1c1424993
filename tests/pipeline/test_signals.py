"""A teacher is recorded once for all students of it; another template, text or temperature is recorded anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit.calibrate
import edgekit.record
from edgekit.cli.options import open_session
from edgekit.distill import recording
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.pipeline import distill, gather_prompts, read_settings, steps
from edgekit.recipe import load_recipe
from tests.architectures.decoders import make_decoder
from tests.cli.test_json import read
from tests.conftest import Answer

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
RECIPE = """
task = "text-generation"
[teacher]
source = "teacher"

[data]
path = "data"
text = "text"
answer = "label"
max_length = 64

[student]
layers = 1

[distill]
signals = "recorded"
epochs = 1
holdout = 0.0
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_decoder("llama", tmp_path / "teacher")
    (tmp_path / "teacher" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "data").mkdir()
    for split, first in (("train", 0), ("calibrate", 8), ("verify", 16)):
        rows = [{"text": f"what follows {first + place}", "label": f"it is {first + place + 1}"} for place in range(8)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def test_a_teacher_is_recorded_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[float] = []
    asked = recording.record_teacher

    def count(*given: Any) -> dict[str, object]:
        recorded.append(given[3])
        return asked(*given)

    monkeypatch.setattr(recording, "record_teacher", count)
    made: list[Path] = []

    def student(**changes: str) -> None:
        overrides = [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
        recipe, session = load_recipe(project / "recipe.toml", overrides), open_session(project / "cache", project)
        prompts = gather_prompts(recipe, session)
        made.append(distill(read_settings(recipe), project / "teacher", prompts, session))

    student()
    student()
    assert made[0] == made[1]
    for path in (project / "cache" / "signals").iterdir():
        shutil.rmtree(path)
    student()
    assert (made[2], recorded) == (made[0], [2.0]), "a student that is there needs no recording"
    student(distill__epochs="2")
    student(student__layers="2")
    assert len({*made}) == 3
    assert recorded == [2.0, 2.0], "two more students of one recording"
    student(distill__temperature="1.0")
    assert recorded == [2.0, 2.0, 1.0]
    (project / "teacher" / "chat_template.jinja").write_text(TEMPLATE.replace("<", "["))
    student()
    assert recorded == [2.0, 2.0, 1.0, 2.0], "another template, other tokens"
    (project / "data" / "train.jsonl").write_text('{"text": "what else", "label": "nothing"}\n')
    student()
    assert len(recorded) == 5


def test_each_split_is_recorded_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's answers to train, the activations on calibrate, the answers to verify: each is made once, and anew where its
    own prompts change, or the template does."""
    made: list[str] = []

    def count(module: Any, name: str, split: str) -> None:
        verb = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: made.append(split) or verb(*given))

    for module, name, split in (
        (recording, "record_teacher", "train"),
        (edgekit.calibrate, "calibrate", "calibrate"),
        (edgekit.record, "record", "verify"),
    ):
        count(module, name, split)

    def build() -> list[str]:
        made.clear()
        recipe, session = load_recipe(project / "recipe.toml"), open_session(project / "cache", project)
        prompts, settings, teacher = gather_prompts(recipe, session), read_settings(recipe), project / "teacher"
        steps.signals(settings, teacher, prompts, session)
        steps.calibrate(settings, teacher, prompts, session)
        steps.record(settings, teacher, teacher, prompts, session)
        return [*made]

    every = ["train", "calibrate", "verify"]
    assert build() == every
    assert build() == []
    (project / "data" / "train.jsonl").write_text('{"text": "what else", "label": "nothing"}\n')
    assert build() == ["train"]
    (project / "teacher" / "chat_template.jinja").write_text(TEMPLATE.replace("<", "["))
    assert build() == every


def test_one_command_makes_the_three(
    project: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edgekit record` of a recipe: what it makes and keeps, what each belongs to, files that NumPy opens, and a build's reuse."""
    asked: list[Path] = []
    verb = recording.record_teacher
    monkeypatch.setattr(recording, "record_teacher", lambda *given: asked.append(given[0]) or verb(*given))

    def record(*more: str) -> list[dict[str, Any]]:
        return list(read(command("record", "--json", *more))["recordings"])

    def made(found: list[dict[str, Any]]) -> list[str]:
        return [one["split"] for one in found if one["made"]]

    first = record()
    assert [(one["split"], one["of"], one["rows"]) for one in first] == [
        (split, "teacher", 8) for split in ("train", "calibrate", "verify")
    ]
    assert made(first) == ["train", "calibrate", "verify"]
    for one in first:
        assert one["tokenizer"] == sha256((project / "teacher" / "tokenizer.json").read_bytes()).hexdigest()
        files = [path for path in Path(one["folder"]).iterdir() if path.suffix in {".npy", ".npz"}]
        assert files
        assert all(np.load(path, allow_pickle=False) is not None for path in files)
    assert len({one["model"] for one in first}) == len({one["template"] for one in first}) == 1
    assert len({one["data"] for one in first}) == 3
    again = record()
    assert made(again) == []
    assert len(asked) == 1
    assert [one["folder"] for one in again] == [one["folder"] for one in first]
    text = command("record").out.splitlines()
    assert [line.split()[:4] for line in text[1:]] == [[one["split"], "teacher", "kept", "8"] for one in first]
    student = record("--with-student")
    assert [(one["split"], one["of"]) for one in student if one["made"]] == [
        ("calibrate", "student"),
        ("verify", "student"),
    ]
    assert len(asked) == 1, "the student learns from the recording"
    train = project / "data" / "train.jsonl"
    train.write_text(train.read_text().replace("what follows 0", "what came before"))
    assert made(record()) == ["train"]
    (project / "teacher" / "chat_template.jinja").write_text(TEMPLATE.replace("<", "["))
    changed = record()
    assert made(changed) == ["train", "calibrate", "verify"]
    assert changed[0]["template"] != first[0]["template"]
    assert changed[0]["tokenizer"] == first[0]["tokenizer"]
    train.write_text((project / "data" / "verify.jsonl").read_text())
    refused = command("record")
    assert refused.code == 1
    assert "texts of train are (nearly) in verify too" in refused.err
    assert "'what follows 16' (row 1) and 'what follows 16' (row 1)" in refused.err


def test_a_recipe_that_trains_nothing_has_two_recordings(project: Path, command: Callable[..., Answer]) -> None:
    text = (project / "recipe.toml").read_text()
    (project / "recipe.toml").write_text(text.partition("[student]")[0])
    assert [one["split"] for one in read(command("record", "--json"))["recordings"]] == ["calibrate", "verify"]
    for wrong, told in (
        (("--out", "here"), "--out is for TEACHER and STUDENT"),
        (("teacher",), "Give TEACHER, STUDENT and --out, or none of them"),
        (("--with-student",), "has no [student] table"),
        (("teacher", "teacher", "--out", "here", "--with-student"), "leave out TEACHER and STUDENT"),
    ):
        answer = command("record", *wrong)
        assert (answer.code, told in answer.err) == (2, True), answer.err


def test_another_scorer_is_another_student(project: Path, checkpoint: Path) -> None:
    """What is in the scorer's folder counts and not where it lies; the control run has none."""
    text = (project / "recipe.toml").read_text().replace('signals = "recorded"', "")
    reward = '\n[distill.on_policy.reward]\nscorer = "{}"\nlabel = "music"\n'
    session = open_session(project / "cache", project)

    def inputs(folder: str) -> Any:
        (project / "recipe.toml").write_text(text + reward.format(folder))
        recipe = load_recipe(project / "recipe.toml")
        prompts = gather_prompts(recipe, session)
        return steps._distill_inputs(read_settings(recipe), project / "teacher", prompts, session)

    shutil.copytree(checkpoint, project / "scorer")
    shutil.copytree(checkpoint, project / "elsewhere")
    made = [identity(inputs("scorer")), identity(inputs("elsewhere"))]
    assert made[0] == made[1]
    card = json.loads((project / "scorer" / "config.json").read_text())
    (project / "scorer" / "config.json").write_text(json.dumps(card | {"initializer_range": 0.03}))
    changed = identity(inputs("scorer"))
    assert {key for key in changed if changed[key] != made[0][key]} == {"scorer"}
    with pytest.raises(EdgekitError, match=r"recipe.toml: distill.on_policy.reward.scorer: no such folder"):
        inputs("nowhere")
