"""How long a call takes at its fastest."""

from __future__ import annotations

import time
from collections.abc import Callable

_SPELL_S = 0.2


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of the calls that fit into a short spell, the first one not counted."""
    call()
    best, end = float("inf"), time.perf_counter() + _SPELL_S
    while True:
        begun = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - begun)
        if now >= end:
            return best
