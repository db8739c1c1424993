"""What the reports of both say of speed, memory and accuracy, and whether the times may be held against each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.diff.sides import Side
from edgekit.evidence import Interval, Report
from edgekit.history import CLASS, Entry, entry_of
from edgekit.typed_json import MAY_BE_ABSENT
from edgekit.verify import latency
from edgekit.verify.baseline import slower_than


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one report says. device: its CPU or architecture. p50_ms: of a call, of a decoder of one new token."""

    target: str
    device: str
    runtime: str
    prompts: int
    accuracy: float | None
    p50_ms: float
    p95_ms: float
    memory_mb: float | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Two reports. ratio: B's median time over A's, below 1 where B is faster, with its bounds, each one-sided at 95 %; None
    where the times may not be held against each other, and why_not says why."""

    a: Figures
    b: Figures
    ratio: float | None = None
    interval: Interval | None = field(default=None, metadata=MAY_BE_ABSENT)
    why_not: tuple[str, ...] = ()


def compare_reports(a: Side, b: Side) -> Measured | None:
    """The reports of both that are most alike; None where a side has none."""
    pairs = [(mine, theirs) for theirs in b.reports for mine in a.reports]
    if not pairs:
        return None
    mine, theirs = min(pairs, key=lambda pair: len(_why_not(*pair)))
    why = _why_not(mine, theirs)
    if why:
        return Measured(a=_figures(mine), b=_figures(theirs), why_not=tuple(why))
    before, after = _entry(mine).p50_ms, _entry(theirs).p50_ms
    ratio, low = slower_than(after, before)
    return Measured(
        a=_figures(mine), b=_figures(theirs), ratio=ratio, interval=(low, 1.0 / slower_than(before, after)[1])
    )


def _why_not(a: Report, b: Report) -> list[str]:
    """Why the times of two reports say nothing of each other; empty where they do."""
    mine, theirs = _entry(a), _entry(b)
    reasons = []
    if mine.device != theirs.device or bool(a.emulated) != bool(b.emulated):
        other = [key for key in CLASS if mine.device.get(key) != theirs.device.get(key)] or ["emulated"]
        reasons.append(f"measured on another device ({', '.join(other)})")
    if mine.runtime.name != theirs.runtime.name:
        reasons.append(f"{theirs.runtime.name} ran B, {mine.runtime.name} ran A")
    if mine.shape != theirs.shape:
        reasons.append("another number of tokens or threads was timed")
    for name, entry in (("A", mine), ("B", theirs)):
        if not entry.counts:
            why = next(iter((*entry.disturbed, *(entry.incomparable or ()))))
            reasons.append(f"{name}'s times may not be compared: {why}")
        elif len(entry.p50_ms) < latency.FEWEST:
            reasons.append(f"{name} has {len(entry.p50_ms)} processes, and {latency.FEWEST} are needed")
    return reasons


def _entry(report: Report) -> Entry:
    return entry_of(report, recipe="", tools={}, identity="", prompts="")


def _figures(report: Report) -> Figures:
    device = report.device.get("cpu") or report.device.get("arch")
    return Figures(
        target=report.target,
        device=str(device),
        runtime=f"{report.runtime.name} {report.runtime.version}",
        prompts=report.prompts,
        accuracy=report.accuracy.get("artifact"),
        p50_ms=report.latency_ms.p50,
        p95_ms=report.latency_ms.p95,
        memory_mb=report.memory_mb,
    )
