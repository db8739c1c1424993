"""Checks of the limits that a target's budget states: times, rates, memory and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit import gate
from edgekit.evidence import Check
from edgekit.verify import latency

if TYPE_CHECKING:
    from edgekit.target import Budget
    from edgekit.verify.measurements import Measurements

# Processes that differ by more disagree.
APART = 1.5


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What bears on the measured times besides the artifact.

    foreign: why this machine may not vouch for the target; impossible: which times cannot be; disturbed: what kept the machine
    busy or slow; scales: what a lower and an upper bound are multiplied with (`hardware.scales`).
    """

    foreign: Sequence[str] = ()
    impossible: Sequence[str] = ()
    disturbed: Sequence[str] = ()
    scales: tuple[float, float] = (1.0, 1.0)


def check_budget(budget: Budget, measured: Measurements, size: int, conditions: Conditions) -> list[Check]:
    """The checks of the limits that the budget states."""
    checks = check_times(budget, measured, conditions)
    if budget.memory_mb is not None:
        checks.append(_check_memory(budget.memory_mb, measured.peak_mb, conditions.foreign))
    if budget.bytes is not None:
        checks.append(_check_bytes(budget.bytes, size))
    return checks


def check_times(budget: Budget, measured: Measurements, conditions: Conditions) -> list[Check]:
    """The checks of the limits of speed."""
    checks = [_check_time(key, q, getattr(budget, key), measured, conditions) for key, q in budget.quantiles.items()]
    if budget.ttft_ms is not None and measured.generation is not None:
        processes = tuple(replace(process, times=process.first) for process in measured.processes)
        earlier = tuple(replace(process, times=process.first) for process in measured.earlier)
        shape = replace(measured.shape, sequence=measured.real_lengths[0])
        first = replace(measured, processes=processes, earlier=earlier, shape=shape)
        checks.append(_check_time("ttft_ms", 0.5, budget.ttft_ms, first, conditions))
    if budget.tokens_per_second is not None and measured.generation is not None:
        checks.append(_check_rate(budget.tokens_per_second, measured, conditions))
    return checks


def _check_bytes(limit: int, size: int) -> Check:
    remedy = (
        f"the artifact is {size / limit:.2f} x its limit: a smaller scheme (int8, w4) in the target's export table,"
        " or fewer layers (student.layers); `edgekit inspect` on the artifact shows which tensors are the largest"
    )
    fits = size <= limit
    return Check(
        name="bytes",
        measured=size,
        limit=limit,
        verdict="pass" if fits else "fail",
        remedy=None if fits else remedy,
    )


def _check_time(name: str, q: float, limit: float, measured: Measurements, conditions: Conditions) -> Check:
    """A time's bounds over all processes that timed this artifact here, moved by how fast this machine is for the target."""
    times = [process.times for process in (*measured.processes, *measured.earlier)]
    levels = [latency.level(own, q) for own in times]
    time = latency.centre(levels)
    alpha = latency.alpha_at(len(measured.processes), measured.planned, measured.measurement)
    lo, hi = latency.certified(times, q, alpha)
    if lo is not None and hi is not None:
        lo, hi = lo * conditions.scales[0], hi * conditions.scales[1]
    verdict: gate.Verdict = "not proven"
    remedy: str | None = None
    if conditions.foreign:
        remedy = _foreign_remedy(conditions.foreign)
    elif conditions.impossible:
        remedy = "the times are not plausible (see that check); measure again: `edgekit verify --fresh`"
    elif conditions.disturbed:
        remedy = (
            f"the machine was busy or slowed ({'; '.join(conditions.disturbed)}): that is not the artifact's time; close other"
            " programs and measure again: `edgekit verify --fresh`"
        )
    elif hi is not None and hi <= limit:
        verdict = "pass"
    elif lo is not None and lo > limit:
        verdict = "fail"
        remedy = (
            f"{time:.3g} ms, {time / limit:.2f} x the limit, at {_shape(measured)}: fewer layers (student.layers), a shorter"
            " budget.sequence if texts are shorter, a faster scheme, or other runtime threads; then `edgekit build`"
        )
    else:
        remedy = _open_remedy(levels, hi, limit, len(measured.processes) >= measured.planned)
    detail = _processes(levels, measured.measurement, conditions.scales)
    return Check(
        name=name,
        measured=time,
        limit=limit,
        bound=hi,
        interval=(lo, hi),
        looks=measured.measurement,
        verdict=verdict,
        remedy=remedy,
        detail=detail,
    )


def _processes(levels: Sequence[float], measurement: int, scales: tuple[float, float]) -> str:
    """How many processes a time is of, and how far they lie apart."""
    detail = f"{len(levels)} processes" if len(levels) > 1 else "one process"
    if measurement > 1:
        detail += f" of {measurement} measurements"
    if len(levels) > 1:
        detail += f", {min(levels):.3g} to {max(levels):.3g} ms"
    if scales[1] > 1.005:
        detail += f"; bound x {scales[1]:.2f}, this machine's speed by the target's"
    return detail


def _open_remedy(levels: Sequence[float], hi: float | None, limit: float, ended: bool) -> str:
    """ended: whether all the processes that were planned have timed it."""
    if hi is None:
        few = f"a bound needs at least {latency.FEWEST}" if len(levels) < latency.FEWEST else "their calls are too few"
        return f"{len(levels)} processes: {few}; measure again: `edgekit verify --fresh`"
    if min(levels) * APART < max(levels):
        why = f"the processes disagree ({min(levels):.3g} to {max(levels):.3g} ms): something slows some of them"
    else:
        why = f"{len(levels)} processes leave up to {hi:.3g} ms possible, and {limit:.3g} are allowed"
    return (
        f"{why}; close other programs, let the machine cool, and measure again (`edgekit verify --fresh`: all measurements are"
        " judged together)" + (", or in more processes (--processes 16)" if ended else "") + ", or take a faster scheme"
    )


def _check_rate(limit: float, measured: Measurements, conditions: Conditions) -> Check:
    """Tokens per second of decoding: a limit of the median time of a token, turned round."""
    time = _check_time("", 0.5, 1000.0 / limit, measured, conditions)
    lo, hi = (None if end is None else 1000.0 / float(end) for end in reversed(time.interval or (None, None)))
    rate = 1000.0 / float(time.measured or math.inf)
    detail = f"at least; a token's time: {time.detail}"
    return replace(
        time, name="tokens_per_second", measured=rate, limit=limit, bound=lo, interval=(lo, hi), detail=detail
    )


def _check_memory(limit: float, peak: float | None, foreign: Sequence[str]) -> Check:
    if peak is None:
        remedy = "this system does not tell a process's peak memory; measure on Linux, macOS or Windows"
        return Check(name="memory_mb", measured=None, limit=limit, verdict="not proven", remedy=remedy)
    if foreign:
        remedy = _foreign_remedy(foreign)
        return Check(name="memory_mb", measured=peak, limit=limit, verdict="not proven", remedy=remedy)
    if peak <= limit:
        return Check(name="memory_mb", measured=peak, limit=limit, verdict="pass")
    remedy = (
        f"{peak:.0f} of {limit:.0f} MB: a smaller scheme, fewer layers or a shorter data.max_length; Python, NumPy and the"
        " runtime take about 70 MB of it; then `edgekit build`"
    )
    return Check(name="memory_mb", measured=peak, limit=limit, verdict="fail", remedy=remedy)


def _foreign_remedy(foreign: Sequence[str]) -> str:
    return (
        f"measured on a machine that may not vouch for the target ({'; '.join(foreign)}): shown as the host's; run"
        " `edgekit verify` on the target itself, or describe this machine with `edgekit targets probe --name NAME`"
    )


def _shape(measured: Measurements) -> str:
    shape = measured.shape
    return f"batch {shape.batch}, {shape.sequence} tokens, {shape.threads or 'default'} threads"
