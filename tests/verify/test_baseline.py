"""An artifact against an earlier one: what is slower or less accurate is found, and what is chance is not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.history import Compared, Entry
from edgekit.verify.baseline import Against, Change, against, sign_test, slower_than
from tests.test_history import entry, right

LATER = "2026-02-01T10:00:00.000+00:00"


def later(ms: float = 10.0, **changes: Any) -> Entry:
    return entry(ms, "b" * 64, LATER, **changes)


def judged(new: Entry, *old: Entry) -> Against:
    found = against(new, old or (entry(),))
    assert found is not None
    return found


def change(found: Against, name: str) -> Change:
    return next(one for one in found.changes if one.name == name)


@pytest.mark.parametrize(
    ("ms", "verdict"), [(8.0, "pass"), (10.0, "pass"), (10.4, "pass"), (10.6, "fail"), (12.0, "fail")]
)
def test_more_than_five_percent_slower_is_found(ms: float, verdict: str) -> None:
    found = judged(later(ms))
    assert found.verdict == verdict
    assert change(found, "p50_ms").ratio == pytest.approx(ms / 10.0)
    assert ("p50_ms" in found.reason) is (verdict == "fail")


def test_what_is_within_the_noise_is_not() -> None:
    """Processes of 5 and of 15 ms: ten percent more of that is chance."""
    wide = tuple([5.0, 15.0] * 4)
    found = judged(later(p50_ms=tuple(1.1 * ms for ms in wide)), entry(p50_ms=wide))
    assert change(found, "p50_ms").verdict == "pass"


def test_chance_is_taken_for_slower_in_few_cases() -> None:
    """With processes that differ by 10 %, one of twenty at most is taken for slower, and for 5 % slower still fewer."""
    numbers = np.random.default_rng(0)
    drawn = np.exp(0.1 * numbers.standard_normal((800, 2, 8)))
    below = [slower_than(new.tolist(), old.tolist())[1] for new, old in drawn]
    assert np.mean(np.array(below) > 1.0) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(below))


def test_what_proves_nothing_is_not_proven() -> None:
    few = judged(later(30.0, p50_ms=(30.0,)))
    assert (few.verdict, "1 processes against 8" in few.reason) == ("not proven", True)
    busy = judged(later(30.0, disturbed=("another process took the core",)))
    assert (busy.verdict, "another process took the core" in busy.reason) == ("not proven", True)


def test_all_measurements_of_the_artifact_before_count_and_no_other() -> None:
    oldest = entry(1.0, "0" * 64, "2025-01-01T10:00:00.000+00:00")
    first, second = (entry(at=f"2026-01-0{day}T10:00:00.000+00:00", p50_ms=(10.0,) * 4) for day in (1, 2))
    assert judged(later(10.0), oldest, first, second).verdict == "pass"
    assert judged(later(11.0), oldest, first, second).verdict == "fail"
    assert against(later(), [replace(entry(), recipe="other")]) is None
    assert against(later(), [replace(later(), at="2026-01-03T10:00:00.000+00:00")]) is None, "the same artifact"


@pytest.mark.parametrize(
    ("score", "flips", "verdict"), [(0.93, 10, "pass"), (0.95, 10, "pass"), (0.925, 10, "pass"), (0.915, 10, "fail"), (0.90, 300, "fail"), (0.92, 300, "pass")]
)  # fmt: skip
def test_fewer_right_answers_of_the_same_prompts(score: float, flips: int, verdict: str) -> None:
    """5 of 1000 lost among 20 that may differ is chance (p = .19), 15 are not; nor are 30 of 310, and 10 of 310 are."""
    assert judged(later(comparisons=(right(score, flips=flips),))).verdict == verdict


def test_fewer_right_answers_of_other_prompts() -> None:
    other = {"prompts": "q" * 64}
    assert judged(later(comparisons=(right(0.915),), **other)).verdict == "pass"
    assert judged(later(comparisons=(right(0.88),), **other)).verdict == "fail"


@pytest.mark.parametrize(("lo", "verdict"), [(0.01, "pass"), (0.03, "fail")])
def test_a_mean_that_is_larger_beyond_its_interval(lo: float, verdict: str) -> None:
    old = Compared(
        reference="student", metric="kl", score=None, reference_score=None, lo=0.0, bound=0.02, prompts=300, flips=0
    )
    found = judged(later(comparisons=(replace(old, lo=lo, bound=0.05),)), entry(comparisons=(old,)))
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("lost", "unlike", "chance"), [(5, 5, 1 / 32), (6, 8, 9 / 256), (0, 10, 1.0), (-3, 10, 1.0), (5, 6, 8 / 128), (3, 3, 1 / 8)]
)  # fmt: skip
def test_the_sign_test_is_exact(lost: int, unlike: int, chance: float) -> None:
    assert sign_test(lost, unlike) == pytest.approx(chance)
