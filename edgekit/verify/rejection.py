"""Texts that belong to no class: whether enough of them are rejected, and what the calibrate prompts can promise of that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit import gate
from edgekit.artifact import Contentless
from edgekit.evidence import Check
from edgekit.prompts import PromptSet
from edgekit.recipe import Rejection
from edgekit.tasks import row_task


def check_rejection(
    labels: Sequence[str],
    truth: Sequence[str | None],
    out_of_scope: str | None,
    rejection: Rejection,
    contentless: Contentless | None,
    look: gate.Look,
) -> list[Check]:
    """The checks of the artifact's answers to the verify prompts, whose right labels are `truth`; [] without such a label.

    contentless: what the export says of texts that say nothing.
    """
    if out_of_scope is None or not labels:
        return []
    outside = [row for row, label in enumerate(truth) if label == out_of_scope]
    rejected = sum(labels[row] == out_of_scope for row in outside)
    judged = [] if rejection.recall is None else [_check_recall(rejected, len(outside), rejection.recall, look)]
    return judged if contentless is None else [*judged, _check_contentless(contentless)]


def _check_recall(rejected: int, outside: int, least: float, look: gate.Look) -> Check:
    """Whether at least a share `least` of the texts of no class is rejected, by exact binomial bounds on the verify prompts."""
    lo, hi = gate.proportion_bounds(rejected, outside, look.alpha)
    verdict: gate.Verdict = "pass" if lo >= least else "fail" if hi < least else "not proven"
    remedy = None
    if verdict != "pass":
        remedy = (
            f"{rejected} of {outside} verify prompts of no class were rejected, at least {least:.0%} must be (rejection.recall):"
            " give calibrate and train more texts of no class, or verify on more of them"
        )
    return Check(
        name="out_of_scope_recall",
        measured=rejected / max(outside, 1),
        limit=least,
        interval=(lo, hi),
        looks=look.index,
        verdict=verdict,
        remedy=remedy,
    )


def _check_contentless(found: Contentless) -> Check:
    accepted, count = found.accepted, found.asked
    shown = ", ".join(f"{text!r} as {label}" for text, label in list(accepted.items())[:3])
    remedy = (
        "texts that say nothing get a class: fine-tune the teacher here ([teacher.finetune] teaches them as no class), or"
        " reject more (rejection.recall)"
    )
    return Check(
        name="contentless",
        measured=f"{count - len(accepted)} of {count} rejected",
        limit="all",
        verdict="not proven" if accepted else "pass",
        detail=f"accepted: {shown}" if accepted else None,
        remedy=remedy if accepted else None,
    )


def rejection_notes(
    reference: Path,
    prompts: Path,
    task: str,
    classes: Sequence[str],
    truth: Sequence[str | None],
    out_of_scope: str | None,
    rejection: Rejection,
) -> list[str]:
    """What the calibrate prompts can promise of the threshold, and whether the verify prompts have another mix.

    reference, prompts: folders of record and prompts; truth: the right labels of the verify prompts.
    """
    import numpy as np

    kind, rows = row_task(task), PromptSet(folder=prompts).split("calibrate")
    calibrated = [row.label for row in rows]
    outside = [index for index, label in enumerate(calibrated) if label == out_of_scope]
    if out_of_scope is None or out_of_scope not in truth or not outside:
        return []
    with np.load(reference / "reference.npz", allow_pickle=False) as arrays:
        outputs = arrays["student_calibrate"]
    settings = kind.fit(outputs, calibrated, classes, out_of_scope, rejection)
    answers = kind.answer(outputs, settings, classes, [row.text for row in rows])
    rejected = sum(answers[index] == out_of_scope for index in outside)
    lo, hi = gate.proportion_bounds(rejected, len(outside))
    promise = (
        f"the out-of-scope threshold was fitted on {len(outside)} calibrate prompts of no class; the float student rejects"
        f" {rejected} of them, so its recall on such texts is {lo:.0%} at least and {hi:.0%} at most (each at 95 %)"
    )
    shares = {"calibrate": len(outside) / len(calibrated), "verify": list(truth).count(out_of_scope) / len(truth)}
    if rejection.share is not None or 0.5 <= shares["calibrate"] / shares["verify"] <= 2.0:
        return [promise]
    mix = (
        f"of no class are {shares['calibrate']:.1%} of the calibrate prompts and {shares['verify']:.1%} of the verify"
        " prompts, and the threshold was fitted for the former: say in the recipe how many there are in use (rejection.share)"
        " or how many must be rejected (rejection.recall)"
    )
    return [promise, mix]
