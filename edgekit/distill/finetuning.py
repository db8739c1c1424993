"""What a recipe may say about fine-tuning a checkpoint, beside what it may say of every training; read without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

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
class PseudoLabels:
    """Texts without labels that a classifier is sure of, as train rows of another one (`self_training`).

    when: always, or if classifiers with them are the better ones ("auto"), which FOLDS parts of the train rows say that are held
    out in turn. precision: which share of the held-out answers that are no less sure must be right. rounds: how often the texts
    are asked, each time of a classifier that has read those of the time before.
    """

    when: Literal["always", "auto"] = "always"
    precision: Annotated[float, Gt(0), Le(1)] = 0.9
    rounds: Annotated[int, Ge(1), Le(5)] = 1


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """How to train a checkpoint on labels or answers. Of texts with labels, `augment` is how they are changed in each epoch,
    `contrastive` a first stage, and `pseudo_labels` whether texts without labels (data.unlabelled) are learned from too.
    """

    augment: Augment | None = field(default=None, metadata=LATER)
    contrastive: Contrastive | None = field(default=None, metadata=LATER)
    pseudo_labels: PseudoLabels | None = field(default=None, metadata=LATER)


# Keys where true and "auto" stand for a table.
_SHORT = ("contrastive", "pseudo_labels")


def read_finetune_table(table: Mapping[str, object], output: str, where: str) -> FinetuneOptions:
    """A recipe's [teacher.finetune] table, where true and "auto" stand for the table of contrastive and pseudo_labels;
    EdgekitError for a bad one."""
    short: dict[object, object] = {True: {}, False: None, "auto": {"when": "auto"}}
    for key in _SHORT:
        asked = table.get(key)
        if isinstance(asked, bool | str):
            if asked not in short:
                raise EdgekitError(f'{where}.{key}: {asked!r}: give true, "auto" or a table')
            table = {**table, key: short[asked]}
            if asked is False:
                table = {name: value for name, value in table.items() if name != key}
    options = parse(FinetuneOptions, table, where)
    refuse_augment(options.augment, output, f"{where}.augment")
    for key in _SHORT:
        if getattr(options, key) is not None and output == TOKENS.name:
            raise EdgekitError(f"{where}.{key}: for text-classification alone; remove this key")
    if options.pseudo_labels is not None and options.processes > 1:
        raise EdgekitError(f"{where}.processes: pseudo_labels trains several classifiers in turn; train in one process")
    if options.contrastive is not None and options.processes > 1:
        raise EdgekitError(
            f"{where}.processes: the first stage (contrastive) compares all rows of a batch with each other; train in one process"
        )
    return options


def passes(options: TrainingOptions) -> int:
    """How often a training reads its texts: a first stage reads two of them for each, `auto` trains on the other parts, and
    pseudo labels take a training on each of these, and one for each round more; with "auto" one more of each part and round."""
    if not isinstance(options, FinetuneOptions):
        return options.epochs
    first, pseudo = options.contrastive, options.pseudo_labels
    once = options.epochs if first is None else options.epochs + 2 * first.epochs
    found = once
    if first is not None and first.when == "auto":
        found += (FOLDS - 1) * (once + options.epochs)
    if pseudo is not None:
        found += (FOLDS - 1 + pseudo.rounds) * once
        found += (FOLDS - 1) * pseudo.rounds * once if pseudo.when == "auto" else 0
    return found


def changes(options: TrainingOptions) -> Augment | None:
    """How texts are changed where they are trained on; None where they are not."""
    return options.augment if isinstance(options, FinetuneOptions | DistillOptions) else None


def splices(options: TrainingOptions) -> int:
    """How many new texts are made of each."""
    return options.spliced if isinstance(options, DistillOptions) else 0


def describe(facts: Mapping[str, Any]) -> Iterator[str]:
    """What a fine-tuning chose, in lines: of its facts."""
    if tried := facts.get("tried"):
        yield (
            f"the teacher's contrastive first stage is {'kept' if facts['contrastive'] else 'left out'}: on train"
            f" rows that were held out in turn the Brier score is {tried['contrastive']:.3f} with it, {tried['plain']:.3f}"
            " without"
        )
    if told := facts.get("pseudo_labels"):
        yield _describe_pseudo(told)


def _describe_pseudo(told: Mapping[str, Any]) -> str:
    """What became of the texts without labels that a teacher could learn from."""
    if told["threshold"] is None:
        return "the teacher learned from no text without a label: of held-out train rows too few of its surest answers are right"
    of, scores = f"of {told['of']} texts without a label", ""
    if tried := told.get("tried"):
        scores = (
            f": on train rows that were held out in turn the Brier score is {tried['pseudo']:.3f} with them,"
            f" {tried['plain']:.3f} without"
        )
    if not told["kept"]:
        return f"the teacher learned from none {of}{scores}"
    return f"the teacher learned from {told['texts']} {of}, of whose class it is {told['threshold']:.0%} sure or more{scores}"
