"""The same artifact on the same prompts, on the target and on this machine: does the target compute what was built?

Both are held against the float student, prompt by prompt. Engines add up in other orders on other CPUs, and a rounding that falls
to the other side moves an answer as far as quantization itself does, here closer to the student and there away from it. A kernel
that computes something else moves all answers away. So the figure is the target's mean error against the student, by this
machine's; and what could be the cause is looked for where that is beyond noise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from edgekit import gate
from edgekit.devices import LocalDevice
from edgekit.errors import DeviceFailed
from edgekit.evidence import Check, OnHost, finite
from edgekit.probes import PROBES, Question
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.machine import saturates
from edgekit.runtimes.onnxruntime.library import EXACT_SUMS
from edgekit.verify import clusters
from edgekit.verify.arithmetic import is_exact
from edgekit.verify.causes import CAUSES, UNSPECIFIC, Cause, Evidence, find_cause
from edgekit.verify.run import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.request import Arrays, Request, Settings, Timing

    Floats = NDArray[np.float64]

NAME = "as_on_host"
# The target's error may be so much more than this machine's, of a squared distance or a KL divergence (12 % of a distance):
# rounding leaves it near 1, saturation makes it many times as large.
MORE = 0.25
# An error below this, as a share of the outputs' own size, is none: half precision rounds by 2^-11 of a number.
_FINE = 1e-3
# Nats per token: what float16 alone costs (1.6e-5 between x86 and ARM) is far below, what 8 bits cost above.
_FINE_KL = 1e-3
# Answers, not times: one call of each kind.
ROWS_ONLY: Timing = {"warmup": 0, "repeats": 1, "least": 1, "seconds": 0.0}
TOKENS_ONLY: Timing = {"prompts": (8,), "new": 1, "repeats": 1, "seconds": 0.0, "sweep": False}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Errors against the float student of each prompt, there and here, and how far the answers are apart.

    fine: what is no error; groups: what prompts have in common; unit: what an error is.
    """

    there: Floats
    here: Floats
    apart: Floats
    fine: float
    groups: Sequence[str | None]
    unit: str


@dataclass(frozen=True, kw_only=True)
class HostAnswers:
    """What the artifact answers on this machine, whose CPU that is, and whether its products of bytes are exact."""

    arrays: Arrays
    cpu: str
    exact: bool


def answer_here(
    run: Run, question: Question, timing: Timing, entries: Mapping[str, str] | None = None
) -> HostAnswers | str:
    """What the artifact answers on this machine, with exact sums where that can be; why not, where it does not run here.

    timing: what is timed, less than for a verdict. entries: of onnxruntime's session configuration, beside the artifact's.
    """
    package = RUNTIMES[run.runtime].PACKAGE
    if importlib.util.find_spec(package.module) is None:
        return f"{package.name} is not installed on this machine"
    why = ""
    with LocalDevice({}) as device:
        facts = dict(device.facts())
        for settings in _settings(run, facts, entries or {}):
            options = cast("Settings", {**question.request["options"], **settings})
            request: Request = {
                **question.request,
                "options": options,
                "timing": {**question.request["timing"], **timing},
            }
            try:
                found = PROBES[device.PROBE].ask(device, replace(question, request=request))
            except DeviceFailed as failed:
                why = failed.message
                continue
            # llama.cpp multiplies absolute values, of which no pair exceeds 16 bits (ggml-cpu, mul_sum_i8_pairs_float).
            exact = run.runtime != "onnxruntime" or not _may_saturate(facts) or is_exact(options)
            return HostAnswers(arrays=found.arrays, cpu=str(facts["cpu"]), exact=exact)
    return why


def _settings(run: Run, facts: Mapping[str, object], entries: Mapping[str, str]) -> list[dict[str, object]]:
    """Options with which this machine multiplies bytes exactly, then, where the engine does not load the file so, without."""
    if run.runtime != "onnxruntime":
        return [{}]
    own = run.options.get("config_entries")
    asked = {**(own if isinstance(own, dict) else {}), **entries}
    plain: list[dict[str, object]] = [{"config_entries": asked}]
    return [{"config_entries": {**asked, **EXACT_SUMS}}, *plain] if _may_saturate(facts) else plain


def _may_saturate(facts: Mapping[str, object]) -> bool:
    features = facts["features"]
    return saturates(str(facts["arch"]), list(features) if isinstance(features, list) else []) is not False


def rows_pair(there: NDArray[Any], here: NDArray[Any], student: NDArray[Any], groups: Sequence[str | None]) -> Pair:
    """Of answers [n, width]: squared distances from the student's, and between the two."""
    import numpy as np

    target, own, wanted = (
        np.nan_to_num(np.asarray(array, np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
        for array in (there, here, student)
    )
    size = float((wanted**2).sum(axis=1).mean())
    distances = [((one - other) ** 2).sum(axis=1) for one, other in ((target, wanted), (own, wanted), (target, own))]
    return Pair(
        there=distances[0],
        here=distances[1],
        apart=distances[2],
        fine=max(_FINE**2 * size, 1e-30),
        groups=groups,
        unit="squared distance",
    )


def tokens_pair(there: Arrays, here: Arrays, prompts: NDArray[Any], groups: Sequence[str | None]) -> Pair:
    """Of a decoder: mean KL divergences of the scored tokens; prompts: of each token, which one it belongs to."""
    import numpy as np

    counts = np.maximum(np.bincount(prompts, minlength=len(groups)), 1)

    def mean(values: NDArray[Any]) -> Floats:
        known = np.nan_to_num(values.astype(np.float64), nan=1e30, posinf=1e30)
        return np.asarray(np.bincount(prompts, weights=known, minlength=len(groups)) / counts, np.float64)

    moved = np.abs(there["nll"].astype(np.float64) - here["nll"].astype(np.float64))[: len(prompts)]
    return Pair(
        there=mean(there["student_kl"]),
        here=mean(here["student_kl"]),
        apart=mean(moved),
        fine=_FINE_KL,
        groups=groups,
        unit="KL divergence",
    )


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A comparison with this machine for a report: nothing of a device that is this machine."""

    found: OnHost | None = None
    checks: Sequence[Check] = ()
    notes: Sequence[str] = ()


def beside_rows(
    run: Run,
    question: Question,
    outputs: NDArray[np.float32],
    student: NDArray[Any],
    prompts: Sequence[Arrays],
    groups: Sequence[str | None],
) -> Beside:
    """How the device's answers [n, width] compare with this machine's; question: what the device was asked."""
    if not run.device.REMOTE:
        return Beside()
    here = answer_here(run, question, ROWS_ONLY)
    if isinstance(here, str):
        return _untold(here)

    def again(entries: Mapping[str, str]) -> NDArray[Any] | None:
        told = answer_here(run, question, ROWS_ONLY, entries)
        return None if isinstance(told, str) else told.arrays["outputs"]

    pair = rows_pair(outputs, here.arrays["outputs"], student, groups)
    known = Evidence(file=run.file, prompts=prompts, there=outputs, here=here.arrays["outputs"], again=again)
    return _told(compare(pair, run.inputs.look.alpha, partial(find_cause, known), here))


def beside_tokens(
    run: Run, question: Question, arrays: Arrays, passages: NDArray[Any], groups: Sequence[str | None]
) -> Beside:
    """The same of a decoder's likelihoods; passages: of each scored token, which passage it belongs to, and their groups."""
    if not run.device.REMOTE:
        return Beside()
    here = answer_here(run, question, TOKENS_ONLY)
    if isinstance(here, str):
        return _untold(here)
    pair = tokens_pair(arrays, here.arrays, passages, groups)
    there, own = (array["nll"][: len(passages)] for array in (arrays, here.arrays))
    known = Evidence(file=run.file, prompts=(), there=there, here=own, again=lambda _entries: None)
    return _told(compare(pair, run.inputs.look.alpha, partial(find_cause, known), here))


def _untold(why: str) -> Beside:
    return Beside(notes=[f"the device's answers were not compared with this machine's: {why}"])


def _told(found: OnHost) -> Beside:
    return Beside(found=found, checks=[check(found)])


def compare(pair: Pair, alpha: float, cause: Callable[[NDArray[np.bool_]], Cause], here: HostAnswers) -> OnHost:
    """How the target's errors compare with this machine's. cause: what made these prompts differ."""
    import numpy as np

    together = clusters.indices(pair.groups)
    more_errors, errors = (
        np.bincount(together, weights=values).astype(np.float64)
        for values in (pair.there - pair.here, pair.here + pair.fine)
    )
    moved = pair.apart > pair.fine
    if moved.any():
        more, lo, hi = gate.ratio_bounds(more_errors, errors, alpha)
    else:
        more = lo = hi = 0.0
    verdict = gate.verdict(lo, hi, MORE)
    differs = verdict != "pass" or hi < -MORE
    found = cause(moved) if differs and moved.any() else Cause()
    if verdict != "fail" and found.name in UNSPECIFIC:
        # What is left when nothing else explains a difference is said of one that is proven, not of what may be rounding.
        found = replace(found, name=None)
    return OnHost(
        cpu=here.cpu,
        exact=here.exact,
        unit=pair.unit,
        ratio=finite(1.0 + more),
        interval=(finite(1.0 + lo), finite(1.0 + hi)),
        prompts=len(pair.there),
        moved=int(moved.sum()),
        predicted=found.predicted,
        recall=found.recall,
        precision=found.precision,
        diagnosis=found.name,
        verdict=verdict,
    )


def check(found: OnHost) -> Check:
    """The check of a comparison with this machine."""
    by = "" if found.predicted is None else f" ({found.predicted} of them predicted from the weights and activations)"
    exact = "" if found.exact else ", whose own products of bytes saturate"
    detail = (
        f"mean {found.unit} from the float student, by that on {found.cpu}{exact}; {found.moved} of {found.prompts} prompts are"
        f" answered otherwise{by}"
    )
    remedy = None
    if found.verdict != "pass":
        remedy = CAUSES[found.diagnosis] if found.diagnosis else "nothing explains it yet"
    if found.verdict == "not proven":
        remedy = f"too few prompts to tell it from rounding; verify on 100 or more. If it is none: {remedy}"
    return Check(
        name=NAME,
        measured=found.ratio,
        limit=1.0 + MORE,
        bound=found.interval[1],
        interval=found.interval,
        verdict=found.verdict,
        remedy=remedy,
        detail=detail,
    )
