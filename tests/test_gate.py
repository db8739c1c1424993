"""The gate's bounds: exact error rates summed over all outcomes, known values, and the verdicts that they allow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgekit import gate

ROOT = Path(__file__).resolve().parents[1]


def masses(n: int, p_b: float, p_c: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Outcomes (b, c) of n prompts that together have all but 1e-9 of the probability, and theirs."""
    top_b, top_c = (int(stats.binom.isf(1e-10, n, p)) + 1 for p in (p_b, p_c))
    b, c = (grid.ravel() for grid in np.meshgrid(np.arange(top_b + 1), np.arange(top_c + 1), indexing="ij"))
    kept = b + c <= n
    b, c = b[kept], c[kept]
    weight = stats.multinomial.pmf(np.stack([b, c, n - b - c], axis=1), n, [p_b, p_c, 1 - p_b - p_c])
    return b, c, weight


def rate(n: int, loss: float, flips: float, happens: Any) -> float:
    """The exact probability of an event under a true loss and flip rate."""
    b, c, weight = masses(n, (flips + loss) / 2, (flips - loss) / 2)
    hit = np.fromiter((happens(int(x), int(y)) for x, y in zip(b, c, strict=True)), bool, len(b))
    return float(weight[hit].sum())


@pytest.mark.parametrize("n", [20, 100, 300, 1000])
@pytest.mark.parametrize("margin", [0.005, 0.01, 0.03, 0.05])
def test_passes_at_the_margin_in_five_percent_at_most(n: int, margin: float) -> None:
    for flips in {margin, 1.05 * margin, 1.5 * margin, 0.01, 0.02, 0.04, 0.10}:
        if flips >= margin:
            assert rate(n, margin, flips, lambda b, c: gate.paired_bounds(b, c, n)[1] <= margin) <= gate.ALPHA


@pytest.mark.parametrize("n", [20, 100, 300, 1000])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.03])
def test_lower_bound_exceeds_the_loss_in_five_percent_at_most(n: int, loss: float) -> None:
    """Also of exchangeable pairs: with a true loss of 0, lo > 0 is rare."""
    for flips in {max(loss, 4 / n), 0.01, 0.02, 0.04, 0.10}:
        if flips >= loss:
            assert rate(n, loss, flips, lambda b, c: gate.paired_bounds(b, c, n)[0] > loss) <= gate.ALPHA


def test_has_power_where_nothing_is_lost() -> None:
    assert rate(1000, 0.0, 0.01, lambda b, c: gate.paired_bounds(b, c, 1000)[1] <= 0.01) >= 0.80


def test_the_errors_of_all_looks_sum_to_five_percent() -> None:
    looks = [gate.alpha_for(look) for look in range(1, 100_001)]
    assert looks == sorted(looks, reverse=True)
    assert 0.04999 < sum(looks) <= gate.ALPHA
    passes = rate(1000, 0.01, 0.04, lambda b, c: gate.paired_bounds(b, c, 1000, gate.alpha_for(2))[1] <= 0.01)
    assert 0 < passes <= gate.alpha_for(2)
    # A look that passed hands on what it had.
    assert gate.alpha_for(2, carried=gate.alpha_for(1)) == pytest.approx(gate.alpha_for(1) + gate.alpha_for(2))
    for stages in (1, 2, 3, 7):
        shares = [gate.stage_share(stage, stages) for stage in range(1, stages + 1)]
        assert shares == sorted(shares)
        assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("n", "margin"), [(200, 0.01), (300, 0.01), (500, 0.01), (1000, 0.01), (200, 0.02), (300, 0.03)]
)
def test_the_first_look_keeps_its_power(n: int, margin: float) -> None:
    """Of what it would have if it were the only one."""
    first, alone = (
        rate(n, 0.0, 0.01, lambda b, c, alpha=alpha: gate.paired_bounds(b, c, n, alpha)[1] <= margin)
        for alpha in (gate.FIRST_LOOK, gate.ALPHA)
    )
    assert first >= 0.99 * alone > 0


def test_zero_flips_have_the_exact_binomial_bound() -> None:
    for n in (1, 20, 1000):
        lo, hi = gate.paired_bounds(0, 0, n)
        assert hi == pytest.approx(1 - 0.05 ** (1 / n))
        assert lo == pytest.approx(-hi)
    assert gate.paired_bounds(0, 0, 0) == (-1.0, 1.0)


def test_bounds_are_ordered_and_near_tangos() -> None:
    for b, c, n in ((1, 0, 30), (5, 5, 1000), (40, 12, 1000), (0, 9, 200), (1000, 0, 1000), (0, 1000, 1000)):
        lo, hi = gate.paired_bounds(b, c, n)
        assert -1.0 <= lo <= (b - c) / n <= hi <= 1.0
        mirrored = gate.paired_bounds(c, b, n)
        assert mirrored[0] == pytest.approx(-hi, abs=2 / n)
    # Large counts: the score bound is Wald's but for terms of 1 / n.
    lo, hi = gate.paired_bounds(600, 500, 100_000)
    width = stats.norm.isf(0.05) * np.sqrt(1100) / 100_000
    assert hi == pytest.approx(0.001 + width, abs=2e-5)
    assert lo == pytest.approx(0.001 - width, abs=2e-5)


def test_more_losses_never_lower_the_bound() -> None:
    for c in (0, 1, 4):
        bounds = [gate.paired_bounds(b, c, 500)[1] for b in range(30)]
        assert bounds == sorted(bounds)


@pytest.mark.parametrize(("count", "n"), [(0, 50), (1, 50), (7, 1000), (50, 50)])
def test_proportion_bounds_are_clopper_and_pearsons(count: int, n: int) -> None:
    lo, hi = gate.proportion_bounds(count, n)
    assert lo == pytest.approx(stats.beta.ppf(0.05, count, n - count + 1) if count else 0.0, abs=1e-9)
    assert hi == pytest.approx(stats.beta.isf(0.05, count + 1, n - count) if count < n else 1.0, abs=1e-9)


@pytest.mark.parametrize(("rate_", "size"), [(0.003, 2.0), (0.01, 1.0), (0.05, 0.2), (1.0, 0.004)])
def test_mean_bounds_hold_for_rare_and_common_losses(rate_: float, size: float) -> None:
    numbers = np.random.default_rng(7)
    above = below = 0
    for _ in range(300):
        lo, hi = gate.mean_bounds(np.where(numbers.random(500) < rate_, size, 0.0), 2.0)
        above += hi < rate_ * size
        below += lo > rate_ * size
    # 5 % and three Monte-Carlo standard errors.
    assert above / 300 <= 0.088
    assert below / 300 <= 0.088


def test_mean_bound_is_tight_enough_for_good_embeddings() -> None:
    losses = np.random.default_rng(0).gamma(2.0, 0.0013, 1000)
    lo, hi = gate.mean_bounds(losses, 2.0)
    assert lo <= losses.mean() <= hi <= 0.01
    assert gate.mean_bounds(np.zeros(1000), 2.0)[1] == pytest.approx(2 * gate.floor(1000))
    assert gate.mean_bounds(np.array([2.0]), 2.0)[1] == 2.0


def clusters(numbers: np.random.Generator, kind: str, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sums and counts of prompts of 4 to 63 tokens, whose losses per token have the mean 1."""
    counts = numbers.integers(4, 64, n).astype(float)
    losses = {
        "normal": lambda: numbers.normal(1.0, 0.6, n),
        "exponential": lambda: numbers.exponential(1.0, n),
        "log-normal": lambda: numbers.lognormal(-0.5, 1.0, n),
    }[kind]()
    return counts * losses, counts


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("kind", ["normal", "exponential", "log-normal"])
def test_ratio_bounds_hold_where_few_prompts_have_most_of_the_loss(kind: str, n: int) -> None:
    numbers = np.random.default_rng([n, len(kind)])
    bounds = np.array([gate.ratio_bounds(*clusters(numbers, kind, n)) for _ in range(300)])
    # 5 % and three Monte-Carlo standard errors.
    assert (bounds[:, 2] < 1.0).mean() <= 0.088
    assert (bounds[:, 1] > 1.0).mean() <= 0.088
    # And it is no wider than it must be: half of all bounds of 100 prompts are within 1.5 times the truth.
    assert np.median(bounds[:, 2]) < 1.5


def test_ratio_bounds_of_equal_losses_and_of_few_clusters() -> None:
    ones = np.ones(100)
    assert gate.ratio_bounds(0.25 * ones, ones) == (0.25, 0.25, 0.25)
    assert gate.ratio_bounds(0 * ones, ones, share=True) == (0.0, 0.0, gate.floor(100))
    # Below 100 clusters nothing passes, from 20 on a loss may be proven.
    assert gate.ratio_bounds(0.25 * ones[:99], ones[:99]) == (0.25, 0.25, np.inf)
    assert gate.ratio_bounds(0.25 * ones[:19], ones[:19]) == (0.25, -np.inf, np.inf)
    ratio, lo, hi = gate.ratio_bounds(np.arange(100.0), np.arange(1.0, 101.0))
    assert ratio == pytest.approx(4950 / 5050)
    assert lo < ratio < hi
    # Of several clusters the counts weigh: a long text is more of the mean, and no more evidence.
    assert gate.ratio_bounds(np.r_[10.0, 0 * ones], np.r_[1000.0, ones])[0] == pytest.approx(10 / 1100)
    # One cluster that loses everything: what Poisson's bound leaves possible (4.7 of 100), roughly.
    assert 3.5 < 100 * gate.ratio_bounds(np.eye(100)[0], ones)[2] < 5.0


@pytest.mark.parametrize("look", range(2, 12, 3))
def test_later_looks_have_the_exact_bound(look: int) -> None:
    """Of 4,000 resamples none is rarer than one in 4,000, so a rarer error needs a bound of losses that cannot be larger."""
    losses, counts, alpha = np.random.default_rng(look).exponential(size=1000), np.ones(1000), gate.alpha_for(look)
    exact = gate.ratio_bounds(losses, counts, alpha, most=10.0)[2]
    assert exact >= gate.mean_bounds(losses, 10.0, alpha)[1] > gate.ratio_bounds(losses, counts)[2]
    assert exact < 1.25
    assert gate.ratio_bounds(losses, counts, alpha)[2] == np.inf
    # Clusters that may be longer than any that was drawn, or losses that may be larger, prove less.
    assert gate.ratio_bounds(losses, counts, alpha, most=10.0, longest=2.0)[2] > exact
    assert gate.ratio_bounds(losses, counts, alpha, most=20.0)[2] > exact
    assert gate.ratio_bounds(losses, counts, alpha)[1] < gate.ratio_bounds(losses, counts)[1]


def test_quantile_bounds_need_59_runs_for_p95() -> None:
    assert gate.runs_needed(0.95) == 59
    assert gate.quantile_bounds(range(58), 0.95)[1] is None
    assert gate.quantile_bounds(range(59), 0.95)[1] == 58
    assert gate.quantile_bounds([], 0.95) == (None, None)


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_quantile_bounds_hold(q: float) -> None:
    numbers = np.random.default_rng(3)
    truth = stats.lognorm.ppf(q, 1.0)
    bounds = [gate.quantile_bounds(numbers.lognormal(size=100).tolist(), q) for _ in range(400)]
    assert np.mean([lo is not None and lo > truth for lo, _ in bounds]) <= 0.083
    assert np.mean([hi is not None and hi < truth for _, hi in bounds]) <= 0.083


def test_quantile_is_a_time_that_was_measured() -> None:
    assert gate.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert gate.quantile(range(1, 101), 0.95) == 95


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [(-0.003, 0.01, "pass"), (-0.01, 0.02, "not proven"), (0.01, 0.05, "not proven"), (0.011, 0.08, "fail")],
)
def test_verdict(lo: float, hi: float, expected: str) -> None:
    assert gate.verdict(lo, hi, 0.01) == expected


@pytest.mark.parametrize("n", [100, 300, 1000])
@pytest.mark.parametrize("loss", [0.0, 0.5, 0.9])
def test_a_good_artifact_fails_in_five_percent_at_most(n: int, loss: float) -> None:
    for margin, flips in ((0.01, 0.05), (0.01, 0.02), (0.03, 0.08)):
        fails = rate(
            n, loss * margin, flips, lambda b, c, m=margin: gate.verdict(*gate.paired_bounds(b, c, n), m) == "fail"
        )
        assert fails <= gate.ALPHA


def test_smallest_margin_and_prompts_needed_agree() -> None:
    assert gate.smallest_margin(1000, 0.0) == pytest.approx(gate.floor(1000))
    assert gate.smallest_margin(1000, 0.01) < gate.smallest_margin(1000, 0.03) < gate.smallest_margin(1000, 0.10)
    assert gate.prompts_needed(0, 0, 50, 0.01) == 299
    assert gate.prompts_needed(20, 5, 1000, 0.01) is None


@pytest.mark.parametrize(
    ("b", "c", "n", "margin"),
    [(5, 5, 1000, 0.01), (2, 0, 300, 0.01), (1, 0, 300, 0.01), (3, 1, 300, 0.02), (20, 18, 500, 0.02)],
)
def test_prompts_needed_prove_the_margin_in_four_cases_of_five(b: int, c: int, n: int, margin: float) -> None:
    """Also where nothing was gained. The power is no smooth function of the number: with few losses it goes in steps."""
    needed = gate.prompts_needed(b, c, n, margin)
    assert needed is not None
    shares = [b / n, c / n, 1 - (b + c) / n]
    drawn, times = np.unique(np.random.default_rng(1).multinomial(needed, shares, 2000), axis=0, return_counts=True)
    proven = [gate.paired_bounds(int(x), int(y), needed)[1] <= margin for x, y, _ in drawn]
    power = times[proven].sum() / 2000
    # Three Monte-Carlo standard errors below, one lost prompt's step above.
    assert 0.773 <= power <= 0.92
    assert gate.power_of(needed, b / n, c / n, margin) == pytest.approx(power, abs=0.03)


def test_small_benchmark_meets_its_goals() -> None:
    script = ROOT / "benchmarks" / "gate.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--resamplings", "1000", "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert all(row["met"] for row in json.loads(ended.stdout)["rows"])
