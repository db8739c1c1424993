"""Ratios of two artifacts that took turns: what is reported of equal ones, and what is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.verify.latency import t_quantile
from edgekit.verify.paired import PAIRS, ROUNDS, interval, log_ratio, verdict

EACH = PAIRS // ROUNDS


def rounds(numbers: np.random.Generator, *, ratio: float = 1.0, shift: float = 0.02) -> list[float]:
    """Rounds of a bad machine: slow phases that autocorrelate (.9), bursts, and a shift of each process of its own."""
    slow = numbers.standard_normal((ROUNDS, EACH))
    for index in range(1, EACH):
        slow[:, index] = 0.9 * slow[:, index - 1] + math.sqrt(1 - 0.81) * slow[:, index]

    def side(factor: float) -> NDArray[np.float64]:
        own = shift * numbers.standard_normal((ROUNDS, 1))
        bursts = np.where(numbers.random((ROUNDS, EACH)) < 0.05, 1.0, 0.0)
        times: NDArray[np.float64] = factor * np.exp(
            0.3 * slow + own + bursts + 0.1 * numbers.standard_normal((ROUNDS, EACH))
        )
        return times

    first, second = side(ratio).tolist(), side(1.0).tolist()
    return [log_ratio(list(zip(*pair, strict=True))) for pair in zip(first, second, strict=True)]


def test_equal_ones_are_reported_in_one_of_twenty() -> None:
    """Whatever the pairs are like: a t of 400 pairs, which takes them for independent, reports far more of these."""
    numbers, draws = np.random.default_rng(0), 800
    wrong = sum(verdict(interval(rounds(numbers, shift=0.1))[1]) != "not proven" for _ in range(draws))
    assert wrong / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_ten_percent_are_found() -> None:
    numbers = np.random.default_rng(1)
    found = [verdict(interval(rounds(numbers, ratio=1 / 1.1))[1]) for _ in range(100)]
    assert found.count("slower") >= 0.9 * len(found)
    assert "faster" not in found


@pytest.mark.parametrize(
    ("bounds", "word"), [((1.01, 1.2), "faster"), ((0.8, 0.99), "slower"), ((0.99, 1.2), "not proven")]
)
def test_the_verdict_is_of_the_second(bounds: tuple[float, float], word: str) -> None:
    assert verdict(bounds) == word


def test_the_interval_is_students() -> None:
    """2.262 and 2.571: t tables, 97.5 %, 9 and 5 degrees of freedom."""
    assert t_quantile(0.975, 9) == pytest.approx(2.262, abs=2e-3)
    assert t_quantile(0.975, 5) == pytest.approx(2.571, abs=2e-3)
    ratio, (low, high) = interval([math.log(1.2), math.log(1.3), math.log(1.25)])
    assert ratio == pytest.approx(1.2493, abs=1e-3)
    assert low < 1.2
    assert high > 1.3
    assert interval([0.5, 0.5]) == (math.exp(0.5), (math.exp(0.5), math.exp(0.5)))
