"""The statistics of two artifacts that took turns: the ratio of their times with an interval. Standard library and NumPy only.

Pairs of one process share its memory layout and whatever slow phase the machine was in: they are no independent observations. So
processes are started several times over, and each *round* of pairs gives one, the median of its log ratios; the interval is
Student's t of the rounds (Georges, Buytaert and Eeckhout, "Statistically rigorous Java performance evaluation", OOPSLA 2007;
Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013: what is repeated must be the outermost level that
varies). Rounds of one artifact against itself are symmetric about 0, whatever the pairs within are: their order is drawn
(`edgekit.runtimes.turns`). `benchmarks/device_compare.py` measures the error rates on real times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, stdev

from edgekit.verify import latency

Pairs = Sequence[tuple[float, float]]
# With ten rounds the t quantile is 2.26: more of them narrow the interval less than more pairs of each do.
ROUNDS, PAIRS = 10, 400
LEVEL = 0.95


def log_ratio(pairs: Pairs) -> float:
    """A round's log of the first side's time over the second's: the median over its pairs."""
    return median(math.log(first / second) for first, second in pairs)


def interval(rounds: Sequence[float], level: float = LEVEL) -> tuple[float, tuple[float, float]]:
    """The ratio of the first side's time to the second's, and its interval, from the `log_ratio` of two rounds or more."""
    mean, half = fmean(rounds), 0.0
    if spread := stdev(rounds):
        half = latency.t_quantile((1.0 + level) / 2.0, len(rounds) - 1) * spread / math.sqrt(len(rounds))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))


def verdict(bounds: tuple[float, float]) -> str:
    """What an interval of the first side's time over the second's says of the second: "faster", "slower" or "not proven"."""
    low, high = bounds
    return "faster" if low > 1.0 else "slower" if high < 1.0 else "not proven"
