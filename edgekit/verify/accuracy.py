"""Paired comparisons on the verify prompts: whose answers are right, whose changed, and by how much the outputs moved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgekit import gate
from edgekit.runtimes import scores
from edgekit.verify import clusters
from edgekit.verify.margins import EmbeddingMargins

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One candidate against one reference in one metric. A margin of None is shown and not judged.

    loss, bound, lo: fractions (cosine: 1 - cosine, 0..2), bound being the upper one. flips: prompts lost and gained (of
    neighbours: changed). divergence: mean KL in nats or mean cosine, whichever the output has. prompts_needed: of a fresh set,
    to prove the margin if loss and flips stay as they are. reason: why nothing can be proven, where that is not chance's doing.
    """

    reference: str
    candidate: str
    metric: str
    score: float | None
    reference_score: float | None
    loss: float
    lo: float
    bound: float
    margin: float | None
    prompts: int
    prompts_needed: int | None
    flips: Mapping[str, int]
    agreement: float
    divergence: Mapping[str, float]
    verdict: gate.Verdict | None
    alpha: float = field(default=gate.ALPHA)
    reason: str | None = None

    def facts(self) -> dict[str, Any]:
        """As report.json has it: JSON has no infinity, so a bound that is none is null there."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


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
    groups = groups or [None] * len(truth)
    rows = [row for row, label in enumerate(truth) if label is not None]
    differ = [a != b for a, b in zip(reference.labels, candidate.labels, strict=True)]
    shared: dict[str, Any] = {
        "reference": reference.name,
        "candidate": candidate.name,
        "margin": margin,
        "agreement": 1.0 - sum(differ) / max(len(differ), 1),
        "divergence": {"mean_kl": float(scores.kl(reference.outputs, candidate.outputs).mean())},
        "alpha": alpha,
    }
    if rows:
        shared |= _paired(reference, candidate, truth, rows, groups, alpha)
        if len(differ) >= 2 * len(rows):
            half = _paired(reference, candidate, truth, rows, groups, alpha / 2)["bound"]
            shared["bound"] = min(half, clusters.proportion_bounds(differ, groups, alpha / 2)[1])
    else:
        hi, n = clusters.proportion_bounds(differ, groups, alpha)[1], len(differ)
        shared |= {"metric": "agreement", "score": None, "reference_score": None, "prompts": n}
        shared |= {"loss": sum(differ) / max(n, 1), "lo": -hi, "bound": hi, "flips": {"changed": sum(differ)}}
    found = Comparison(**shared, prompts_needed=None, verdict=None)
    if margin is None:
        return found
    verdict = gate.verdict(found.lo, found.bound, margin)
    blind = _blind(reference, truth, rows, groups, margin, alpha) if verdict == "pass" else None
    if blind:
        return replace(found, verdict="not proven", reason=blind)
    needed = None
    if verdict == "not proven" and all(group is None for group in groups):
        lost, won = found.flips.get("lost", sum(differ)), found.flips.get("gained", 0)
        needed = gate.prompts_needed(lost, won, max(found.prompts, 1), margin, alpha)
    return replace(found, verdict=verdict, prompts_needed=needed)


def _paired(
    reference: Answers,
    candidate: Answers,
    truth: Sequence[str | None],
    rows: Sequence[int],
    groups: clusters.Keys,
    alpha: float,
) -> dict[str, Any]:
    """Score, loss, bounds and flips on the labelled rows."""
    before, after = ([told.labels[row] == truth[row] for row in rows] for told in (reference, candidate))
    lost = [a and not b for a, b in zip(before, after, strict=True)]
    won = [b and not a for a, b in zip(before, after, strict=True)]
    lo, hi = clusters.paired_bounds(lost, won, [groups[row] for row in rows], alpha)
    n = len(rows)
    return {
        "metric": "accuracy",
        "score": sum(after) / n,
        "reference_score": sum(before) / n,
        "prompts": n,
        "loss": (sum(lost) - sum(won)) / n,
        "lo": lo,
        "bound": hi,
        "flips": {"lost": sum(lost), "gained": sum(won)},
    }


def _blind(
    reference: Answers,
    truth: Sequence[str | None],
    rows: Sequence[int],
    groups: clusters.Keys,
    margin: float,
    alpha: float,
) -> str | None:
    """Why keeping the reference's answers says nothing: one label for every text does as well, as far as the prompts tell.

    With labels the reference must surely be right more often than the most frequent of them. Without, it must surely give
    other answers than its own most frequent one to more prompts than may differ: else one label for every text would pass.
    """
    if not rows:
        common = _most_frequent(reference.labels)
        others = [label != common for label in reference.labels]
        if clusters.proportion_bounds(others, groups, alpha)[0] > margin:
            return None
        return (
            f"the {reference.name} answers {common!r} to {sum(not other for other in others)} of {len(others)} prompts: a model"
            " that always says so would pass"
        )
    common = _most_frequent([str(truth[row]) for row in rows])
    right = [reference.labels[row] == truth[row] for row in rows]
    constant = [truth[row] == common for row in rows]
    won = [a and not b for a, b in zip(right, constant, strict=True)]
    lost = [b and not a for a, b in zip(right, constant, strict=True)]
    if clusters.paired_bounds(won, lost, [groups[row] for row in rows], alpha)[0] > 0.0:
        return None
    return (
        f"the {reference.name} is right on {sum(right)} of {len(rows)} prompts, and {common!r} on every prompt would be right on"
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

    found = []
    pairs = len(reference.outputs)
    groups = groups or [None] * pairs
    same_width = reference.outputs.shape == candidate.outputs.shape
    cosine = scores.cosine(reference.outputs, candidate.outputs) if same_width else None
    divergence = {} if cosine is None else {"mean_cosine": float(cosine.mean())}
    alike = np.ones(pairs, bool)
    if pairs > 1:
        alike = scores.nearest(reference.outputs) == scores.nearest(candidate.outputs)
    shared: dict[str, Any] = {
        "reference": reference.name,
        "candidate": candidate.name,
        "prompts": pairs,
        "flips": {"changed": int((~alike).sum())},
        "agreement": float(alike.mean()),
        "divergence": divergence,
        "alpha": alpha,
        "reference_score": None,
        "prompts_needed": None,
    }
    if cosine is not None:
        losses = 1.0 - cosine
        if margins is not None:
            far = ~(losses <= margins.far_cosine)
            found.append(_share(shared, "close", far, groups, margins.far_share))
        lo, hi = clusters.mean_bounds(losses, groups, 2.0, alpha)
        loss, margin = float(losses.mean()), margins.cosine_margin if margins else None
        judged = None if margin is None else gate.verdict(lo, hi, margin)
        judgement = {"loss": loss, "lo": lo, "bound": hi, "margin": margin, "verdict": judged}
        if judged == "not proven" and margin is not None:
            judgement["prompts_needed"] = gate.prompts_needed_for_mean(loss, 2.0, margin, alpha)
        found.append(Comparison(**(shared | judgement), metric="cosine", score=1.0 - loss))
    margin = margins.neighbour_margin if margins else None
    return [*found, _share(shared, "neighbours", ~alike, groups, margin)]


def _share(
    shared: Mapping[str, Any],
    metric: str,
    changed: NDArray[np.bool_],
    groups: clusters.Keys,
    margin: float | None,
) -> Comparison:
    """A comparison by the share of prompts that changed, with its exact bound."""
    lo, hi = clusters.proportion_bounds(changed, groups, shared["alpha"])
    count, n = int(changed.sum()), len(changed)
    told: dict[str, Any] = dict(shared) | {
        "flips": {"changed": count},
        "loss": count / max(n, 1),
        "lo": lo,
        "bound": hi,
    }
    told["verdict"] = None if margin is None else gate.verdict(lo, hi, margin)
    if margin is not None and told["verdict"] == "not proven" and all(group is None for group in groups):
        told["prompts_needed"] = gate.prompts_needed(count, 0, max(n, 1), margin, shared["alpha"])
    return Comparison(**told, metric=metric, score=1.0 - told["loss"], margin=margin)


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


def confusion(reference: Answers, candidate: Answers, truth: Sequence[str | None]) -> list[dict[str, Any]]:
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
        {"from": pair[0], "to": pair[1], "gained": gained[pair], "lost": lost[pair]}
        for pair in sorted(gained.keys() | lost.keys())
    ]
