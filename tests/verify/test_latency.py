"""Bounds over processes: the factors as SciPy has them, and how often a pass is false where calls of a process are alike."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import device_latency
import disturbances
import numpy as np
import pytest
from rows import Rows
from scipy import stats

from edgekit.verify import latency


@pytest.mark.parametrize("n", [5, 10, 40])
@pytest.mark.parametrize("q", [0.75, 0.95, 0.99])
@pytest.mark.parametrize("alpha", [0.05, 0.025, 0.003])
def test_tolerance_factors_are_the_noncentral_t_ones(n: int, q: float, alpha: float) -> None:
    root = math.sqrt(n)
    wanted = stats.nct.ppf(1 - alpha, n - 1, NormalDist().inv_cdf(q) * root) / root
    assert latency.tolerance_factor(n, q, alpha) == pytest.approx(wanted, rel=1e-5)


def test_bounds_are_of_the_levels_logarithms() -> None:
    levels = [10.0, 11.0, 12.0, 9.0, 10.5]
    lo, hi = latency.bounds(levels, 0.95, 0.05)
    logs = np.log(levels)
    assert hi == pytest.approx(np.exp(logs.mean() + 4.2027 * logs.std(ddof=1)), rel=1e-4)
    assert lo == pytest.approx(np.exp(logs.mean() - stats.t.ppf(0.95, 4) * logs.std(ddof=1) / math.sqrt(5)))
    assert lo < latency.centre(levels) < hi
    assert latency.bounds(levels[:4], 0.95) == (None, None)
    assert latency.bounds([7.0] * 5, 0.5) == (pytest.approx(7.0), pytest.approx(7.0))


def test_levels_of_few_calls_are_not_too_low() -> None:
    assert latency.level(list(range(1, 21)), 0.95) == 20
    assert latency.level(list(range(1, 201)), 0.95) == 191
    assert latency.level([3.0], 0.95) == 3.0
    assert latency.level([1.0, 2.0, 3.0], 0.5) == 2.0


def test_alphas_sum_to_alpha() -> None:
    assert latency.alpha_for(1) == 0.025
    assert sum(latency.alpha_for(place) for place in range(1, 60)) == pytest.approx(0.05)


def test_looks_are_fixed_and_share_alpha() -> None:
    """Lan and DeMets' alpha_1* at 2/3 and 1: 2 (1 - Phi(1.96 / sqrt(2/3))) = 0.0164 of 0.05."""
    assert latency.looks(latency.PROCESSES) == (8,)
    assert latency.looks(12) == (8, 12)
    assert latency.looks(16) == (8, 12, 16)
    assert latency.looks(64)[0] == 8
    assert latency.looks(64)[-1] == 64
    assert len(latency.looks(64)) == 4
    assert latency.spending(8) == {8: pytest.approx(1.0)}
    assert latency.spending(12)[8] == pytest.approx(0.0164 / 0.05, abs=1e-3)
    for most in (5, 8, 12, 16, 40, 64):
        assert sum(latency.spending(most).values()) == pytest.approx(1.0)
    assert latency.alpha_at(8, 8, 1) == pytest.approx(0.025)
    assert latency.alpha_at(8, 12, 2) == pytest.approx(0.0125 * latency.spending(12)[8])
    assert latency.alpha_at(9, 12, 1) == latency.alpha_at(12, 12, 1)


def test_calls_are_as_many_as_the_quantile_needs() -> None:
    assert latency.calls_needed(0.95, 8) == 19
    assert latency.calls_needed(0.99, 8) == 99
    for most, q in ((8, 0.95), (8, 0.99), (16, 0.99), (64, 0.99)):
        n = latency.calls_needed(q, most)
        assert math.ceil(q * (n + 1)) <= n
        alpha = latency.alpha_at(8, most, 1)
        assert q ** (8 * n) <= alpha, "order statistics of the first look bound it"
    few = [[1.0] * (latency.calls_needed(0.99, 8) // 2)] * 8
    assert latency.certified(few, 0.999, 0.025)[1] is None


def test_a_certified_bound_is_the_wider_of_two() -> None:
    """Levels that agree say nothing of calls that are slow now and then."""
    calls = [[1.0] * 191 + [5.0] * 9] * 8
    assert latency.bounds([latency.level(times, 0.95) for times in calls], 0.95)[1] == pytest.approx(1.0)
    lo, hi = latency.certified(calls, 0.95)
    assert (lo, hi) == (pytest.approx(1.0), 5.0), "4.5 % of 1,600 calls may be 5 % of all"


def test_a_shift_between_processes_passes_at_the_limit_no_more_than_it_may() -> None:
    """A clock or a memory layout of its own shifts each process by 5 %: the p95 is of all of them."""
    numbers = np.random.default_rng(0)
    p95 = math.exp(NormalDist().inv_cdf(0.95) * math.hypot(0.05, 0.02))
    passed, of_one = 0, 0
    for _ in range(400):
        shifts = 0.05 * numbers.standard_normal((latency.FEWEST, 1))
        calls = np.exp(shifts + 0.02 * numbers.standard_normal((latency.FEWEST, 200)))
        levels = [latency.level(row.tolist(), 0.95) for row in calls]
        hi = latency.bounds(levels, 0.95)[1]
        passed += hi is not None and hi <= p95
        of_one += np.sort(calls[0])[195] <= p95  # what order statistics of one process take for a bound
    assert passed / 400 < 0.05
    assert of_one / 400 > 0.5


def test_small_benchmark_meets_its_goals() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "benchmarks/gate_latency.py", "--simulations", "40", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(ended.stdout)["rows"]
    assert all(row["met"] for row in rows)
    assert any(row["one_process"] > 0.4 for row in rows), "what independent calls would allow"


def test_real_times_resampled_in_blocks_are_covered() -> None:
    """Constructed times here; real ones in the benchmark."""
    numbers = np.random.default_rng(0)
    shifts = 0.03 * numbers.standard_normal((40, 1))
    times = np.exp(shifts + 0.05 * numbers.standard_normal((40, 60))).tolist()
    found = device_latency.measure_coverage(times, 100, numbers)
    assert found["met"]
    assert found["coverage"] >= 0.94
    assert found["ends_early_at_2x"] > 0.9, "the first look suffices where the limit is far"
    block = device_latency.resample(np.arange(600.0).reshape(10, 60), 1, numbers)[0]
    assert list(np.diff(block[:10])) == [1.0] * 9


def test_an_artifact_that_was_swapped_after_the_build_is_found(tmp_path: Path) -> None:
    """For real: another file lies where the probe looks for the one that was built."""
    question = disturbances.make_question(tmp_path)
    for seed in (0, 1):  # between two processes, before the first
        (reason,) = disturbances.swapped(question, random.Random(seed))
        assert "another sha256 than this one: nothing that it answered counts" in reason


def test_planted_runs_are_counted_and_other_load_judges_nothing() -> None:
    """95 of 100 with the right reason; quiet runs that other programs disturbed are no false alarms, and no proof either."""
    busy = "other programs worked on 1.2 cores beside it"
    kinds = [kind for kind, (_, wanted) in disturbances.KINDS.items() if wanted]
    right = {kind: [disturbances.KINDS[kind][1][0]] for kind in kinds}

    def judge(lost: int, alarms: list[str]) -> dict[str, dict[str, object]]:
        planted = [(kind, right[kind]) for kind in [*kinds] * 17][:100]
        planted[:lost] = [(kind, []) for kind, _ in planted[:lost]]
        quiet = [("quiet", [reason]) for reason in alarms] + [("quiet", [])] * (20 - len(alarms))
        return device_latency.judge_planted(iter([*planted, *quiet]), whole=True)

    assert (judge(5, [])["planted"]["met"], judge(6, [])["planted"]["met"]) == (True, False)
    assert judge(0, [busy])["quiet"]["met"]
    loud, wrong = judge(0, [busy] * 2)["quiet"], judge(0, [busy, "the governor changed"])["quiet"]
    assert (loud["met"], wrong["met"]) == (False, False)
    assert (loud["why"], wrong.get("why")) == ("not judged: other load beside 2 of 20 runs, and nothing else", None)


def test_a_benchmark_that_was_stopped_goes_on_behind_its_last_row(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    assert Rows(path).take("a 0", lambda: {"ms": (1.5, 2.0)}) == {"ms": [1.5, 2.0]}
    with path.open("a") as stream:
        stream.write('{"key": "a 1", "row": {"m')
    rows = Rows(path)
    assert rows.take("a 0", lambda: pytest.fail("measured twice")) == {"ms": [1.5, 2.0]}
    assert rows.take("a 1", lambda: {"ms": 3}) == {"ms": 3}
    assert Rows(path).take("a 1", lambda: pytest.fail("not kept")) == {"ms": 3}
