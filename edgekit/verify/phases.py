"""The phases of an artifact's life in figures: its start, steady calls, and what a user may ask for beside the limits.

That is calls without a pause for a time, and the best threads and cores; each has a process of its own. Neither is judged: a
target's limits are of steady calls, and the report shows the rest beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from edgekit.evidence import Latency
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Endless, First, Load, Prefill
from edgekit.probes.lines import Tried as Medians
from edgekit.target import QUANTILES
from edgekit.times import Moment, Sustained, Tried, Tuning
from edgekit.verify import latency

if TYPE_CHECKING:
    from edgekit.probes.lines import Lines
    from edgekit.verify.measurements import Measurements
    from edgekit.verify.run import Run

# A setting that is slower than the fastest by no more than this is as good: more threads cost power and other programs' time.
NEARLY = 1.05
# The share of a curve that is its end.
_LAST = 0.25
_TUNE_S = 600.0
# The calls of an app's first moment.
_TEN = 10


def latency_of(measured: Measurements) -> Latency:
    """The times, with their bounds over the processes of this measurement and of earlier ones."""
    times = [process.times for process in (*measured.processes, *measured.earlier)]
    alpha = latency.alpha_at(len(measured.processes), measured.planned, measured.measurement)
    p50, p95, p99 = (
        latency.centre([latency.level(process.times, q) for process in measured.processes]) for q in QUANTILES.values()
    )
    first, warm = measured.processes[0], measured.processes[0].warmup
    return Latency(
        p50=p50,
        p95=p95,
        p99=p99,
        first=measured.first_ms,
        load=measured.load_ms,
        bounds={key.removesuffix("_ms"): latency.certified(times, q, alpha) for key, q in QUANTILES.items()},
        first_ten=first.times[:_TEN] if warm is None else (measured.first_ms, *warm, *first.times)[:_TEN],
        cold=measured.cold_ms,
    )


@dataclass(frozen=True, kw_only=True)
class More:
    """What was asked for beside the limits; None where it was not."""

    sustained: Sustained | None = None
    tuning: Tuning | None = None


def measure_more(run: Run, question: Question, measured: Measurements) -> More:
    """What the inputs' `measure` asks for. question: of the measurement; DeviceFailed where a probe does not finish."""
    asked, few = run.inputs.measure, question.only_times(sweep=False)
    found = More()
    if asked.sustained_s is not None:
        run.progress(0, 0, f"calls without a pause for {asked.sustained_s:g} s")
        longer = replace(few, timeout_s=question.timeout_s + 2 * asked.sustained_s)
        lines = (
            PROBES[run.device.PROBE].ask(run.device, longer.only_times(sustained=asked.sustained_s, cold=True)).lines
        )
        found = replace(found, sustained=read_sustained(lines))
    if asked.sweep:
        run.progress(0, 0, "which threads and cores are the best")
        longer = replace(few, timeout_s=question.timeout_s + _TUNE_S)
        tried = PROBES[run.device.PROBE].ask(run.device, longer.only_times(tune=True)).lines.read("tuning", Medians)
        found = replace(found, tuning=_tuning(run, measured, tried))
    return found


def read_sustained(lines: Lines) -> Sustained:
    """What a probe's line `sustained` says, in figures."""
    endless = lines.read("sustained", Endless)
    curve = tuple(Moment(**window) for window in endless.curve)
    bursts = [time for burst in endless.bursts for time in burst]
    burst = latency.level(bursts, 0.5)
    end = curve[-max(1, round(_LAST * len(curve))) :]
    last = median(moment.p50 for moment in end)
    slowed = [moment.slowed for moment in curve if moment.slowed is not None]
    return Sustained(
        asked_s=endless.asked_s,
        seconds=endless.seconds,
        burst_p50=burst,
        burst_p95=latency.level(bursts, 0.95),
        last_p50=last,
        last_p95=median(moment.p95 for moment in end),
        slowdown=round(last / max(burst, 1e-9), 4),
        throttled=any(slowed) if slowed else None,
        cold=round(lines.read("load", Load).ms + _first(lines), 3),
        curve=curve,
    )


def _first(lines: Lines) -> float:
    if "prefill" in lines.events:
        return lines.read("prefill", Prefill).ms[-1][0]
    return lines.read("first", First).ms


def best(tried: Sequence[Tried]) -> Tried:
    """The setting with the fewest threads of those that are nearly as fast as the fastest."""
    fastest = min(it.p50 for it in tried)
    return min((it for it in tried if it.p50 <= NEARLY * fastest), key=lambda it: (it.threads, it.p50))


def _tuning(run: Run, measured: Measurements, medians: Medians) -> Tuning:
    tried = tuple(
        Tried(
            threads=setting["threads"], cpus=None if (cpus := setting["cpus"]) is None else tuple(cpus), p50=median(ms)
        )
        for setting, ms in zip(medians.settings, medians.ms, strict=True)
    )
    return Tuning(
        artifact=run.artifact.file.sha256,
        runtime=measured.runtime.name,
        version=measured.runtime.version,
        device=run.device.identity,
        cpu=measured.device["cpu"],
        sequence=measured.shape.sequence,
        best=best(tried),
        tried=tried,
    )
