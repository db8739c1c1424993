"""How long a call takes at its fastest."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

_SPELL_S = 0.2
# Warming up is then a small part of it: an emulated board takes minutes otherwise.
_LONG_S = 2.0


def fastest(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of the calls that fit into a short spell; the first one counts only where it takes very long.

    clock: what tells the seconds, where it is not the wall's.
    """
    started, begun = time.perf_counter(), clock()
    call()
    first = clock() - begun
    if (now := time.perf_counter()) - started > _LONG_S:
        return first
    best, end = float("inf"), now + _SPELL_S
    while True:
        begun = clock()
        call()
        best = min(best, clock() - begun)
        if time.perf_counter() >= end:
            return best


def own_time() -> float:
    """Seconds of processor time that this thread has taken: what other programs take of the machine does not count.

    The wall's clock on Windows, whose processor time has steps of 16 ms (GetThreadTimes).
    """
    return time.perf_counter() if platform.system() == "Windows" else time.thread_time()
