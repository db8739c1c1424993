"""Verify, of what gives one row per text: what teacher, float student and artifact answer, and how the answers compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.evidence import Check, Comparison
from edgekit.outputs import OUTPUTS
from edgekit.prompts import PromptSet
from edgekit.tasks import TASKS, row_task
from edgekit.verify import accuracy as compared
from edgekit.verify import checks, margins
from edgekit.verify.accuracy import Answers
from edgekit.verify.rejection import check_rejection, rejection_notes
from edgekit.verify.run import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.prompts import Prompt
    from edgekit.verify.margins import EmbeddingMargins, Margins

    Floats = NDArray[np.float32]


def read_answers(run: Run, rows: Sequence[Prompt], outputs: Floats) -> tuple[dict[str, Answers], bool]:
    """Teacher, student and artifact on the verify prompts, and whether the artifact's outputs were finite.

    Teacher and student are judged with what the task learns from their own outputs on the calibrate prompts, the artifact with
    the settings that ship with it.
    """
    import numpy as np

    inputs, artifact = run.inputs, run.artifact
    task = inputs.task
    kind, reference = row_task(task), run.recorded.folder
    classes, texts = list(artifact.classes), [row.text for row in rows]
    has_classes = OUTPUTS[kind.OUTPUT].has_classes
    if has_classes and list(run.reference.classes) != classes:
        raise EdgekitError(f"{reference}: its classes are not the artifact's; record the reference of this model")
    if has_classes:
        _check_labels(run.inputs.prompts.path, artifact.file.name, [*classes, str(inputs.out_of_scope)])
    answers = {name: answers_of(run, reference, name, texts) for name in ("teacher", "student")}
    finite = bool(np.isfinite(outputs).all())
    if outputs.shape[1:] != answers["student"].outputs.shape[1:]:
        raise EdgekitError(
            f"{artifact.file.name}: gives rows of {outputs.shape[1:]}, the reference of {answers['student'].outputs.shape[1:]};"
            " they are not of one model"
        )
    if not finite:
        outputs = np.nan_to_num(outputs, nan=0.0, posinf=3e38, neginf=-3e38)
    answers["artifact"] = _answer("artifact", outputs, task, artifact.settings, classes, texts)
    return answers, finite


def answers_of(run: Run, folder: Path, name: str, texts: Sequence[str]) -> Answers:
    """What a record's teacher or student answers to the verify prompts, with what its task learns from its own outputs on the
    calibrate prompts."""
    import numpy as np

    inputs, classes = run.inputs, list(run.artifact.classes)
    with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
        calibrate, verify_ = arrays[f"{name}_calibrate"], arrays[f"{name}_verify"]
    labels = [row.label for row in run.split("calibrate")]
    settings = row_task(inputs.task).fit(calibrate, labels, classes, inputs.out_of_scope, inputs.rejection)
    return _answer(name, verify_, inputs.task, settings, classes, texts)


def _check_labels(prompts: Path, file: str, known: Sequence[str]) -> None:
    """Refuse verify prompts with labels that the model cannot say: it would lose nothing by never being right."""
    labels = {row.label for row in PromptSet(folder=prompts).split("verify") if row.label is not None}
    unknown = sorted(labels - set(known))
    if unknown:
        shown = ", ".join(repr(label) for label in unknown[:3])
        raise EdgekitError(
            f"{prompts}: the verify prompts have {len(unknown)} labels that {file} does not know, such as {shown}; its classes"
            f" are {', '.join(repr(label) for label in known[:5])} ...: give this model's own prompts (--recipe), or name"
            " the label of texts that belong to no class (data.out_of_scope)"
        )


def _answer(
    name: str,
    outputs: Floats,
    task: str,
    settings: Mapping[str, object],
    classes: Sequence[str],
    texts: Sequence[str],
) -> Answers:
    kind = row_task(task)
    labels = kind.answer(outputs, settings, classes, texts) if OUTPUTS[kind.OUTPUT].has_classes else []
    return Answers(name=name, outputs=outputs, labels=[str(label) for label in labels])


def compare(
    run: Run, answers: Mapping[str, Answers], rows: Sequence[Prompt]
) -> tuple[list[Comparison], Margins | EmbeddingMargins, list[Check]]:
    """Artifact to student and to teacher, and student to teacher, which is shown and not judged; the margins; other checks."""
    artifact, student, teacher = answers["artifact"], answers["student"], answers["teacher"]
    look, accuracy = run.inputs.look, run.inputs.accuracy
    groups = [row.group for row in rows]
    if OUTPUTS[TASKS[run.inputs.task].OUTPUT].has_classes:
        truth = [row.label for row in rows]
        labelled = [row for row, label in enumerate(truth) if label is not None]
        asked = margins.for_prompts(margins.read_margins(accuracy), len(labelled) or len(rows))
        comparisons = [
            compared.compare_labels(reference, candidate, truth, margin=margin, alpha=look.alpha, groups=groups)
            for reference, candidate, margin in (
                (student, artifact, asked.student_margin),
                (teacher, artifact, asked.teacher_margin),
                (teacher, student, None),
            )
        ]
        right = [artifact.labels[row] == truth[row] for row in labelled]
        own = [groups[row] for row in labelled]
        floor = checks.check_floor(right, own, asked.at_least, look.alpha, look.index)
        return _of_recipe(run, comparisons), asked, floor
    wanted = margins.read_embedding_margins(accuracy)
    comparisons = [
        comparison
        for reference, candidate, limits in (
            (student, artifact, wanted),
            (teacher, artifact, None),
            (teacher, student, None),
        )
        for comparison in compared.compare_embeddings(reference, candidate, limits, alpha=look.alpha, groups=groups)
    ]
    return _of_recipe(run, comparisons), wanted, []


def _of_recipe(run: Run, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with models that the recipe names."""
    hidden = "teacher" if run.inputs.foreign_teacher else None
    return [comparison for comparison in comparisons if comparison.reference != hidden]


def accuracy_by_role(run: Run, answers: Mapping[str, Answers], truth: Sequence[str | None]) -> dict[str, float | None]:
    """The share of right answers of each model on the labelled prompts; None where nothing says so."""
    known = [row for row, label in enumerate(truth) if label is not None]
    if not known or not answers["artifact"].labels:
        return dict.fromkeys(answers)
    hidden = "teacher" if run.inputs.foreign_teacher else None
    return {
        role: None if role == hidden else sum(own.labels[row] == truth[row] for row in known) / len(known)
        for role, own in answers.items()
    }


def notes_on_rejection(run: Run, truth: Sequence[str | None]) -> list[str]:
    """What the calibrate prompts can promise of the rejection of texts of no class (see `rejection_notes`)."""
    inputs = run.inputs
    folders = (run.recorded.folder, inputs.prompts.path, inputs.task, list(run.artifact.classes))
    return rejection_notes(*folders, truth, inputs.out_of_scope, inputs.rejection)


def check_rejected(run: Run, labels: Sequence[str], truth: Sequence[str | None]) -> list[Check]:
    """The checks of how the artifact rejects texts of no class."""
    inputs = run.inputs
    return check_rejection(labels, truth, inputs.out_of_scope, inputs.rejection, run.artifact.contentless, inputs.look)
