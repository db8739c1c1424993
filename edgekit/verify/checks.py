"""Checks: each says what was measured, what the limit is, the verdict, and where that is not a pass, what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit import gate
from edgekit.evidence import Check, Comparison
from edgekit.runtimes.machine import saturates
from edgekit.verify import clusters

if TYPE_CHECKING:
    from edgekit.artifact import Parity
    from edgekit.probes.lines import Reading
    from edgekit.reference import OwnersAnswers
    from edgekit.runtimes.machine import Machine
    from edgekit.runtimes.placement import Placement
    from edgekit.target import Hardware

GENERATED = ("kl", "top1", "perplexity", "answer_length")


def check_accuracy(comparison: Comparison, looks: int, finer: Sequence[str] | None = ()) -> Check:
    """The check of a comparison that has a margin. finer: schemes of the artifact's format that have more bits than its own; None
    of a file that another tool made.
    """
    assert comparison.margin is not None
    assert comparison.verdict is not None
    return Check(
        name=f"{comparison.metric}_vs_{comparison.reference}",
        measured=comparison.score,
        limit=comparison.margin,
        loss=comparison.loss,
        bound=comparison.bound,
        interval=(comparison.lo, comparison.bound),
        looks=looks,
        verdict=comparison.verdict,
        remedy=_accuracy_remedy(comparison, finer),
        detail=comparison.reason,
    )


def check_floor(
    right: Sequence[bool], groups: clusters.Keys, at_least: float | None, alpha: float, looks: int
) -> list[Check]:
    """The check of the accuracy that the recipe asks for at least, by its exact lower bound; none where none is asked for."""
    if at_least is None:
        return []
    n = len(right)
    lo, hi = clusters.proportion_bounds(right, groups, alpha)
    remedy = None
    verdict: gate.Verdict = "pass" if lo >= at_least else "fail" if hi < at_least else "not proven"
    if not n:
        remedy = "no verify prompt has a label (or a wanted answer), so nothing says how often it is right: give some"
    elif verdict != "pass":
        seen = f"{sum(right)} of {n} prompts are right, which leaves between {lo:.1%} and {hi:.1%} possible"
        remedy = f"{seen}: train longer or take more layers, or verify on a larger fresh set; or ask for less (accuracy.at_least)"
    return [
        Check(
            name="accuracy",
            measured=sum(right) / n if n else None,
            limit=at_least,
            bound=lo,
            interval=(lo, hi),
            verdict=verdict,
            looks=looks,
            remedy=remedy,
            detail="at least",
        )
    ]


def _accuracy_remedy(comparison: Comparison, finer: Sequence[str] | None) -> str | None:
    if comparison.verdict == "pass":
        return None
    if finer is None and comparison.verdict == "fail":
        return (
            "its answers are not the checkpoint's: name the checkpoint that this file was exported from, or export it again with"
            " more bits"
        )
    if comparison.reason is not None and comparison.verdict == "not proven":
        return comparison.reason
    write = _generation_remedy if comparison.metric in GENERATED else _paired_remedy
    return _probably(comparison) + write(comparison, _more_bits(finer))


def _more_bits(finer: Sequence[str] | None) -> str:
    if finer is None:
        return "a file of more bits from the tool that made this one"
    if not finer:
        return "no scheme of this format has more bits"
    others = f" ({', '.join(finer[1:4])})" if finer[1:] else ""
    return f"a scheme of more bits: --scheme {finer[0]}{others}"


def _probably(comparison: Comparison) -> str:
    """What is seen and not proven: a loss above its limit, which chance may have made."""
    loss, limit = comparison.loss, comparison.margin
    if comparison.verdict != "not proven" or limit is None or loss is None or not loss > limit:
        return ""
    return f"probably too much: {loss:.3g} was seen, {loss / limit:.2f} x the limit, and at least {comparison.lo:.3g} is sure; "


def _paired_remedy(comparison: Comparison, more_bits: str) -> str:
    if comparison.verdict == "fail":
        if comparison.reference == "teacher":
            return (
                "the artifact loses too much against the teacher; where it holds against the float student, the student is too"
                " small or trained too little: raise student.layers or distill.epochs and run `edgekit build` again"
            )
        return (
            f"quantization costs too much: {more_bits}; or calibrate on more prompts like these; `edgekit inspect` on the"
            " artifact shows what was quantized to what"
        )
    if comparison.prompts_needed is None:
        return (
            f"{comparison.prompts} prompts leave the loss between {comparison.lo:.3g} and {comparison.bound:.3g}; verify on a"
            f" larger fresh set, or take {more_bits}"
        )
    return (
        f"{comparison.prompts} prompts are too few for this margin; a fresh verify set of about {comparison.prompts_needed}"
        f" would prove it (in four cases of five, should loss and flips stay): verify on new texts, and run `edgekit build` again"
    )


def _generation_remedy(comparison: Comparison, more_bits: str) -> str:
    if comparison.verdict == "fail":
        return (
            f"quantization moves the model too far: {more_bits}; or calibrate prompts more like these, or a larger student; then"
            " `edgekit build`"
        )
    if comparison.bound is None or not math.isfinite(comparison.bound):
        return f"{comparison.prompts} prompts bound nothing: verify on at least 20, better 100"
    return (
        f"{comparison.prompts} prompts leave it between {comparison.lo:.3g} and {comparison.bound:.3g}: verify on a larger fresh"
        f" set of prompts with wanted answers (of others a part is asked), or take {more_bits}"
    )


def named_once(found: Sequence[Check]) -> tuple[Check, ...]:
    """The checks of a report, which are read by their names. Raises AssertionError where two have the same."""
    names = [check.name for check in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"two checks of a report are named {', '.join(twice)}: name each after what it checks"
    return tuple(found)


def check_reading(parity: Parity | None, misread: str | None) -> list[Check]:
    """A failed check where the file's own tokenizer or chat template reads a text otherwise than the checkpoint's (`misread`).

    parity: what was compared; nothing is checked of a file that holds no tokenizer.
    """
    if misread is not None:
        remedy = (
            f"{misread}: an app that gives this file texts feeds the model other tokens than those that were judged here; convert"
            " the checkpoint again (`edgekit build`), or name the checkpoint that this tokenizer and template are of"
        )
        return [Check(name="tokenizer", measured="differs", limit=None, verdict="fail", remedy=remedy)]
    if parity is None:
        return []
    rendered = parity.chat.rendered if parity.chat else 0
    detail = f"{parity.texts} texts" + (f" and {rendered} conversations" if rendered else "")
    engine = parity.chat.engine if parity.chat else None
    return [
        Check(
            name="tokenizer",
            measured="as the original",
            limit=None,
            verdict="pass",
            detail=f"{detail} become the checkpoint's tokens" + (f"; the template ran in {engine}" if engine else ""),
        )
    ]


def check_device_reading(reading: Reading | None, texts: Sequence[str]) -> list[Check]:
    """Whether the device's own tokenizer gives the ids that the artifact was judged with; nothing where it has none."""
    if reading is None:
        return []
    if not reading.differ:
        detail = f"the tokenizer of apps there reads the ids that were judged, of {reading.texts} prompts"
        return [Check(name="device_tokenizer", measured="as the original", limit=None, verdict="pass", detail=detail)]
    first = texts[reading.differ[0]]
    remedy = (
        f"the tokenizer of apps there reads {len(reading.differ)} of {reading.texts} prompts otherwise, the first"
        f" {first[:60]!r}: such texts get answers that nobody judged; take a student with another tokenizer, or clean texts of"
        " such characters before they are asked"
    )
    return [Check(name="device_tokenizer", measured="differs", limit=None, verdict="fail", remedy=remedy)]


def check_as_original(compared: OwnersAnswers | None) -> list[Check]:
    """Whether the checkpoint is read as its owner reads it, as the record found; nothing of rows, which have a check of
    their own (`as_original.check_rows`)."""
    if compared is None:
        return []
    rows, answers = compared.rows, compared.answers
    same = compared.ids_equal == rows and compared.answers_equal == answers
    detail = (
        f"{compared.ids_equal} of {rows} texts have transformers' own tokens, {compared.answers_equal} of {answers} answers"
        " are its own"
    )
    remedy = (
        f"{compared.difference}: what was compared with is not what the checkpoint's owner runs; see the files of its"
        " tokenizer and its configuration for a setting that edgekit does not apply"
    )
    return [
        Check(
            name="as_original",
            measured="as the original" if same else "differs",
            limit=None,
            verdict="pass" if same else "fail",
            detail=detail,
            remedy=None if same else remedy,
        )
    ]


def check_finite(outputs_are_finite: bool) -> list[Check]:
    """A failed check where the artifact answered NaN or infinity, nothing otherwise."""
    if outputs_are_finite:
        return []
    remedy = (
        'an overflow: 16-bit floats end at 65504; export with scheme = "fp32" or "w8", then `edgekit inspect` on the'
        " artifact for its float types"
    )
    return [Check(name="finite_outputs", measured="NaN or infinite", limit="finite", verdict="fail", remedy=remedy)]


def check_plausible(impossible: Sequence[str]) -> Check:
    """Not proven where the median time beats what the machine was measured to do: then one of the two is wrong."""
    remedy = (
        "a clock, a cache or another program misled one of the measurements: close other programs and run"
        " `edgekit verify --fresh`"
    )
    return Check(
        name="plausibility",
        measured="impossible" if impossible else "possible",
        limit=None,
        verdict="not proven" if impossible else "pass",
        detail="; ".join(impossible)
        or "operations and bytes per call are within this machine's measured peak and bandwidth",
        remedy=remedy if impossible else None,
    )


def check_placement(placement: Placement) -> Check:
    """Whether the work ran where the target wants it; not proven where nobody could measure that."""
    measured = placement.measured
    verdict: gate.Verdict = "not proven" if measured is None else "pass" if measured >= placement.wanted else "fail"
    return Check(
        name=placement.check,
        measured=measured,
        limit=placement.wanted,
        verdict=verdict,
        detail=placement.detail,
        remedy=placement.remedy,
    )


def check_arithmetic(hardware: Hardware, device: Machine, share: float | None, *, exact: bool) -> Check:
    """Whether INT8 products that saturate on one of host and target, and not on the other, could change the answers.

    `share`: weight pairs of the artifact that may saturate (`arithmetic.saturating_share`); None where it has no such products.
    exact: the session asks for products that saturate nowhere (`arithmetic.is_exact`).
    """
    here, there = (
        saturates(device["arch"], device["features"]),
        saturates(hardware.arch, hardware.features),
    )
    name = "arithmetic"
    if share is None:
        detail = "no products of unsigned and signed bytes"
        return Check(name=name, measured=None, limit=None, verdict="pass", detail=detail)
    risk = f"{share:.2%} of weight pairs may exceed 16 bits"
    if exact or share == 0.0 or (here == there and here is not None):
        same = "both saturate" if here and there else "nothing can saturate" if share == 0.0 else "both are exact"
        same = "the session asks for exact sums on every CPU" if exact and (here, there) != (False, False) else same
        return Check(name=name, measured=share, limit=None, verdict="pass", detail=f"{risk}; {same}")
    if here is None or there is None:
        remedy = (
            f"{'this machine' if here is None else 'the target'} tells no CPU features, so nobody knows whether its 16-bit sums"
            " saturate: run `edgekit verify` on Linux, name the features in the target's [hardware], or set reduce_range = true"
            " in its export table and run `edgekit build`"
        )
    elif there:
        remedy = (
            "the target has no VNNI, and its 16-bit sums would saturate where this machine's do not: set reduce_range = true"
            " in the target's export table and run `edgekit build`, or `edgekit verify` on a CPU like the target's"
        )
    else:
        remedy = (
            "this machine has no VNNI: its 16-bit sums saturate where the target's are exact, so the accuracy here may be lower"
            " than the target's; run `edgekit verify` on a CPU with VNNI or on the target, or set reduce_range = true"
        )
    return Check(name=name, measured=share, limit=None, verdict="not proven", remedy=remedy, detail=risk)
