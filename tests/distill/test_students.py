"""What a training begins from, and a kind of student that is added here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from edgekit.distill import courses, students
from edgekit.distill.batches import TrainSplit, read_texts
from edgekit.distill.courses import Course, Job, Teaches
from edgekit.distill.options import TrainingOptions
from edgekit.distill.students import STUDENTS, Student, StudentKind, load_module, make_student
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.tasks import TASKS, Task
from tests.architectures.families import make_family
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint


@dataclass(frozen=True, kw_only=True)
class Another:
    """A student of another family, whose weights are its own."""

    folder: Path


def another(options: Another, task: Task) -> Student:
    return Student(module=load_module(task, options.folder), facts={"family": load_model(options.folder).architecture})


def test_a_further_kind_of_student_is_a_function_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DistilBERT learns from a BERT: its own folder's files go along, its teacher is another folder."""
    task = TASKS["text-classification"]
    teacher = make_checkpoint(tmp_path / "teacher", labels=LABELS)
    own = make_family("distilbert", tmp_path / "own", LABELS)
    texts = [Prompt(text=pattern.format(subject)) for pattern in PATTERNS.values() for subject in SUBJECTS]
    model = load_model(teacher)
    source = read_texts(
        TrainSplit(texts=texts, model=model, task=task, max_length=32, holdout=0.2, classes=model.labels)
    )
    (tmp_path / "out").mkdir()
    course = Course(
        job=Job(task=task, max_length=32, out=tmp_path / "out"),
        student=Another(folder=own),
        source=source,
        losses={"logits": 1.0},
        options=TrainingOptions(epochs=10, batch=8, learning_rate=3e-3),
        begins=own,
        teacher=Teaches(folder=teacher),
    )
    with pytest.raises(EdgekitError, match="student: Another: no kind of student is made of it"):
        courses.teach(course)
    monkeypatch.setattr(students, "STUDENTS", STUDENTS | {"another": StudentKind(options=Another, make=another)})
    outcome, facts = courses.teach(course)
    assert facts["family"] == load_model(tmp_path / "out").architecture == "distilbert"
    assert outcome.scores[-1] < 0.5 * outcome.scores[0]


def test_what_a_run_depends_on(checkpoint: Path, tmp_path: Path) -> None:
    """Its snapshot is another run's where any of it differs; where the folders lie is none of it."""
    task, model = TASKS["text-classification"], load_model(checkpoint)
    source = read_texts(
        TrainSplit(texts=[Prompt(text="jazz")], model=model, task=task, max_length=32, holdout=0.0, classes=LABELS)
    )
    course = Course(
        job=Job(task=task, max_length=32, out=tmp_path),
        student=students.Cut(folder=checkpoint, keep=[0]),
        source=source,
        losses={"logits": 1.0},
        options=TrainingOptions(),
        begins=checkpoint,
        teacher=Teaches(folder=checkpoint),
    )
    named = courses.identify(course)
    moved = replace(
        course, student=students.Cut(folder=tmp_path, keep=[0]), job=replace(course.job, out=tmp_path / "x")
    )
    assert courses.identify(moved) == named
    for other in (
        replace(course, student=students.Cut(folder=checkpoint, keep=[1])),
        replace(course, losses={"logits": 2.0}),
        replace(course, options=TrainingOptions(batch=3)),
        replace(course, teacher=None),
        replace(course, source=replace(source, identity={"ids": [[1]]})),
        replace(course, job=replace(course.job, seed=1)),
    ):
        assert courses.identify(other) != named


def test_every_kind_has_options_of_its_own() -> None:
    assert len({kind.options for kind in STUDENTS.values()}) == len(STUDENTS)


def test_a_whole_student_has_a_new_head_of_these_classes(checkpoint: Path) -> None:
    task = TASKS["text-classification"]
    torch.manual_seed(0)
    plain, headed = (
        make_student(students.Whole(folder=checkpoint, classes=classes), task).module for classes in ([], ["a", "b"])
    )
    assert headed.model.config.label2id == {"a": 0, "b": 1}  # type: ignore[union-attr]
    assert plain.model.config.label2id.keys() == set(LABELS)  # type: ignore[union-attr]
