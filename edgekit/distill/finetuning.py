"""What a recipe may say about fine-tuning a checkpoint, beside what it may say of every training; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt

from edgekit.distill.augment import Augment
from edgekit.distill.options import DistillOptions, TrainingOptions, refuse_augment
from edgekit.errors import EdgekitError
from edgekit.inputs import LATER
from edgekit.outputs.tokens import TOKENS
from edgekit.schema import parse

# Parts that train rows are dealt out into, where held-out ones say what helps.
FOLDS = 3


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """A first stage of a classifier of few labels: texts of one class come near to each other (`few_labels`).

    when: always, or if classifiers behind it are the better ones ("auto"), which FOLDS parts of the train rows say that are held
    out in turn. A batch has so many texts and as many partners. Without `learning_rate`: 1e-4 at 384 channels, falling as
    1 / width.
    """

    when: Literal["always", "auto"] = "always"
    epochs: Annotated[int, Gt(0)] = 8
    batch: Annotated[int, Gt(1)] = 32
    learning_rate: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """How to train a checkpoint on labels or answers. Of texts with labels, `augment` is how they are changed in each epoch, and
    `contrastive` a first stage.
    """

    augment: Augment | None = field(default=None, metadata=LATER)
    contrastive: Contrastive | None = field(default=None, metadata=LATER)


def read_finetune_table(table: Mapping[str, object], output: str, where: str) -> FinetuneOptions:
    """A recipe's [teacher.finetune] table, where contrastive = true and "auto" stand for a table; EdgekitError for a bad one."""
    asked = table.get("contrastive")
    short: dict[object, object] = {True: {}, False: None, "auto": {"when": "auto"}}
    if isinstance(asked, bool | str):
        if asked not in short:
            raise EdgekitError(f'{where}.contrastive: {asked!r}: give true, "auto" or a table')
        table = {**table, "contrastive": short[asked]}
        if asked is False:
            table = {key: value for key, value in table.items() if key != "contrastive"}
    options = parse(FinetuneOptions, table, where)
    refuse_augment(options.augment, output, f"{where}.augment")
    if options.contrastive is not None and output == TOKENS.name:
        raise EdgekitError(f"{where}.contrastive: for text-classification alone; remove this key")
    if options.contrastive is not None and options.processes > 1:
        raise EdgekitError(
            f"{where}.processes: the first stage (contrastive) compares all rows of a batch with each other; train in one process"
        )
    return options


def passes(options: TrainingOptions) -> int:
    """How often a training reads its texts: a first stage reads two of them for each, and `auto` trains on the other parts."""
    first = options.contrastive if isinstance(options, FinetuneOptions) else None
    if first is None:
        return options.epochs
    once = options.epochs + 2 * first.epochs
    return once if first.when == "always" else once + (FOLDS - 1) * (once + options.epochs)


def changes(options: TrainingOptions) -> Augment | None:
    """How texts are changed where they are trained on; None where they are not."""
    return options.augment if isinstance(options, FinetuneOptions | DistillOptions) else None
