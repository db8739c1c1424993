"""LOSSES: what a student is taught by. Each compares a student's signal with its teacher's on one batch, and is a scalar.

A further loss is one function and one line: the line says which signals it needs, from which follows what `Tap` collects, and the
outputs that it makes sense for, from which follows what a recipe may ask for.

Means are over the batch's rows or real tokens, never over padding, so that a weight means the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What one model gives for a batch. A loss names the fields that it needs; a model gives no others."""

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

    rows: tuple[int, ...]
    """Which rows of the source are in it."""
    tokens: Tensor
    """input_ids, int64 [batch, sequence], padded on the right."""
    mask: Tensor
    """1 for a real token, 0 for padding [batch, sequence]."""
    targets: Tensor
    """Wanted class probabilities [batch, classes], zeros in a row whose label is not known; or the wanted ids [tokens]."""
    scored: tuple[Tensor, Tensor] | None = None
    """Of a decoder, for each wanted id the row of the batch and the position that predicts it, each int64 [tokens]."""

    def to(self, device: str) -> Batch:
        """The batch with its tensors on a device; the same tensors where they are there already."""
        rows, positions = self.scored or (None, None)
        return replace(
            self,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            targets=self.targets.to(device),
            scored=None if rows is None or positions is None else (rows.to(device), positions.to(device)),
        )


Compare = Callable[[Signal, Signal, Batch, float], "Tensor"]
"""(student, teacher, batch, temperature) -> a scalar, 0 where there is nothing left to learn."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """An entry of LOSSES: how two signals are compared, what they must hold for it, and where it makes sense."""

    compare: Compare
    needs: frozenset[str]
    """The fields of Signal that it reads. On a decoder a loss of `output` gets the logits of scored tokens, some at a time, and
    reads nothing else."""
    weights: Mapping[str, float]
    """Its weight where a recipe names no losses, for each output (logits, embedding, tokens) that it makes sense for."""
    teacher: bool = True
    """Whether it reads the teacher's signal; a run of losses that do not loads no teacher."""


def logits(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), section 2: soft targets'
    gradients scale as 1 / T^2, so the factor keeps their share when T changes.
    """
    wanted = (teacher.output / temperature).log_softmax(dim=-1)
    given = (student.output / temperature).log_softmax(dim=-1)
    return (wanted.exp() * (wanted - given)).sum(dim=-1).mean() * temperature**2


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
    for given, wanted in zip(student.hidden, teacher.hidden, strict=True):
        distance = (_direction(given) - _direction(wanted)).square().sum(dim=-1)
        total = total + (distance * batch.mask).sum() / batch.mask.sum()
    return total / max(len(student.hidden), 1)


def attention_relation(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """KL of query-query, key-key and value-value relations, summed over the three, mean over heads and real tokens.

    MiniLMv2, Wang et al. (arXiv:2012.15828), equations 5 to 9, with the last block of both and the teacher's own heads.
    """
    unseen = (batch.mask == 0)[:, None, None, :]
    total = student.output.new_zeros(())
    for given, wanted in zip(student.projections, teacher.projections, strict=True):
        logs = _relation(wanted, unseen)
        divergence = (logs.exp() * (logs - _relation(given, unseen))).sum(dim=-1)
        total = total + (divergence.mean(dim=1) * batch.mask).sum() / batch.mask.sum()
    return total


def embedding(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """1 - cosine of the embeddings, mean over rows (the cosine term of DistilBERT, arXiv:1910.01108, on whole texts)."""
    return 1 - (_direction(student.output) * _direction(teacher.output)).sum(dim=-1).mean()


def brier(student: Signal, teacher: Signal, batch: Batch, temperature: float) -> Tensor:  # noqa: ARG001
    """The Brier score (Brier 1950): the squared distance of probabilities from the wanted ones, mean over rows."""
    return (student.output.softmax(dim=-1) - batch.targets).square().sum(dim=-1).mean()


_OUTPUT, _HIDDEN, _PROJECTIONS = frozenset({"output"}), frozenset({"hidden"}), frozenset({"projections"})
_ROWS = {LOGITS.name: 1.0, EMBEDDING.name: 1.0}

LOSSES: dict[str, Loss] = {
    # Relations of a decoder's block would have to leave out what a token cannot see, and it may have fewer keys than queries.
    "attention_relation": Loss(compare=attention_relation, needs=_PROJECTIONS, weights=_ROWS),
    "embedding": Loss(compare=embedding, needs=_OUTPUT, weights={EMBEDDING.name: 1.0}),
    "hidden": Loss(compare=hidden, needs=_HIDDEN, weights=_ROWS | {TOKENS.name: 1.0}),
    "labels": Loss(compare=labels, needs=_OUTPUT, weights={LOGITS.name: 0.5, TOKENS.name: 0.5}, teacher=False),
    "logits": Loss(compare=logits, needs=_OUTPUT, weights={LOGITS.name: 0.5, TOKENS.name: 1.0}),
}

# What an early stop may look at and a recipe cannot ask for: unlike cross-entropy it does not punish a model for growing surer of
# what it gets right.
BRIER = Loss(compare=brier, needs=_OUTPUT, weights={}, teacher=False)


def _direction(vectors: Tensor) -> Tensor:
    """Vectors along the last axis, scaled to length 1."""
    return vectors * vectors.square().sum(dim=-1, keepdim=True).clamp(min=1e-24).rsqrt()


def _relation(vectors: Tensor, unseen: Tensor) -> Tensor:
    """log softmax(x x^T / sqrt(d)) over real tokens, [batch, heads, sequence, sequence]."""
    scores = vectors @ vectors.transpose(-1, -2) / vectors.shape[-1] ** 0.5
    logs: Tensor = scores.masked_fill(unseen, -1e9).log_softmax(dim=-1)
    return logs
