"""The phases of an artifact's life that are timed: warming up, steady calls, bursts after rest, calls without end, and settings.

A request's timing asks for them: `sustained` (seconds) for bursts and the curve, `tune` for the sweep of threads and clusters,
`cold` for a file that the system does not have in its memory when it is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, TypedDict

from edgekit.runtimes import conditions, machine, neighbours
from edgekit.runtimes.timing import Laps

if TYPE_CHECKING:
    from edgekit.runtimes.request import Timing

# A slow model is warm after fewer calls.
_WARM_S = 1.0
# Long enough for a clock to fall and for caches to be others'; a user's next word comes later still.
REST_S, BURSTS, BURST, _BURST_S = 1.0, 5, 10, 2.0
# Points of a curve, and the shortest time that one is of.
WINDOWS, _WINDOW_S = 60, 0.5
# Of each setting of a sweep, in turns: a slow phase of the machine meets all.
ROUNDS = 3
SHORT: Timing = {"warmup": 3, "repeats": 1000, "least": 3, "seconds": 0.3}

TimedWith = Callable[[int], list[float]]
"""Milliseconds of calls with so many threads."""


class Window(TypedDict):
    """A point of the curve: when it ended, the calls in it, their median and 95 % quantile in ms, and what the machine was like
    at its end (`conditions`). slowed: how often heat or the power supply lowered the clock in it."""

    seconds: float
    calls: int
    p50: float
    p95: float
    temperature_c: float | None
    clock_mhz: float | None
    slowed: float | None


class Setting(TypedDict):
    """Threads, and the logical cores that they may use (None: all)."""

    threads: int
    cpus: list[int] | None


@dataclass(frozen=True, kw_only=True)
class Steady:
    """Milliseconds of the calls that warmed up and of the timed ones, and why these ended."""

    warmup: list[float]
    laps: Laps
    ended: Literal["calls", "time"]

    def facts(self) -> dict[str, object]:
        """As the probe says it."""
        return {"ms": self.laps.ms, "warmup": self.warmup, "spell": self.laps.spell(self.ended)}


def steady(call: Callable[[], object], timing: Timing) -> Steady:
    """Time `repeats` calls, fewer when `seconds` are over, but never fewer than `least`; before them `warmup` calls, fewer when
    a second is over."""
    first, laps = Laps(), Laps()
    warm = time.perf_counter() + _WARM_S
    for _ in range(timing["warmup"]):
        first.time(call)
        if time.perf_counter() > warm:
            break
    end = time.perf_counter() + timing["seconds"]
    while len(laps.ms) < timing["repeats"]:
        laps.time(call)
        if time.perf_counter() > end and len(laps.ms) >= timing["least"]:
            break
    return Steady(warmup=first.ms, laps=laps, ended="calls" if len(laps.ms) >= timing["repeats"] else "time")


def around() -> Callable[[Laps], dict[str, object]]:
    """Look at the machine; what is returned looks again, and says what it was like before and after, and what disturbed laps."""
    before, told = conditions.look(), neighbours.watch()
    return lambda laps: {
        "neighbours": {**told(), "paused": laps.paused_s},
        "before": before,
        "after": conditions.look(),
    }


def sustained(turn: Callable[[Laps], object], seconds: float) -> dict[str, object]:
    """Bursts after rest, then calls without a pause for so many seconds. turn: times a call, or several, into what it is given.

    bursts: milliseconds of the first calls after each rest. curve: a list of `Window`. asked_s, seconds: what was asked, what
    was done.
    """
    bursts = []
    for _ in range(BURSTS):
        time.sleep(REST_S)
        laps, end = Laps(), time.perf_counter() + _BURST_S
        while len(laps.ms) < BURST and time.perf_counter() < end:
            turn(laps)
        bursts.append(laps.ms[:BURST])
    curve: list[Window] = []
    begun = time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        curve.append(_window(turn, begun, min(passed + max(seconds / WINDOWS, _WINDOW_S), seconds)))
    return {"asked_s": seconds, "seconds": round(passed, 3), "bursts": bursts, "curve": curve}


def _window(turn: Callable[[Laps], object], begun: float, until: float) -> Window:
    laps, told = Laps(), neighbours.watch()
    while not laps.ms or time.perf_counter() - begun < until:
        turn(laps)
    ordered = sorted(laps.ms)
    state = conditions.look()
    return {
        "seconds": round(time.perf_counter() - begun, 3),
        "calls": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p95": ordered[min(int(0.95 * (len(ordered) + 1)), len(ordered) - 1)],
        "temperature_c": state["temperature_c"],
        "clock_mhz": state["clock_mhz"],
        "slowed": told()["slowed"],
    }


def settings() -> list[Setting]:
    """What a sweep tries: 1, 2, 4 ... threads, up to one per core, and where cores differ each cluster for itself."""
    cores = machine.describe()["cores"]
    counts = sorted({*(1 << power for power in range(cores.bit_length())), cores})
    found: list[Setting] = [{"threads": count, "cpus": None} for count in counts if count <= cores]
    clusters = conditions.clusters()
    if len(clusters) > 1 and hasattr(os, "sched_setaffinity"):
        found += [{"threads": len(cpus), "cpus": cpus} for cpus in clusters]
    return found


def tune(timed: TimedWith) -> dict[str, object]:
    """settings: what was tried; ms: of each, the median of each round."""
    asked = settings()
    found: list[list[float]] = [[] for _ in asked]
    for _ in range(ROUNDS):
        for setting, medians in zip(asked, found, strict=True):
            with _only_on(setting["cpus"]):
                medians.append(median(timed(setting["threads"])))
    return {"settings": asked, "ms": found}


@contextmanager
def _only_on(cpus: list[int] | None) -> Iterator[None]:
    """Let this thread, and those that it starts, run on these cores only."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def alive_ms() -> float | None:
    """Milliseconds since the process was started; None where the system does not tell."""
    alive = conditions.alive_s()
    return None if alive is None else round(1000 * alive, 1)


def forget(file: Path) -> None:
    """Have the system drop a file from its memory, with all that lies beside it, so that it is read from the disk; where it can.

    posix_fadvise(2), POSIX_FADV_DONTNEED: any user may, of pages that nobody else maps.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in file.parent.iterdir():
        if path.is_file():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
