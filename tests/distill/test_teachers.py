"""Where a teacher's answers come from: its checkpoint, memory, and a kind that is added here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.distill import courses, teachers
from edgekit.distill.signals import Signal
from edgekit.distill.teachers import TEACHERS, Teacher, TeacherInputs
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.tasks import TASKS, outputs
from edgekit.workspace import file_sha256
from tests.conftest import PATTERNS, SUBJECTS, make_data
from tests.steps import distill

TASK = "text-classification"
OPTIONS: dict[str, Any] = {"epochs": 2, "batch": 4, "holdout": 0.0, "losses": {"logits": 1.0}}


def teach(teacher: Path, data: Path, out: Path, **options: Any) -> dict[str, Any]:
    out.mkdir()
    return distill(teacher, data, task=TASK, layers=1, options=OPTIONS | options, max_length=32, out=out)


def test_answers_that_do_not_fit_are_asked_for_anew(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name, kind in TEACHERS.items():

        def tell(inputs: TeacherInputs, name: str = name, kind: Any = kind) -> Teacher | None:
            teacher: Teacher | None = kind(inputs)
            asked.append(f"{name}: {teacher is not None}")
            return teacher

        monkeypatch.setattr(teachers, "TEACHERS", teachers.TEACHERS | {name: tell})
    data = make_data(tmp_path / "data")
    # 12 texts of 3 logits in float32.
    for limit, wanted in ((12 * 3 * 4, ["kept: True"]), (12 * 3 * 4 - 1, ["kept: False", "live: True"])):
        monkeypatch.setattr(teachers, "SIGNAL_BYTES", limit)
        asked.clear()
        teach(checkpoint, data, tmp_path / str(limit))
        assert asked == ["recorded: False", *wanted]


def test_a_further_kind_of_teacher_is_a_function_and_a_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are known without it: the student learns them, and the checkpoint is never opened."""

    def known(inputs: TeacherInputs) -> Teacher:
        assert inputs.folder == checkpoint
        logits = torch.tensor([[9.0, 0.0, 0.0]])
        return Teacher(ask=lambda batch: Signal(output=logits.expand(len(batch.rows), 3)), logits=torch.nn.Identity())

    monkeypatch.setattr(courses, "load_module", lambda *_: pytest.fail("the checkpoint was opened"))
    monkeypatch.setattr(teachers, "TEACHERS", {"known": known, **TEACHERS})
    teach(checkpoint, make_data(tmp_path / "data"), tmp_path / "out", epochs=12, learning_rate=5e-3)
    texts = [pattern.format(subject) for pattern in PATTERNS.values() for subject in SUBJECTS[:4]]
    given = outputs(TASKS[TASK].load(tmp_path / "out"), of_tokens(load_model(checkpoint).encode(texts, 32), 0))
    assert (given.argmax(axis=1) == 0).all()


def test_a_run_by_labels_alone_opens_no_teacher(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data")
    monkeypatch.setattr(courses, "find_teacher", lambda _inputs: pytest.fail("a teacher was looked for"))
    first = teach(checkpoint, data, tmp_path / "first", losses={"labels": 1.0})
    assert first["losses"] == {"labels": 1.0}
    with pytest.raises(pytest.fail.Exception, match="was looked for"):
        teach(checkpoint, data, tmp_path / "second", losses={"labels": 1.0, "logits": 1.0})
    assert len(file_sha256(tmp_path / "first" / "model.safetensors")) == 64


def test_an_interpolated_teacher_at_its_end_is_the_teacher(checkpoint: Path, tmp_path: Path) -> None:
    """The same bytes as without TAID; the paper's schedule gives others, and is told."""
    data, made = make_data(tmp_path / "data"), {}
    tables: dict[str, dict[str, Any]] = {"plain": {}, "end": {"taid": {"start": 1.0}}, "paper": {"taid": {}}}
    for name, table in tables.items():
        facts = teach(checkpoint, data, tmp_path / name, **table)
        made[name] = file_sha256(tmp_path / name / "model.safetensors")
    assert made["plain"] == made["end"] != made["paper"]
    assert facts["taid"] == {"start": 0.4, "end": 1.0, "shape": "linear", "adaptive": 0.0}
