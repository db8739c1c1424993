"""What several teachers of one student need, and assistants between them: checked before anything runs, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.distill.losses import LOSSES
from edgekit.distill.options import DistillOptions, Schedule
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.outputs import OUTPUTS
from edgekit.schema import nearest
from edgekit.tasks import TASKS

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.recipe import Recipe, Student


def check_assistants(
    student: Student | None, options: DistillOptions, chosen: Mapping[str, float | Schedule], where: str
) -> None:
    """Refuse assistants that are not between a teacher and a student of layers, or would teach nothing."""
    if student is None or student.layers is None:
        raise EdgekitError(f"{where}: they are between a teacher and a student of fewer layers; give [student] layers")
    sizes = [*(assistant.layers for assistant in options.assistants), student.layers]
    if any(before <= after for before, after in pairwise(sizes)):
        raise EdgekitError(f"{where}: {sizes} layers, the student's last: each has fewer than the one before")
    if not any(LOSSES[name].teacher for name in chosen):
        raise EdgekitError(
            f"{where}: no loss reads a teacher's answers; add one to distill.losses, or remove the assistants"
        )


def check_several(recipe: Recipe, options: DistillOptions, chosen: Mapping[str, float | Schedule], where: str) -> None:
    """Refuse several teachers where they cannot teach as one."""
    several = f"{where}: teacher.others"
    if TASKS[recipe.task].OUTPUT not in LOSSES["logits"].weights:
        raise EdgekitError(
            f"{several}: the mean of several teachers is of probabilities, which {recipe.task} has none of"
        )
    if recipe.qad is not None:
        raise EdgekitError(f"{several}: [qad] learns from one teacher; remove that table, or the other teachers")
    if options.signals == "recorded":
        raise EdgekitError(f'{several}: one teacher is recorded; give signals = "live", or remove the other teachers')
    of_logits = [name for name in chosen if LOSSES[name].divergence is not None and LOSSES[name].teacher]
    if not of_logits:
        raise EdgekitError(
            f"{several}: no loss compares logits with the teachers'; add one to distill.losses (logits, ...)"
        )
    if "logit_squares" in of_logits:
        raise EdgekitError(
            f"{where}: distill.losses.logit_squares: the mean of several teachers has probabilities and no logits of its own; use"
            " logits"
        )
    if options.confidence:
        raise EdgekitError(
            f"{where}: distill.confidence: weighs what one teacher says; remove it, or the other teachers"
        )
    if options.augment is not None and options.augment.answers == "asked":
        raise EdgekitError(
            f'{where}: distill.augment.answers: several teachers say what they think of a text as it was; give "kept", or'
            " remove the other teachers"
        )
    if recipe.teacher.weights == "validation" and not options.holdout:
        raise EdgekitError(
            f'{where}: teacher.weights: "validation" chooses by the train rows that distill.holdout keeps aside, and it is 0;'
            " give 0.05, or the weights as a list"
        )


def check_teachers(folder: Path, others: Sequence[Path], task: str, classes: Sequence[str] = ()) -> None:
    """Refuse (EdgekitError) further teachers that do not say the same things as the first one, in its folder.

    classes: that the first one will have, where it is not trained yet.
    """
    if not others:
        return
    first = load_model(folder)
    for other in others:
        model = load_model(other)
        if OUTPUTS[TASKS[task].OUTPUT].has_classes:
            _check_classes(model, classes or first.labels)
        elif model.tokenizer().get_vocab() != first.tokenizer().get_vocab():
            raise EdgekitError(
                f"{other}: has another vocabulary than {folder}: of decoders that teach together each says the next token of the"
                " same ones, and those of two tokenizers do not line up, which the loss uld needs too; give a teacher with the"
                " same tokenizer"
            )


def _check_classes(model: Model, wanted: Sequence[str]) -> None:
    for name, known in [*((name, model.labels) for name in wanted), *((name, wanted) for name in model.labels)]:
        if name not in known:
            whose = "lacks the class" if name in wanted else "has a class of its own,"
            raise EdgekitError(
                f"{model.folder}: {whose} {name!r}{nearest(name, known)}: teachers of one student have the same classes; rename"
                " them (data.labels), or leave this teacher out"
            )
