"""Paired comparisons on the verify prompts: whose answers are right, whose changed, and by how much the outputs moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit import gate
from edgekit.evidence import Comparison, Confusion
from edgekit.runtimes import scores
from edgekit.verify import clusters
from edgekit.verify.margins import EmbeddingMargins

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model said about the verify prompts: outputs [n, width] and, of a classifier, one label each."""

    name: str
    outputs: Floats
    labels: list[str]


def compare_labels(
    reference: Answers,
    candidate: Answers,
    truth: Sequence[str | None],
    *,
    margin: float | None,
    alpha: float,
    groups: clusters.Keys | None = None,
) -> Comparison:
    """Accuracy of candidate against reference on the labelled prompts; without any label, agreement with the reference.

    An answer that stays the same costs nothing, so the loss is at most the share of answers that differ: that is the bound
    without labels. Where fewer prompts are labelled than not, both bounds are made, each at half of alpha, and the lower counts.
    groups: of each prompt what it has in common with others, None for nothing.
    """
    pair = _Pair(reference, candidate, truth, groups or [None] * len(truth))
    comparison = _compare_right(pair, margin, alpha) if pair.labelled else _compare_same(pair, margin, alpha)
    if margin is None or comparison.lo is None or comparison.bound is None:
        return comparison
    verdict = gate.verdict(comparison.lo, comparison.bound, margin)
    blind = _blind(pair, margin, alpha) if verdict == "pass" else None
    if blind:
        return replace(comparison, verdict="not proven", reason=blind)
    needed = None
    if verdict == "not proven" and all(group is None for group in pair.groups):
        lost, won = comparison.flips.get("lost", sum(pair.differ)), comparison.flips.get("gained", 0)
        needed = gate.prompts_needed(lost, won, max(comparison.prompts, 1), margin, alpha)
    return replace(comparison, verdict=verdict, prompts_needed=needed)


class _Pair:
    """Two models' labels for the same prompts."""

    def __init__(
        self, reference: Answers, candidate: Answers, truth: Sequence[str | None], groups: clusters.Keys
    ) -> None:
        self.reference, self.candidate, self.truth, self.groups = reference, candidate, truth, groups
        self.labelled = [row for row, label in enumerate(truth) if label is not None]
        self.differ = [a != b for a, b in zip(reference.labels, candidate.labels, strict=True)]

    def is_right(self, answers: Answers) -> list[bool]:
        """Of each labelled prompt, whether it is answered right."""
        return [answers.labels[row] == self.truth[row] for row in self.labelled]

    def bounds(self, lost: Sequence[bool], won: Sequence[bool], alpha: float) -> tuple[float, float]:
        """Of the share of labelled prompts lost less those won."""
        return clusters.paired_bounds(lost, won, [self.groups[row] for row in self.labelled], alpha)


def _compare_same(pair: _Pair, margin: float | None, alpha: float) -> Comparison:
    """How often both answer alike; not judged yet."""
    n, changed = len(pair.differ), sum(pair.differ)
    hi = clusters.proportion_bounds(pair.differ, pair.groups, alpha)[1]
    return Comparison(
        reference=pair.reference.name,
        candidate=pair.candidate.name,
        metric="agreement",
        score=None,
        reference_score=None,
        loss=changed / max(n, 1),
        lo=-hi,
        bound=hi,
        margin=margin,
        prompts=n,
        prompts_needed=None,
        flips={"changed": changed},
        agreement=1.0 - changed / max(n, 1),
        divergence={"mean_kl": float(scores.kl(pair.reference.outputs, pair.candidate.outputs).mean())},
        verdict=None,
        alpha=alpha,
    )


def _compare_right(pair: _Pair, margin: float | None, alpha: float) -> Comparison:
    """How often the candidate is right and the reference too, on the labelled prompts; not judged yet."""
    before, after = pair.is_right(pair.reference), pair.is_right(pair.candidate)
    lost = [a and not b for a, b in zip(before, after, strict=True)]
    won = [b and not a for a, b in zip(before, after, strict=True)]
    lo, hi = pair.bounds(lost, won, alpha)
    if len(pair.differ) >= 2 * len(pair.labelled):
        half = pair.bounds(lost, won, alpha / 2)[1]
        hi = min(half, clusters.proportion_bounds(pair.differ, pair.groups, alpha / 2)[1])
    n = len(pair.labelled)
    return replace(
        _compare_same(pair, margin, alpha),
        metric="accuracy",
        score=sum(after) / n,
        reference_score=sum(before) / n,
        loss=(sum(lost) - sum(won)) / n,
        lo=lo,
        bound=hi,
        prompts=n,
        flips={"lost": sum(lost), "gained": sum(won)},
    )


def _blind(pair: _Pair, margin: float, alpha: float) -> str | None:
    """Why keeping the reference's answers says nothing: one label for every text does as well, as far as the prompts tell.

    With labels the reference must surely be right more often than the most frequent of them. Without, it must surely give
    other answers than its own most frequent one to more prompts than may differ: else one label for every text would pass.
    """
    reference = pair.reference
    if not pair.labelled:
        common = _most_frequent(reference.labels)
        others = [label != common for label in reference.labels]
        if clusters.proportion_bounds(others, pair.groups, alpha)[0] > margin:
            return None
        return (
            f"the {reference.name} answers {common!r} to {sum(not other for other in others)} of {len(others)} prompts: a model"
            " that always says so would pass"
        )
    truth = [str(pair.truth[row]) for row in pair.labelled]
    common = _most_frequent(truth)
    right, constant = pair.is_right(reference), [label == common for label in truth]
    won = [a and not b for a, b in zip(right, constant, strict=True)]
    lost = [b and not a for a, b in zip(right, constant, strict=True)]
    if pair.bounds(won, lost, alpha)[0] > 0.0:
        return None
    return (
        f"the {reference.name} is right on {sum(right)} of {len(truth)} prompts, and {common!r} on every prompt would be right on"
        f" {sum(constant)}: it is not proven to know more than that, so keeping its answers proves nothing"
    )


def _most_frequent(labels: Sequence[str]) -> str:
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def compare_embeddings(
    reference: Answers,
    candidate: Answers,
    margins: EmbeddingMargins | None,
    *,
    alpha: float,
    groups: clusters.Keys | None = None,
) -> list[Comparison]:
    """How many embeddings stay close, the mean cosine loss and nearest neighbours of candidate against reference [n, width].

    A prompt's neighbour is its nearest other prompt; widths that differ (a teacher's) leave the neighbours only. Prompts are
    each other's neighbours, so their changes are not quite independent, which the exact binomial bound takes them to be.
    """
    import numpy as np

    pairs = len(reference.outputs)
    groups = groups or [None] * pairs
    alike = np.ones(pairs, bool)
    if pairs > 1:
        alike = scores.nearest(reference.outputs) == scores.nearest(candidate.outputs)
    same_width = reference.outputs.shape == candidate.outputs.shape
    cosine = scores.cosine(reference.outputs, candidate.outputs) if same_width else None
    blank = Comparison(
        reference=reference.name,
        candidate=candidate.name,
        metric="cosine",
        score=None,
        reference_score=None,
        loss=None,
        lo=None,
        bound=None,
        margin=None,
        prompts=pairs,
        prompts_needed=None,
        flips={"changed": int((~alike).sum())},
        agreement=float(alike.mean()),
        divergence={} if cosine is None else {"mean_cosine": float(cosine.mean())},
        verdict=None,
        alpha=alpha,
    )
    comparisons = []
    if cosine is not None:
        losses = 1.0 - cosine
        if margins is not None:
            far = ~(losses <= margins.far_cosine)
            comparisons.append(_share(replace(blank, metric="close", margin=margins.far_share), far, groups))
        mean = clusters.mean_bounds(losses, groups, 2.0, alpha)
        comparisons.append(_mean(replace(blank, margin=margins.cosine_margin if margins else None), losses, mean))
    changed = replace(blank, metric="neighbours", margin=margins.neighbour_margin if margins else None)
    return [*comparisons, _share(changed, ~alike, groups)]


def _mean(blank: Comparison, losses: NDArray[np.floating], bounds: tuple[float, float]) -> Comparison:
    """A comparison by its mean loss, with the bounds of that."""
    loss, margin, (lo, hi) = float(losses.mean()), blank.margin, bounds
    verdict = None if margin is None else gate.verdict(lo, hi, margin)
    needed = None
    if verdict == "not proven" and margin is not None:
        needed = gate.prompts_needed_for_mean(loss, 2.0, margin, blank.alpha)
    return replace(blank, score=1.0 - loss, loss=loss, lo=lo, bound=hi, verdict=verdict, prompts_needed=needed)


def _share(blank: Comparison, changed: NDArray[np.bool_], groups: clusters.Keys) -> Comparison:
    """A comparison by the share of prompts that changed, with its exact bound."""
    lo, hi = clusters.proportion_bounds(changed, groups, blank.alpha)
    count, n, margin = int(changed.sum()), len(changed), blank.margin
    loss = count / max(n, 1)
    verdict = None if margin is None else gate.verdict(lo, hi, margin)
    needed = None
    if margin is not None and verdict == "not proven" and all(group is None for group in groups):
        needed = gate.prompts_needed(count, 0, max(n, 1), margin, blank.alpha)
    return replace(
        blank,
        score=1.0 - loss,
        loss=loss,
        lo=lo,
        bound=hi,
        flips={"changed": count},
        verdict=verdict,
        prompts_needed=needed,
    )


def scope(answers: Answers, truth: Sequence[str | None], out_of_scope: str | None) -> dict[str, float]:
    """In-scope accuracy, out-of-scope recall, and AUROC of the largest probability; {} without out-of-scope prompts."""
    import numpy as np

    outside = [row for row, label in enumerate(truth) if label is not None and label == out_of_scope]
    inside = [row for row, label in enumerate(truth) if label is not None and label != out_of_scope]
    if not outside or not inside:
        return {}
    confidence = np.exp(scores.log_softmax(answers.outputs)).max(axis=1)
    return {
        "in_scope_accuracy": sum(answers.labels[row] == truth[row] for row in inside) / len(inside),
        "out_of_scope_recall": sum(answers.labels[row] == out_of_scope for row in outside) / len(outside),
        "auroc": auroc(confidence[inside], confidence[outside]),
    }


def auroc(higher: NDArray[np.floating], lower: NDArray[np.floating]) -> float:
    """P(a > b) + P(a = b) / 2 for a of `higher` and b of `lower`: the area under the ROC curve (Hanley and McNeil, 1982)."""
    import numpy as np

    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, side="left")
    within = np.searchsorted(ordered, higher, side="right")
    return float((below + within).mean() / 2 / len(lower))


def confusion(reference: Answers, candidate: Answers, truth: Sequence[str | None]) -> list[Confusion]:
    """Mistakes (right label, answer) that the candidate makes and the reference does not, and the other way round."""
    gained: Counter[tuple[str, str]] = Counter()
    lost: Counter[tuple[str, str]] = Counter()
    for label, before, after in zip(truth, reference.labels, candidate.labels, strict=True):
        if label is None or before == after:
            continue
        if after != label:
            gained[label, after] += 1
        if before != label:
            lost[label, before] += 1
    return [
        Confusion(label=pair[0], answer=pair[1], gained=gained[pair], lost=lost[pair])
        for pair in sorted(gained.keys() | lost.keys())
    ]
