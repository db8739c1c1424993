"""How long a call takes: at its fastest, and call by call, with what stopped the process meanwhile."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Literal, TypedDict, TypeVar

T = TypeVar("T")

_SPELL_S = 0.2
# Warming up is then a small part of it: an emulated board takes minutes otherwise.
_LONG_S = 2.0


class Spell(TypedDict):
    """How a run of timed calls went. calls: how many there were; ended: whether for their number, or because time was over."""

    calls: int
    ended: Literal["calls", "time"]


class Laps:
    """Times of calls, one after the other."""

    def __init__(self) -> None:
        self.ms: list[float] = []
        self._idle: list[float] = []

    def time(self, call: Callable[[], T]) -> T:
        """Time one call, and give back what it gives."""
        worked, begun = time.process_time(), time.perf_counter()
        result = call()
        passed = time.perf_counter() - begun
        self.ms.append(round(1000 * passed, 6))
        self._idle.append(passed - (time.process_time() - worked))
        return result

    @property
    def paused_s(self) -> float:
        """Seconds that the process did nothing during one call, above the median of all: it was stopped, or had no core.

        Of a call the time that its threads worked is taken off its time; what a GPU or a lock lets a call wait, all calls wait.
        """
        return round(max(max(self._idle) - median(self._idle), 0.0), 6) if self._idle else 0.0

    def spell(self, ended: Literal["calls", "time"]) -> Spell:
        """How they went."""
        return {"calls": len(self.ms), "ended": ended}


def fastest(call: Callable[[], object], spell_s: float | None = None) -> float:
    """Seconds of the fastest of the calls that fit into a spell; the first one counts only where it takes very long.

    spell_s: the spell, where 0.2 s are not what it needs.
    """
    return min(_spell(call, time.perf_counter, spell_s))


def worked(call: Callable[[], object], spell_s: float | None = None) -> float:
    """Seconds of processor time of this thread that a call takes: what other programs take of the machine does not count.

    The lower quartile of the calls that fit into a spell (as in `fastest`), not the least: a virtual machine's kernel takes what
    its host gave to others off the thread's time in lumps, so that single calls take next to none, or none. By the wall's clock
    where the processor's stood still, and on Windows, whose processor time has steps of 16 ms (GetThreadTimes).
    """
    if platform.system() != "Windows":
        times = sorted(_spell(call, time.thread_time, spell_s))
        middle = times[max(len(times) // 4, min(1, len(times) - 1))]
        if middle > 0:
            return middle
    return min(_spell(call, time.perf_counter, spell_s))


def _spell(call: Callable[[], object], clock: Callable[[], float], spell_s: float | None) -> list[float]:
    """Seconds by `clock` of each call in a spell of the wall's; of the first alone where that takes very long."""
    started, begun = time.perf_counter(), clock()
    call()
    first = clock() - begun
    if (now := time.perf_counter()) - started > _LONG_S:
        return [first]
    times, end = [], now + (_SPELL_S if spell_s is None else spell_s)
    while True:
        begun = clock()
        call()
        times.append(clock() - begun)
        if time.perf_counter() >= end:
            return times
