"""The gate's statistics: one-sided bounds on a loss, and the verdict that they allow. Standard library and NumPy only.

A paired loss is L = (b - c) / n: of n prompts, b are right by the reference and wrong by the artifact, c the reverse; the
b + c others are "flips". All bounds are one-sided, each at level 1 - alpha. `benchmarks/gate.py` measures their error rates.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

Verdict = Literal["pass", "fail", "not proven"]
ALPHA = 0.05
# Of ALPHA the first look at a set of prompts may use nearly all: less would cost it its power (300 prompts without a lost one
# prove one point at 0.04905 and more). What is left is for the later ones, and sums to it.
FIRST_LOOK = 0.0492
# Tango's score bound is the large-sample one: alone it passes at the margin in up to 6 % where the flips are few. Moving the
# observed difference by half a flip (upper bound) and a whole one (lower, whose tail is the longer) keeps the exact error,
# summed over all (b, c), at or below 5 % for n in 20..3000 and margins from 0 up; tests/test_gate.py sums it again.
_CORRECTION_HI = 0.5
_CORRECTION_LO = 1.0
_STEPS = 60
# Of `power_of`: parts of a distribution, and how many expected losses are many.
_PARTS, _MANY = 25, 1000.0
# Below this a mean's interval rests on its distribution's shape, which nobody knows: 20 or 40 clusters passed at the margin in 14
# and 10 % where losses are log-normal with s = 1.5. Its lower bound, which a rare large loss only raises, holds from 20 on.
FEWEST_CLUSTERS, FEWEST_FOR_FAIL = 100, 20
# Clusters of 4 to 63 tokens have 2.3 to 2.6 where losses are exponential or log-normal with s = 1, truly half of the margin;
# where long prompts (Pareto, exponent 1.2 to 2.5) lose more for each token, 95 % of 300 have more (`benchmarks/gate.py`).
_CONCENTRATED, _LEVEL = 2.5, 0.2
_RESAMPLES, _PIECE = 4000, 250
# At alpha itself the studentized bootstrap still passes at the margin in 7 to 9 % of 40 or 100 clusters whose losses are
# exponential or log-normal; at half of it in 4 to 6 % (`benchmarks/gate.py`, goal "false pass, ratio").
_UPPER = 0.5
# A draw that misses the few clusters with a loss has no spread of its own. With a third of the sample's, one to four clusters
# that lose alike, of 40, have the bounds 4.0, 8.0, 12.0, 9.8, where Poisson's exact ones are 4.7, 6.3, 7.8, 9.2.
_LEAST_SPREAD = 3.0
# The fifth smallest of the draws is the last that means something. Beyond, down to the 14th look, the square of the normal
# quantile stays outside the quantiles of 300,000 draws of 40 to 100 exponential, log-normal, gamma, uniform and 0/1 losses.
_TOLD = 5.0 / _RESAMPLES


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a set of verify prompts: which one it is, the error that it may use, and its stage where several are planned.

    index counts from 1 over all looks at prompts with a common text; alpha is what each bound of this stage uses.
    """

    index: int = 1
    alpha: float = FIRST_LOOK
    stage: int = 1
    stages: int = 1


def alpha_for(look: int, carried: float = 0.0) -> float:
    """The error that a look at verify prompts may use: those of all looks sum to ALPHA.

    The first look has FIRST_LOOK, the k-th (ALPHA - FIRST_LOOK) / (k (k - 1)), and with it `carried`: what the look before
    had, where that one passed (the fallback procedure: Wiens, Pharmaceutical Statistics 2, 2003, 211-215).
    """
    return carried + (FIRST_LOOK if look <= 1 else (ALPHA - FIRST_LOOK) / (look * (look - 1)))


def stage_share(stage: int, stages: int) -> float:
    """The part of a look's error that a stage of several planned ones may use: s / (1 + ... + n), which sums to 1.

    Later stages have more prompts, and can prove more with it.
    """
    return 2.0 * stage / (stages * (stages + 1))


def floor(n: int, alpha: float = ALPHA) -> float:
    """The upper bound of a loss that never showed in n prompts: 1 - alpha^(1/n), the exact binomial bound for 0 of n."""
    return 1.0 - alpha ** (1.0 / n) if n > 0 else 1.0


def paired_bounds(b: float, c: float, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Lower and upper bound of the paired loss (b - c) / n, each one-sided at 1 - alpha.

    Tango's paired score interval (Statistics in Medicine 17, 1998, 891-908) with a continuity correction. Where no prompt was
    lost (b = 0), the loss is at most the rate of lost prompts, and the exact bound of that rate holds too: the lower counts.
    """
    if n <= 0:
        return -1.0, 1.0
    hi = score_upper(b, c, n, alpha, _CORRECTION_HI)
    lo = -score_upper(c, b, n, alpha, _CORRECTION_LO)
    least = floor(n, alpha)
    if b == 0:
        hi = min(hi, least) if c else least
    if c == 0:
        lo = max(lo, -least) if b else -least
    return lo, hi


def proportion_bounds(count: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Exact (Clopper and Pearson, Biometrika 26, 1934) bounds of a proportion `count / n`, each one-sided at 1 - alpha."""
    if n <= 0:
        return 0.0, 1.0
    lo = 0.0 if count == 0 else _bisect(lambda p: 1.0 - _binomial_cdf(count - 1, n, p) > alpha, 0.0, 1.0)
    hi = 1.0 if count == n else _bisect(lambda p: _binomial_cdf(count, n, p) <= alpha, 0.0, 1.0)
    return lo, hi


def mean_bounds(
    losses: NDArray[np.floating],
    most: float,
    alpha: float = ALPHA,
    sizes: NDArray[np.floating] | None = None,
    longest: float = 0.0,
) -> tuple[float, float]:
    """Bounds of the mean of independent losses in [0, most], each one-sided at 1 - alpha, whatever their distribution.

    With X = loss / most and mean mu: E prod(1 + (m - X_i) / (1 - m)) <= 1 for every m <= mu, so by Markov's inequality the
    product exceeds 1 / alpha with probability at most alpha; `hi` is the smallest m where it does. It is the bet with the
    largest stake in Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 86, 2024), and
    for losses that are all 0 it is `floor`. `lo` is a mixture of their bets prod(1 + stake (X_i / m - 1)) on a mean above m.

    sizes: of how many units (prompts, tokens) each loss is the sum; the mean is then of units, and the largest size sets the
    stakes, or `longest`, where sizes are drawn as the losses are and none can be larger.
    """
    import numpy as np

    scaled = np.asarray(losses, dtype=np.float64) / most
    if len(scaled) == 0:
        return 0.0, most
    weights = np.ones(len(scaled)) if sizes is None else np.asarray(sizes, np.float64)
    largest = max(float(weights.max()), longest)
    scaled = np.clip(scaled, 0.0, weights) / largest
    weights = weights / largest

    def won(m: float) -> bool:
        return float(np.log1p((m * weights - scaled) / (1.0 - m)).sum()) >= -math.log(alpha)

    stakes = 0.5 ** np.arange(1, 9)

    def refuted(m: float) -> bool:
        wealth = np.log1p(stakes[:, None] * (scaled / m - weights)[None, :]).sum(axis=1)
        top = float(wealth.max())
        return top + math.log(float(np.exp(wealth - top).mean())) >= -math.log(alpha)

    mean = float(scaled.sum() / weights.sum())
    # A loss that is the largest possible leaves nothing to win.
    hi = 1.0 if (scaled >= 1.0).any() else _bisect(won, mean, 1.0 - 1e-12)
    lo = 0.0 if mean <= 0.0 else _bisect(lambda m: not refuted(m), 1e-12, mean)
    return lo * most, min(hi, 1.0) * most


def ratio_bounds(
    sums: NDArray[np.floating],
    counts: NDArray[np.floating],
    alpha: float = ALPHA,
    *,
    share: bool = False,
    most: float = math.inf,
    longest: float = 0.0,
) -> tuple[float, float, float]:
    """(ratio, lo, hi) of sum(sums) / sum(counts) over independent clusters, each bound one-sided at 1 - alpha.

    A cluster is a prompt with its tokens, or all prompts of a group. The wider of two intervals counts: Student's t of the
    linearized ratio (Cochran, Sampling Techniques, 3rd ed., section 6.3), and the studentized bootstrap over whole clusters
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5), which knows that losses have a long tail; its
    upper bound is taken at half of alpha (see `_UPPER`). An alpha that is rarer than the draws tell needs the exact bound of
    losses up to `most` a unit, of clusters of up to `longest` units (`mean_bounds`); without `most` there is none. With fewer
    than FEWEST_CLUSTERS nothing is bounded from above, with fewer than FEWEST_FOR_FAIL nothing at all. share: counts are trials
    and sums those of one kind, so what never showed in n clusters may still be `floor(n)`.
    """
    import numpy as np

    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    n, total = len(counts), float(counts.sum())
    ratio = float(sums.sum()) / total if total else 0.0
    if n < FEWEST_FOR_FAIL or not total:
        return ratio, -math.inf, math.inf
    residuals = (sums - ratio * counts) / counts.mean()
    error = float(residuals.std(ddof=1)) / math.sqrt(n)
    student = t_quantile(1.0 - alpha, n - 1)
    below, above = _studentized(sums, counts, ratio, error, alpha) if error > 0.0 else (0.0, 0.0)
    lo, hi = ratio - max(above, student) * error, ratio + max(-below, student) * error
    if share:
        hi = max(hi, floor(n, alpha))
    if alpha * _UPPER < _TOLD:
        hi = max(hi, mean_bounds(sums, most, alpha, counts, longest)[1] if math.isfinite(most) else math.inf)
    return ratio, lo, hi if n >= FEWEST_CLUSTERS else math.inf


def is_long_tailed(
    sums: NDArray[np.floating],
    counts: NDArray[np.floating],
    margin: float,
    alpha: float = ALPHA,
    *,
    most: float,
    longest: float,
) -> bool:
    """Whether so few clusters have most of the loss that `ratio_bounds` does not bound it: others, not drawn, may have more.

    That is so where the mean square of a cluster's loss exceeds _CONCENTRATED times the square of its mean, a fifth of the
    margin added to each (small losses are no matter, however they are spread), unless the exact bound (`mean_bounds`, of losses
    up to `most` a unit and clusters up to `longest` units) is within the margin.
    """
    import numpy as np

    raised = np.asarray(sums, np.float64) + _LEVEL * margin * np.asarray(counts, np.float64)
    if len(raised) * float((raised**2).sum()) <= _CONCENTRATED * float(raised.sum()) ** 2:
        return False
    return not mean_bounds(np.asarray(sums, np.float64), most, alpha, counts, longest)[1] <= margin


def _studentized(
    sums: NDArray[np.floating], counts: NDArray[np.floating], ratio: float, error: float, alpha: float
) -> tuple[float, float]:
    """Quantiles of (ratio - true ratio) / its standard error over resampled clusters: at alpha * _UPPER, and at 1 - alpha."""
    import numpy as np

    n, draws = len(counts), _draws(len(counts))
    moments = np.stack([sums, counts, sums * sums, sums * counts, counts * counts], axis=1)
    found = []
    for begin in range(0, _RESAMPLES, _PIECE):
        drawn = draws[begin : begin + _PIECE].astype(np.float64) @ moments
        s, c, ss, sc, cc = (drawn[:, place] for place in range(5))
        c = np.maximum(c, 1e-12)
        again = s / c
        spread = np.sqrt(np.maximum(ss - 2.0 * again * sc + again * again * cc, 0.0) * n / (n - 1)) / c
        found.append((again - ratio) / np.maximum(spread, error / _LEAST_SPREAD))
    ratios = np.concatenate(found)
    return _tail(ratios, alpha * _UPPER), -_tail(-ratios, alpha)


def _tail(values: NDArray[np.floating], alpha: float) -> float:
    """The alpha-quantile; where that is rarer than the values tell, it grows with the square of the normal one (see `_TOLD`)."""
    import numpy as np

    told = max(alpha, _TOLD)
    reach = NormalDist().inv_cdf(alpha) / NormalDist().inv_cdf(told)
    return float(np.quantile(values, told)) * reach**2


@lru_cache(maxsize=2)
def _draws(n: int) -> NDArray[np.int16]:
    """[_RESAMPLES, n]: how often each of n clusters is drawn, the same for all that is compared."""
    import numpy as np

    return np.random.default_rng(0).multinomial(n, np.full(n, 1.0 / n), size=_RESAMPLES).astype(np.int16)


def t_quantile(p: float, freedom: float) -> float:
    """Student's t by Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5), good to 1e-3 from 10 degrees on."""
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def quantile_bounds(times: Sequence[float], q: float, alpha: float = ALPHA) -> tuple[float | None, float | None]:
    """Bounds of the q-quantile of independent times by order statistics, each one-sided at 1 - alpha; None: too few times.

    The k-th smallest of n is at or above the quantile with probability P(Binomial(n, q) < k), whatever the distribution
    (David and Nagaraja, Order Statistics, 3rd ed., section 7.1). An upper bound of p95 needs 59 times.
    """
    ordered = sorted(times)
    below, above = _order(len(ordered), q, alpha)
    return (ordered[below - 1] if below else None), (ordered[above] if above < len(ordered) else None)


@lru_cache(maxsize=1024)
def _order(n: int, q: float, alpha: float) -> tuple[int, int]:
    """How many of n times lie below the lower bound, with it, and below the upper one."""
    above = bisect_left(range(n), True, key=lambda k: _binomial_cdf(k, n, q) >= 1.0 - alpha)
    below = bisect_left(range(n), True, key=lambda k: _binomial_cdf(k, n, q) > alpha)
    return below, above


def runs_needed(q: float, alpha: float = ALPHA) -> int:
    """How many times an upper bound of the q-quantile needs at least: q^n <= alpha."""
    return math.ceil(math.log(alpha) / math.log(q))


def quantile(times: Sequence[float], q: float) -> float:
    """The smallest time that a share q of the times does not exceed (no interpolation: it is a time that was measured)."""
    ordered = sorted(times)
    return ordered[max(math.ceil(q * len(ordered)) - 1, 0)]


def verdict(lo: float, hi: float, margin: float) -> Verdict:
    """pass: the loss surely is within the margin. fail: it surely is not. Else not proven, however large the loss that was seen:
    chance alone puts it above the margin in half of all sets whose true loss is just below."""
    if hi <= margin:
        return "pass"
    return "fail" if lo > margin else "not proven"


def smallest_margin(n: int, flips: float, alpha: float = ALPHA) -> float:
    """The smallest margin that n prompts can prove where a share `flips` of them flips, as many to wrong as to right."""
    half = flips * n / 2.0
    return paired_bounds(half, half, n, alpha)[1]


def prompts_needed(b: float, c: float, n: int, margin: float, alpha: float = ALPHA, power: float = 0.8) -> int | None:
    """How many prompts of a *fresh* set prove the margin with that probability if both rates of flips stay as observed.

    None where no number does: the observed loss is not below the margin. (Adding prompts to a set that was looked at is a
    second look; a fresh set is not.)
    """
    if (b - c) / n >= margin:
        return None
    lost, won = b / n, c / n

    def proves(count: int) -> bool:
        return power_of(count, lost, won, margin, alpha) >= power

    least = math.ceil(math.log(alpha) / math.log1p(-margin)) if margin < 1 else 1
    high = least
    while not proves(high):
        high *= 2
        if high > 1 << 30:
            return None
    low = max(high // 2, least - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high


def power_of(n: int, lost: float, won: float, margin: float, alpha: float = ALPHA) -> float:
    """How probably n prompts prove the margin where shares `lost` and `won` of all prompts flip.

    The number won is taken at the middles of _PARTS equally probable parts of its distribution, the number lost is summed
    exactly; from _MANY expected losses on by the normal distribution.
    """
    normal = NormalDist()
    width = math.sqrt(n * won * (1.0 - won))
    share = min(lost / (1.0 - won), 1.0) if won < 1.0 else 0.0
    total = 0.0
    for part in range(_PARTS):
        # Skewed as a Poisson number is (Cornish and Fisher's first term); exact for none.
        z = normal.inv_cdf((part + 0.5) / _PARTS)
        c = max(round(n * won + width * z + (z * z - 1.0) / 6.0), 0) if won else 0
        most = _most_lost(c, n, margin, alpha)
        if most < 0:
            continue
        left, expected = n - c, (n - c) * share
        if expected < _MANY:
            total += _binomial_cdf(most, left, share)
        else:
            total += normal.cdf((most + 0.5 - expected) / math.sqrt(expected * (1.0 - share)))
    return total / _PARTS


def _most_lost(c: int, n: int, margin: float, alpha: float) -> int:
    """The most prompts that may be lost beside c won ones for `paired_bounds` to be within the margin; -1: none may."""
    critical = -NormalDist().inv_cdf(1.0 - alpha)
    low, high = 0, min(c + math.ceil(margin * n), n - c)
    # Score tests at the margin itself: its bound is below where the test of the margin is rejected.
    while low < high:
        middle = (low + high + 1) // 2
        if _score(middle, c, n, margin, _CORRECTION_HI) <= critical:
            low = middle
        else:
            high = middle - 1
    return low if low or paired_bounds(0, c, n, alpha)[1] <= margin else -1


def prompts_needed_for_mean(loss: float, most: float, margin: float, alpha: float = ALPHA) -> int | None:
    """How many prompts of a fresh set bring `mean_bounds` within the margin if losses stay small and near `loss`; None: none."""
    if loss >= margin:
        return None
    return math.ceil(math.log(alpha) / (math.log1p(-margin / most) - math.log1p(-max(loss, 0.0) / most)))


@lru_cache(maxsize=1 << 16)
def score_upper(b: float, c: float, n: int, alpha: float, correction: float) -> float:
    """The largest difference d of the two error rates whose score test is not rejected on the side of small b - c."""
    critical = -NormalDist().inv_cdf(1.0 - alpha)
    return _bisect(lambda d: _score(b, c, n, d, correction) <= critical, (b - c) / n, 1.0)


def _score(b: float, c: float, n: int, d: float, correction: float) -> float:
    """Tango's score statistic for H0: p_b - p_c = d, the nuisance p_c at its likelihood maximum under H0."""
    half_b = -b - c + (2 * n - b + c) * d
    root = math.sqrt(max(half_b * half_b + 8 * n * c * d * (1 - d), 0.0))
    p_c = (root - half_b) / (4 * n)
    variance = n * (2 * p_c + d * (1 - d))
    distance = b - c + correction - n * d
    if variance <= 0.0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _bisect(reached: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest point of [low, high] where a condition that turns true once is true; `high` where it never is."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if reached(middle):
            high = middle
        else:
            low = middle
    return high


def _binomial_cdf(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) <= k)."""
    import numpy as np

    if k < 0:
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    counts = np.arange(k + 1)
    logs = _log_choose(n)[: k + 1] + counts * math.log(p) + (n - counts) * math.log1p(-p)
    return float(min(np.exp(logs).sum(), 1.0))


@lru_cache(maxsize=64)
def _log_choose(n: int) -> NDArray[np.float64]:
    import numpy as np

    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    chosen: NDArray[np.float64] = logs[n] - logs - logs[::-1]
    return chosen
