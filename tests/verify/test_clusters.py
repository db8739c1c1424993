"""Bounds over prompts in groups: the error rates where groups flip together, and independent prompts' bounds where none do."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit import gate
from edgekit.verify import clusters


def test_groups_of_one_have_the_bounds_of_independent_prompts() -> None:
    lost, won = np.arange(300) < 9, (np.arange(300) >= 9) & (np.arange(300) < 13)
    for groups in ([None] * 300, [str(row) for row in range(300)]):
        assert clusters.paired_bounds(lost, won, groups) == gate.paired_bounds(9, 4, 300)
        assert clusters.proportion_bounds(lost, groups) == gate.proportion_bounds(9, 300)
    assert clusters.indices(["a", None, "a", None, "b"]).tolist() == [0, 1, 0, 2, 3]


def test_groups_that_never_flip_are_as_many_as_there_are_groups() -> None:
    """1,000 prompts in 100 groups of ten: what never showed in 100 groups is still possible in 3 % of them."""
    groups = [str(row // 10) for row in range(1000)]
    none = np.zeros(1000, bool)
    assert clusters.paired_bounds(none, none, groups)[1] == pytest.approx(gate.floor(100))
    assert clusters.proportion_bounds(none, groups) == pytest.approx((0.0, gate.floor(100)))
    # One group proves nothing.
    assert clusters.paired_bounds(none, none, ["one"] * 1000) == (-1.0, 1.0)
    assert clusters.proportion_bounds(none, ["one"] * 1000) == (0.0, 1.0)


def test_means_of_groups_are_bounded_by_their_sums() -> None:
    losses = np.random.default_rng(0).gamma(2.0, 0.0013, 1000)
    plain, alone = gate.mean_bounds(losses, 2.0), clusters.mean_bounds(losses, [None] * 1000, 2.0)
    assert alone == pytest.approx(plain)
    grouped = clusters.mean_bounds(losses, [str(row // 10) for row in range(1000)], 2.0)
    assert grouped[0] < plain[0] < losses.mean() < plain[1] < grouped[1]
    assert clusters.mean_bounds(np.zeros(1000), [str(row // 10) for row in range(1000)], 2.0)[1] == pytest.approx(
        2 * gate.floor(100)
    )


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("groups", "size", "flips", "margin"), [(100, 10, 0.2, 0.05), (300, 5, 0.08, 0.03)])
def test_prompts_that_flip_together_pass_at_the_margin_in_five_percent_at_most(
    groups: int, size: int, flips: float, margin: float, alike: float
) -> None:
    """Each prompt does what its group does with probability `alike`, and its own otherwise; sizes are 1 to 2 size - 1."""
    numbers = np.random.default_rng([groups, round(10 * alike)])
    shares = [(flips + margin) / 2, (flips - margin) / 2, 1 - flips]
    passed = failed = naive = 0
    for _ in range(300):
        sizes = numbers.integers(1, 2 * size, groups)
        place = np.repeat(np.arange(groups), sizes)
        together, own = numbers.choice(3, groups, p=shares)[place], numbers.choice(3, len(place), p=shares)
        change = np.where(numbers.random(len(place)) < alike, together, own)
        lo, hi = clusters.paired_bounds(change == 0, change == 1, place.tolist())
        passed += hi <= margin
        failed += lo > margin
        naive += gate.paired_bounds(int((change == 0).sum()), int((change == 1).sum()), len(place))[1] <= margin
    # 5 % and three Monte-Carlo standard errors.
    assert passed / 300 <= 0.088
    assert failed / 300 <= 0.088
    if alike == 1.0:
        assert naive / 300 > 0.15, "without groups these prompts pass far too often"
