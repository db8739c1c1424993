"""A teacher is recorded once for all students of it; another template, text or temperature is recorded anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import edgekit.calibrate
import edgekit.record
from edgekit.cli.options import open_session
from edgekit.distill import courses
from edgekit.pipeline import distill, gather_prompts, read_settings, steps
from edgekit.recipe import load_recipe
from tests.architectures.decoders import make_decoder

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
    asked = courses.record_teacher

    def count(*given: Any) -> dict[str, object]:
        recorded.append(given[3])
        return asked(*given)

    monkeypatch.setattr(courses, "record_teacher", count)
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
        (courses, "record_teacher", "train"),
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
