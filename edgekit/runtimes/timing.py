"""How long a call takes at its fastest."""

from __future__ import annotations

import time
from collections.abc import Callable

_SPELL_S = 0.2
# Warming up is then a small part of it: an emulated board takes minutes otherwise.
_LONG_S = 2.0


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of the calls that fit into a short spell; the first one counts only where it takes very long."""
    begun = time.perf_counter()
    call()
    if (first := time.perf_counter() - begun) > _LONG_S:
        return first
    best, end = float("inf"), time.perf_counter() + _SPELL_S
    while True:
        begun = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - begun)
        if now >= end:
            return best
