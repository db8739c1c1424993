"""What a training takes, before it is begun."""

from __future__ import annotations

from edgekit.cost import Figure, Size, TrainingCost
from edgekit.distill.options import SIGNAL_BYTES

_OPERATIONS = (
    "2 a weight outside the embedding and token forward, 4 backward (Kaplan et al. 2020, arXiv:2001.08361, 2.1)"
)
_MEMORY = "weights, gradients, AdamW's two moments, the best epoch's weights; a teacher's weights and what it says"


def training_cost(
    made: Size,
    *,
    tokens: float,
    epochs: int,
    teacher: Size | None = None,
    projections: int = 0,
    anew: bool = False,
    writes: float = 0.0,
) -> TrainingCost:
    """What training a model takes: `tokens` in each of so many epochs, taught by a teacher, or by labels and answers alone.

    projections: how many of the last block's are taught, beside the outputs of as many blocks as the student has. What the
    teacher says of all texts is kept where it is not too much (`SIGNAL_BYTES`); else, or if `anew`, it answers each batch anew.
    writes: in which share of the steps the student writes the tokens itself.
    """
    operations, memory = 6 * made.core * epochs * tokens, 5 * 4.0 * made.weights
    if teacher is not None:
        signals = 4 * (made.layers + projections) * teacher.hidden * tokens
        kept = signals if signals <= SIGNAL_BYTES and not anew else 0.0
        operations += 2 * made.core * epochs * tokens * writes
        operations += 2 * teacher.core * (1 if kept else epochs) * tokens
        memory += 4.0 * teacher.weights + kept
    return TrainingCost(
        operations=Figure(value=round(operations), source=_OPERATIONS),
        memory=Figure(value=round(memory), source=_MEMORY),
    )
