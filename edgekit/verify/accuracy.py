"""Paired comparisons on the verify prompts: whose answers are right, whose changed, and by how much the outputs moved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from edgekit.runtimes import scores
from edgekit.verify import gate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# How many looks at a growing set of prompts are planned as one.
Stages = Annotated[int, Ge(1), Le(20)]


@dataclass(frozen=True, kw_only=True)
class Margins:
    """The recipe's `[accuracy]` table: how much an artifact may lose, as fractions (0.01 is one point).

    student_margin and teacher_margin: accuracy against the float student and the teacher. cosine_margin and
    neighbour_margin: of embeddings against the float student, mean 1 - cosine and share of changed nearest neighbours. stages:
    how often prompts may be added to those of verify (see `gate.stage_share`).
    """

    student_margin: float = 0.01
    teacher_margin: float = 0.03
    cosine_margin: float = 0.01
    neighbour_margin: float = 0.10
    stages: Stages = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One candidate against one reference in one metric. A margin of None is shown and not judged.

    loss, bound, lo: fractions (cosine: 1 - cosine, 0..2), bound being the upper one. flips: prompts lost and gained (of
    neighbours: changed). divergence: mean KL in nats or mean cosine, whichever the output has. prompts_needed: of a fresh set,
    to prove the margin if loss and flips stay as they are.
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
    reference: Answers, candidate: Answers, truth: Sequence[str | None], *, margin: float | None, alpha: float
) -> Comparison:
    """Accuracy of candidate against reference on the labelled prompts; without any label, agreement with the reference."""
    rows = [row for row, label in enumerate(truth) if label is not None]
    labelled = bool(rows)
    if not labelled:
        rows = list(range(len(truth)))
    right = [truth[row] if labelled else reference.labels[row] for row in rows]
    before = [reference.labels[row] == label for row, label in zip(rows, right, strict=True)]
    after = [candidate.labels[row] == label for row, label in zip(rows, right, strict=True)]
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    n = len(rows)
    lo, hi = gate.paired_bounds(lost, gained, n, alpha)
    loss = (lost - gained) / max(n, 1)
    judged = None if margin is None else gate.verdict(lo, hi, margin)
    same = [a == b for a, b in zip(reference.labels, candidate.labels, strict=True)]
    return Comparison(
        reference=reference.name,
        candidate=candidate.name,
        metric="accuracy" if labelled else "agreement",
        score=sum(after) / n if labelled else None,
        reference_score=sum(before) / n if labelled else None,
        loss=loss,
        lo=lo,
        bound=hi,
        margin=margin,
        prompts=n,
        prompts_needed=gate.prompts_needed(lost, gained, n, margin, alpha)
        if judged == "not proven" and margin
        else None,
        flips={"lost": lost, "gained": gained},
        agreement=sum(same) / max(len(same), 1),
        divergence={"mean_kl": float(scores.kl(reference.outputs, candidate.outputs).mean())},
        verdict=judged,
        alpha=alpha,
    )


def compare_embeddings(
    reference: Answers, candidate: Answers, margins: Margins | None, *, alpha: float
) -> list[Comparison]:
    """Mean cosine loss and nearest neighbours of candidate against reference, each [n, width].

    A prompt's neighbour is its nearest other prompt; widths that differ (a teacher's) leave the neighbours only. Prompts are
    each other's neighbours, so their changes are not quite independent, which the exact binomial bound takes them to be.
    """
    found = []
    pairs = len(reference.outputs)
    same_width = reference.outputs.shape == candidate.outputs.shape
    cosine = scores.cosine(reference.outputs, candidate.outputs) if same_width else None
    divergence = {} if cosine is None else {"mean_cosine": float(cosine.mean())}
    agreement, changed = 1.0, 0
    if pairs > 1:
        alike = scores.nearest(reference.outputs) == scores.nearest(candidate.outputs)
        agreement, changed = float(alike.mean()), int((~alike).sum())
    shared: dict[str, Any] = {
        "reference": reference.name,
        "candidate": candidate.name,
        "prompts": pairs,
        "flips": {"changed": changed},
        "agreement": agreement,
        "divergence": divergence,
        "alpha": alpha,
        "reference_score": None,
        "prompts_needed": None,
    }
    if cosine is not None:
        losses = 1.0 - cosine
        lo, hi = gate.mean_bounds(losses, 2.0, alpha)
        loss, margin = float(losses.mean()), margins.cosine_margin if margins else None
        judged = None if margin is None else gate.verdict(lo, hi, margin)
        judgement = {"loss": loss, "lo": lo, "bound": hi, "margin": margin, "verdict": judged}
        if judged == "not proven" and margin is not None:
            judgement["prompts_needed"] = gate.prompts_needed_for_mean(loss, 2.0, margin, alpha)
        found.append(Comparison(**(shared | judgement), metric="cosine", score=1.0 - loss))
    lo, hi = gate.proportion_bounds(changed, pairs, alpha)
    loss, margin = 1.0 - agreement, margins.neighbour_margin if margins else None
    judged = None if margin is None else gate.verdict(lo, hi, margin)
    judgement = {"loss": loss, "lo": lo, "bound": hi, "margin": margin, "verdict": judged}
    return [*found, Comparison(**(shared | judgement), metric="neighbours", score=agreement)]


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
