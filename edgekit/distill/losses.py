"""LOSSES: what a student is taught by. Each compares a student's signal with its teacher's on one batch, and is a scalar.

A further loss is one function and one line: the line says which signals it needs, from which follows what `Tap` collects, and the
outputs that it makes sense for, from which follows what a recipe may ask for.

Means are over the batch's rows or real tokens, never over padding, so that a weight means the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.distill import divergences, encoder_losses
from edgekit.distill.divergences import (
    Compared,
    Divergence,
    LossOptions,
    confidence,
    correct,
    interpolate,
    smooth,
)
from edgekit.distill.signals import Batch, Recorded, Signal
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS

if TYPE_CHECKING:
    from torch import Tensor

Compare = Callable[[Signal, Signal, Batch, LossOptions], "Tensor"]
"""(student, teacher, batch, options) -> a scalar, 0 where there is nothing left to learn."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """An entry of LOSSES: how two signals are compared, what they must hold for it, and where it makes sense."""

    compare: Compare
    needs: frozenset[str]
    """The fields of Signal that it reads."""
    weights: Mapping[str, float]
    """Its weight where a recipe names no losses, for each output (logits, embedding, tokens) that it makes sense for."""
    teacher: bool = True
    """Whether it reads the teacher's signal; a run of losses that do not loads no teacher."""
    divergence: Divergence | None = None
    """Of a loss of logits: what it is for each of them, with its gradient. A decoder is taught by no other loss of `output`."""
    recorded: Callable[[Tensor, Recorded, LossOptions], Compared] | None = None
    """The divergence from a teacher whose answers were recorded; None of a loss that is not linear in its probabilities."""
    any_width: bool = False
    """Whether student and teacher may have different vocabularies; else logits that only one of them has are left out."""
    pairs: bool = False
    """Whether it compares the batch's rows with each other, so that it depends on which rows come together."""
    formula: str = ""
    source: str = ""
    """What it is, and who published it: README's table."""


def logits(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), section 2: soft targets'
    gradients scale as 1 / T^2, so the factor keeps their share when T changes.
    """
    # As `divergences.forward_kl`, but for the last bits, in which the students that were trained so far would differ.
    temperature = options.temperature
    corrected = correct(teacher.output, batch.targets, options)
    wanted = (interpolate(corrected, student.output, options) / temperature).log_softmax(dim=-1)
    given = (student.output / temperature).log_softmax(dim=-1)
    values = (wanted.exp() * (wanted - given)).sum(dim=-1)
    if options.confidence:
        values = values * confidence(teacher.output, options.confidence)
    return values.mean() * temperature**2


def labels(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """Cross-entropy with the data's labels, mean over the rows that have one; of a decoder, with the data's next tokens.

    An out-of-scope row's target is uniform: outlier exposure, Hendrycks, Mazeika, Dietterich (arXiv:1812.04606), section 3.
    """
    targets = smooth(batch.targets, options.label_smoothing)
    known = targets.sum(dim=-1)
    surprise = -(targets * student.output.log_softmax(dim=-1)).sum(dim=-1)
    return surprise.sum() / known.sum().clamp(min=1.0)


def brier(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """The Brier score (Brier 1950): the squared distance of probabilities from the wanted ones, mean over rows with a label."""
    values = (student.output.softmax(dim=-1) - batch.targets).square().sum(dim=-1)
    known = batch.targets.sum(dim=-1) > 0
    return values[known].mean() if bool(known.any()) else values.sum() * 0


def compare_logits(
    loss: Loss, given: Tensor, wanted: Tensor | Recorded, targets: Tensor, options: LossOptions
) -> Compared:
    """A loss of logits for each of them: values [rows] and gradients in the student's logits [rows, width].

    given, wanted: the student's logits and the teacher's, or what was recorded of it. targets: ids [rows], or probabilities
    [rows, classes]: what a teacher's logits are corrected to, and what a loss without a teacher compares with.
    """
    assert loss.divergence is not None
    if not loss.teacher:
        return loss.divergence(given, targets, options)
    if isinstance(wanted, Recorded):
        assert loss.recorded is not None
        return loss.recorded(given, wanted, options)
    shared = min(given.shape[-1], wanted.shape[-1])
    narrow = loss.any_width or given.shape[-1] == shared
    mine = given if narrow else given[:, :shared]
    theirs = wanted if loss.any_width else wanted[:, :shared]
    # An id, and a logit, say nothing of a vocabulary that another tokenizer has.
    shown = theirs if loss.any_width else interpolate(correct(theirs, targets, options), mine, options)
    values, gradient = loss.divergence(mine, shown, options)
    if options.confidence:
        sure = confidence(theirs, options.confidence)
        values, gradient = values * sure, gradient.mul_(sure[:, None])
    if narrow:
        return values, gradient
    padded = given.new_zeros(given.shape)
    padded[:, :shared] = gradient
    return values, padded


def _of_logits(divergence: Divergence, formula: str, source: str, *, any_width: bool = False) -> Loss:
    """A divergence of logits, mean over rows or tokens, that a recipe may name and none has by default."""

    def compare(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:
        from edgekit.distill.chunked import mean_over_rows

        def each(given: Tensor) -> Compared:
            return compare_logits(loss, given, teacher.output.to(given.dtype), batch.targets, options)

        return mean_over_rows(student.output, each, len(student.output))

    loss = Loss(
        compare=compare,
        divergence=divergence,
        any_width=any_width,
        needs=_OUTPUT,
        weights=_NAMED,
        formula=formula,
        source=source,
    )
    return loss


_OUTPUT, _HIDDEN, _PROJECTIONS = frozenset({"output"}), frozenset({"hidden"}), frozenset({"projections"})
_ROWS = {LOGITS.name: 1.0, EMBEDDING.name: 1.0}
# Losses that a recipe may name, and none has by default.
_NAMED = {LOGITS.name: 0.0, TOKENS.name: 0.0}
_NAMED_STATES = {LOGITS.name: 0.0, EMBEDDING.name: 0.0, TOKENS.name: 0.0}
_NAMED_EMBEDDING = {EMBEDDING.name: 0.0}

LOSSES: dict[str, Loss] = {
    "alpha_beta": _of_logits(
        divergences.alpha_beta,
        "T² D_αβ(p ‖ q)",
        "Cichocki et al. 2011; ABKD, Wang et al. 2025",
    ),
    # Relations of a decoder's block would have to leave out what a token cannot see, and it may have fewer keys than queries.
    "attention_relation": Loss(
        compare=encoder_losses.attention_relation,
        needs=_PROJECTIONS,
        weights=_ROWS,
        formula="KL of query-query, key-key, value-value relations in the last block",
        source="MiniLMv2, arXiv:2012.15828",
    ),
    "contrastive": Loss(
        compare=encoder_losses.contrastive,
        needs=_HIDDEN,
        weights={LOGITS.name: 0.0, EMBEDDING.name: 0.0},
        pairs=True,
        formula="InfoNCE between the texts' mean vectors of student and teacher",
        source="arXiv:1807.03748, arXiv:1910.10699",
    ),
    "cosine": Loss(
        compare=encoder_losses.cosine,
        needs=_HIDDEN,
        weights=_NAMED_STATES,
        formula="1 - cos of the last block's outputs",
        source="DistilBERT, arXiv:1910.01108",
    ),
    "embedding": Loss(
        compare=encoder_losses.embedding,
        needs=_OUTPUT,
        weights={EMBEDDING.name: 1.0},
        formula="1 - cos of the embeddings",
        source="DistilBERT, arXiv:1910.01108",
    ),
    "embedding_angle": Loss(
        compare=encoder_losses.embedding_angle,
        needs=_OUTPUT,
        weights=_NAMED_EMBEDDING,
        pairs=True,
        formula="Huber of the angles between three embeddings",
        source="RKD, arXiv:1904.05068",
    ),
    "embedding_distance": Loss(
        compare=encoder_losses.embedding_distance,
        needs=_OUTPUT,
        weights=_NAMED_EMBEDDING,
        pairs=True,
        formula="Huber of the distances between embeddings, over their mean",
        source="RKD, arXiv:1904.05068",
    ),
    "hidden": Loss(
        compare=encoder_losses.hidden,
        needs=_HIDDEN,
        weights=_ROWS | {TOKENS.name: 1.0},
        formula="‖h_s/‖h_s‖ - h_t/‖h_t‖‖² of matched blocks",
        source="Patient KD, arXiv:1908.09355",
    ),
    "jensen_shannon": _of_logits(
        divergences.jensen_shannon,
        "T² (β KL(p ‖ m) + (1-β) KL(q ‖ m)), m = β p + (1-β) q",
        "GKD, arXiv:2306.13649",
    ),
    "labels": Loss(
        compare=labels,
        divergence=divergences.cross_entropy,
        needs=_OUTPUT,
        weights={LOGITS.name: 0.5, TOKENS.name: 0.5},
        teacher=False,
        formula="cross-entropy with the data's labels or next tokens, at T = 1",
        source="",
    ),
    "logit_squares": _of_logits(
        divergences.logit_squares,
        "mean of (z_s - z_t)²",
        "arXiv:2105.08919",
    ),
    "logits": Loss(
        compare=logits,
        divergence=divergences.forward_kl,
        recorded=divergences.recorded_kl,
        needs=_OUTPUT,
        weights={LOGITS.name: 0.5, TOKENS.name: 1.0},
        formula="T² KL(p ‖ q), forward",
        source="Hinton et al., arXiv:1503.02531",
    ),
    "reverse_kl": _of_logits(
        divergences.reverse_kl,
        "T² KL(q ‖ p)",
        "MiniLLM, arXiv:2306.08543",
    ),
    "skew_kl": _of_logits(
        divergences.skew_kl,
        "T² KL(p ‖ λ p + (1-λ) q)",
        "DistiLLM, arXiv:2402.03898",
    ),
    "skew_reverse_kl": _of_logits(
        divergences.skew_reverse_kl,
        "T² KL(q ‖ λ q + (1-λ) p)",
        "DistiLLM, arXiv:2402.03898",
    ),
    "supervised_contrastive": Loss(
        compare=encoder_losses.supervised_contrastive,
        needs=frozenset({"views"}),
        weights={LOGITS.name: 0.0},
        teacher=False,
        pairs=True,
        formula="InfoNCE to texts of the same class, of the pooled vector and the classifier's",
        source="SupCon, arXiv:2004.11362",
    ),
    "total_variation": _of_logits(
        divergences.total_variation,
        "T/2 Σ abs(p - q)",
        "arXiv:2307.15190",
    ),
    "uld": _of_logits(
        divergences.uld,
        "T Σ abs(p - q), both sorted: for vocabularies of different tokenizers",
        "ULD, arXiv:2402.12030",
        any_width=True,
    ),
}

# What an early stop may look at and a recipe cannot ask for: unlike cross-entropy it does not punish a model for growing surer of
# what it gets right.
BRIER = Loss(compare=brier, needs=_OUTPUT, weights={}, teacher=False)
