"""LOSSES: what a student is taught by. Each compares a student's signal with its teacher's on one batch, and is a scalar.

Means are over the batch's rows or real tokens, never over padding, so that a weight means the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What one model says about a batch."""

    output: Tensor
    """Logits or embeddings [batch, width]; of a decoder the last hidden states [batch, sequence, channels], or the logits of
    the scored tokens [tokens, vocabulary]."""
    hidden: tuple[Tensor, ...] = ()
    """Outputs of matched blocks, each [batch, sequence, channels]."""
    projections: tuple[Tensor, ...] = ()
    """Query, key and value of the last block, each [batch, heads, sequence, channels per head]."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is known of a batch without any model."""

    mask: Tensor
    """1 for a real token, 0 for padding [batch, sequence]."""
    targets: Tensor
    """Wanted class probabilities [batch, classes], zeros in a row whose label is not known; or the wanted ids [tokens]."""


def logits(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), section 2: soft targets'
    gradients scale as 1 / T^2, so the factor keeps their share when T changes.
    """
    wanted = (teacher.output / temperature).log_softmax(dim=-1)
    said = (student.output / temperature).log_softmax(dim=-1)
    return (wanted.exp() * (wanted - said)).sum(dim=-1).mean() * temperature**2


def labels(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """Cross-entropy with the data's labels, mean over the rows that have one; of a decoder, with the data's next tokens.

    An out-of-scope row's target is uniform: outlier exposure, Hendrycks, Mazeika, Dietterich (arXiv:1812.04606), section 3.
    """
    if not batch.targets.is_floating_point():
        return -student.output.log_softmax(dim=-1).gather(-1, batch.targets[:, None]).mean()
    known = batch.targets.sum(dim=-1)
    surprise = -(batch.targets * student.output.log_softmax(dim=-1)).sum(dim=-1)
    return surprise.sum() / known.sum().clamp(min=1.0)


def hidden(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """Squared distance of matched blocks' outputs, each token's vector scaled to length 1; mean over blocks and tokens.

    Patient knowledge distillation, Sun et al. (arXiv:1908.09355), equation 7, here for every token and not the first only.
    """
    total = student.output.new_zeros(())
    for said, wanted in zip(student.hidden, teacher.hidden, strict=True):
        apart = (_direction(said) - _direction(wanted)).square().sum(dim=-1)
        total = total + (apart * batch.mask).sum() / batch.mask.sum()
    return total / max(len(student.hidden), 1)


def attention_relation(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """KL of query-query, key-key and value-value relations, summed over the three, mean over heads and real tokens.

    MiniLMv2, Wang et al. (arXiv:2012.15828), equations 5 to 9, with the last block of both and the teacher's own heads.
    """
    unseen = (batch.mask == 0)[:, None, None, :]
    total = student.output.new_zeros(())
    for said, wanted in zip(student.projections, teacher.projections, strict=True):
        shown = _relation(wanted, unseen)
        apart = (shown.exp() * (shown - _relation(said, unseen))).sum(dim=-1)
        total = total + (apart.mean(dim=1) * batch.mask).sum() / batch.mask.sum()
    return total


def embedding(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """1 - cosine of the embeddings, mean over rows (the cosine term of DistilBERT, arXiv:1910.01108, on whole texts)."""
    return 1 - (_direction(student.output) * _direction(teacher.output)).sum(dim=-1).mean()


Loss = Callable[[Signal, Signal, Batch, float], "Tensor"]

LOSSES: dict[str, Loss] = {
    "attention_relation": attention_relation,
    "embedding": embedding,
    "hidden": hidden,
    "labels": labels,
    "logits": logits,
}


def _direction(vectors: Tensor) -> Tensor:
    """Vectors along the last axis, scaled to length 1."""
    return vectors * vectors.square().sum(dim=-1, keepdim=True).clamp(min=1e-24).rsqrt()


def _relation(vectors: Tensor, unseen: Tensor) -> Tensor:
    """log softmax(x x^T / sqrt(d)) over real tokens, [batch, heads, sequence, sequence]."""
    scores = vectors @ vectors.transpose(-1, -2) / vectors.shape[-1] ** 0.5
    logs: Tensor = scores.masked_fill(unseen, -1e9).log_softmax(dim=-1)
    return logs
