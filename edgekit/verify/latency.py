"""The statistics of latency: bounds over processes, each of which gives one observation. Standard library and NumPy only.

Calls of one process are no independent observations: they share its memory layout, its clock and whatever slow phase the
machine was in, so a bound over calls passes at the limit in up to three cases of four. What is bounded here is a quantile over
all calls of all processes, from each process's own. `benchmarks/gate_latency.py` measures the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING

from edgekit.gate import ALPHA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The fewest processes that bound anything, and how many one measurement starts: with five, slow phases of 50 calls pass at the
# limit in 11 %, with eight in 4 %.
FEWEST, PROCESSES = 5, 8
# The processes' quantiles are bounded at this quantile of theirs, medians too: most processes know nothing of a slow phase that
# is rarer than a process, and a bound of their mean alone passes at the limit in up to 12 %.
_OF_PROCESSES = 0.95
_STEPS = 60


def alpha_for(measurements: int) -> float:
    """The level of the n-th measurement of one artifact on one device: a half, a quarter, ... of ALPHA, ALPHA in all."""
    return ALPHA / 2.0 ** max(measurements, 1)


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


def tolerance_factor(n: int, q: float, alpha: float) -> float:
    """k, so that mean + k * standard deviation of n normal values is above their q-quantile with probability 1 - alpha."""
    return _noncentral_t(1.0 - alpha, n - 1, NormalDist().inv_cdf(q) * math.sqrt(n)) / math.sqrt(n)


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
