"""The statistics of latency: bounds over processes, each of which gives one observation. Standard library and NumPy only.

Calls of one process are no independent observations: they share its memory layout, its clock and whatever slow phase the
machine was in, so a bound over calls passes at the limit in up to three cases of four. What is bounded here is a quantile over
all calls of all processes, from each process's own. `benchmarks/gate_latency.py` measures the error rates.

A measurement may end early, at looks that were fixed beforehand (`looks`, `spending`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING

from edgekit.gate import ALPHA, quantile_bounds, runs_needed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The fewest processes that bound anything, and how many one measurement starts: with five, slow phases of 50 calls pass at the
# limit in 11 %, with eight in 4 %.
FEWEST, PROCESSES = 5, 8
# More than a first look: how many looks at most, and how many processes lie between two.
_LOOKS, _BETWEEN = 4, 4
# The processes' quantiles are bounded at this quantile of theirs, medians too: most processes know nothing of a slow phase that
# is rarer than a process, and a bound of their mean alone passes at the limit in up to 12 %.
_OF_PROCESSES = 0.95
_STEPS = 60


def alpha_for(measurements: int) -> float:
    """The level of the n-th measurement of one artifact on one device: a half, a quarter, ... of ALPHA, ALPHA in all."""
    return ALPHA / 2.0 ** max(measurements, 1)


def looks(most: int) -> tuple[int, ...]:
    """After how many processes a measurement of at most so many is judged, fixed before it begins.

    The first look is at PROCESSES: fewer of them may all miss a slow phase, which no alpha mends.
    """
    if most <= PROCESSES:
        return (most,)
    count = min(_LOOKS, 1 + math.ceil((most - PROCESSES) / _BETWEEN))
    return tuple(round(PROCESSES + (most - PROCESSES) * turn / (count - 1)) for turn in range(count))


def spending(most: int) -> dict[int, float]:
    """The share of alpha that each look of a measurement may spend, by its number of processes; 1 in all.

    O'Brien and Fleming's boundary as a spending function (Lan and DeMets, Biometrika 70, 1983, alpha_1*), of the share of the
    processes: nearly all is left for the last look. Each look is judged at what it may spend by itself, so the shares of
    error add up to no more than alpha however the looks depend on each other, and whatever stops the measurement.
    """
    normal = NormalDist()
    reach = normal.inv_cdf(1.0 - ALPHA / 2.0)
    spent = [2.0 * (1.0 - normal.cdf(reach / math.sqrt(count / most))) / ALPHA for count in looks(most)]
    return dict(zip(looks(most), (now - before for before, now in pairwise([0.0, *spent])), strict=True))


def alpha_at(processes: int, most: int, measurements: int) -> float:
    """The level at which a measurement is judged that ended after so many processes of at most `most`.

    One that was stopped between looks is judged at the level of the next one's share.
    """
    shares = spending(most)
    look = next((count for count in shares if count >= processes), most)
    return alpha_for(measurements) * shares[look]


def calls_needed(q: float, most: int) -> int:
    """The calls that each process has to time, so that the q-quantile can be bounded at all.

    The process's own k-th smallest, k = ceil(q (n + 1)), must be one of n; and together the calls must be as many as the order
    statistics of the strictest look ask for: q^n <= alpha (David and Nagaraja, Order Statistics, 3rd ed., section 7.1).
    """
    alpha = alpha_for(1) * min(spending(most).values())
    return max(math.ceil(q / (1.0 - q)), math.ceil(runs_needed(q, alpha) / min(looks(most))))


def level(times: Sequence[float], q: float) -> float:
    """A process's own q-quantile: the k-th smallest of n, k = ceil(q (n + 1)), which few calls do not put too low."""
    ordered = sorted(times)
    return ordered[min(math.ceil(q * (len(ordered) + 1)), len(ordered)) - 1]


def centre(levels: Sequence[float]) -> float:
    """The geometric mean of the processes' levels."""
    return math.exp(fmean(map(math.log, levels)))


def bounds(levels: Sequence[float], q: float, alpha: float = ALPHA) -> tuple[float | None, float | None]:
    """Bounds of the q-quantile over all calls from the processes' own (> 0), each one-sided at 1 - alpha; None: too few.

    The logarithms of the levels are taken for normal. Above: the upper tolerance bound of their q-quantile (noncentral t;
    Hahn and Meeker, Statistical Intervals, 1991, section 4.6.3): with a shift s between processes and a spread w within one,
    the quantile over all calls is z sqrt(s^2 + w^2) above the mean, at most what z s and z w sum to. Below: Student's t of
    their mean. Where processes disagree both are far away, so that nothing is proven.
    """
    n = len(levels)
    if n < FEWEST:
        return None, None
    logs = [math.log(value) for value in levels]
    mean, spread = fmean(logs), stdev(logs)
    below = _noncentral_t(1.0 - alpha, n - 1, 0.0) / math.sqrt(n)
    above = tolerance_factor(n, max(q, _OF_PROCESSES), alpha)
    return math.exp(mean - below * spread), math.exp(mean + above * spread)


def certified(
    processes: Sequence[Sequence[float]], q: float, alpha: float = ALPHA
) -> tuple[float | None, float | None]:
    """`bounds` of the processes' own levels, widened to what order statistics of all their calls leave open; None: too few.

    Each is valid by itself under its own assumptions (levels alike; calls alike), so the wider one is under either.
    """
    lo, hi = bounds([level(times, q) for times in processes], q, alpha)
    below, above = quantile_bounds([time for times in processes for time in times], q, alpha)
    return (
        None if lo is None or below is None else min(lo, below),
        None if hi is None or above is None else max(hi, above),
    )


def tolerance_factor(n: int, q: float, alpha: float) -> float:
    """k, so that mean + k * standard deviation of n normal values is above their q-quantile with probability 1 - alpha."""
    return _noncentral_t(1.0 - alpha, n - 1, NormalDist().inv_cdf(q) * math.sqrt(n)) / math.sqrt(n)


def t_quantile(p: float, freedom: int) -> float:
    """The p-quantile of Student's t."""
    return _noncentral_t(p, freedom, 0.0)


@lru_cache(maxsize=256)
def _noncentral_t(p: float, freedom: int, shift: float) -> float:
    """The p-quantile of (Z + shift) / sqrt(chi^2 / freedom): its distribution is summed over the root, then bisected."""
    import numpy as np

    root = np.linspace(1e-4, 1.0 + 8.0 / math.sqrt(2.0 * freedom), 801)
    weight = np.exp((freedom - 1) * np.log(root) - freedom * (root * root - 1.0) / 2.0)
    weight /= weight.sum()
    low, high = 0.0, 1e4
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        below = 0.5 * (1.0 + _erf((middle * root - shift) / math.sqrt(2.0)))
        low, high = (middle, high) if float((weight * below).sum()) < p else (low, middle)
    return high


def _erf(values: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return np.array([math.erf(value) for value in values])
