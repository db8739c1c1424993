"""House rule 8: which machine may vouch for a target's speed; and times that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.target import Budget, Hardware
from edgekit.verify.checks import check_budget, check_plausible, check_provider
from edgekit.verify.hardware import impossibilities, mismatches
from edgekit.verify.measurements import Measurements

SPEED = {"bandwidth_gbs": 11.0, "int8_gops": 120.0, "fp32_gflops": 32.0}
PI = Hardware(
    arch="aarch64", cpu="Cortex-A76", cores=4, features=["asimddp"], memory_mb=4096, sources=[], bandwidth_gbs=11.2, fp32_gflops=32.1
)  # fmt: skip
BOARD = {"arch": "aarch64", "cpu": "Cortex-A76", "cores": 4, "features": ["asimd", "asimddp"]}
FLOOR = replace(PI, generic=True, cpu="any", int8_gops=110.0)


def test_the_board_itself_matches() -> None:
    assert mismatches(PI, BOARD, SPEED, 4) == []


@pytest.mark.parametrize(
    ("device", "speed", "says"),
    [
        ({"arch": "x86_64"}, {}, "arch x86_64, not aarch64"),
        ({"cpu": "Cortex-A72"}, {}, "cpu Cortex-A72"),
        ({"cores": 2}, {}, "2 cores"),
        ({"features": ["asimd"]}, {}, "without asimddp"),
        ({}, {"bandwidth_gbs": 30.0}, "bandwidth"),
        ({}, {"fp32_gflops": 0.3}, "fp32 throughput"),
    ],
)
def test_another_machine_does_not(device: dict[str, Any], speed: dict[str, float], says: str) -> None:
    (why,) = mismatches(PI, BOARD | device, SPEED | speed, 4)
    assert says in why


def test_a_target_without_speeds_is_matched_by_nothing() -> None:
    (why,) = mismatches(replace(PI, bandwidth_gbs=None, fp32_gflops=None), BOARD, SPEED, 4)
    assert "states no measured speed" in why


@pytest.mark.parametrize(
    ("stated", "told", "same"),
    [
        ("Intel N100", "Intel(R) N100", True),
        ("Intel Core i7-10750H", "Intel(R) Core(TM) i7-10750H CPU @ 2.60GHz", True),
        ("AMD EPYC", "AMD EPYC", True),
        ("Cortex-A76", "Cortex-A72", False),
    ],
)
def test_cpu_names_are_spelt_in_many_ways(stated: str, told: str, same: bool) -> None:
    assert (mismatches(replace(PI, cpu=stated), BOARD | {"cpu": told}, SPEED, 4) == []) is same


def test_a_floor_is_vouched_for_by_a_machine_at_or_below_it() -> None:
    other = BOARD | {"cpu": "Cortex-A55", "cores": 8, "features": ["asimd"]}
    assert mismatches(FLOOR, other, SPEED, 4) == []
    assert "8 threads" in mismatches(FLOOR, other, SPEED, None)[0]
    assert "above 1.2 x the floor" in mismatches(FLOOR, other, SPEED | {"int8_gops": 140.0}, 4)[0]
    assert "does not state int8_gops" in mismatches(replace(FLOOR, int8_gops=None), other, SPEED, 4)[0]
    assert "accelerator" in mismatches(replace(FLOOR, accelerator="a GPU"), other, SPEED, 4)[0]


def measurements(**work: Any) -> Measurements:
    facts = {"provider": "CPUExecutionProvider", "matmul_ops": {"CPUExecutionProvider": 1e9}, "weight_bytes": 20 << 20}
    return Measurements(
        device=BOARD,
        speed=SPEED,
        work=facts | work,
        runtime={},
        available=[],
        shape={"batch": 1, "sequence": 64, "threads": 2},
        load_ms=1.0,
        first_ms=1.0,
        times=[1.0],
        real_times=[1.0],
        real_lengths=[1],
        peak_mb=None,
        busy=None,
        outputs=np.zeros((1, 1), np.float32),
    )


def test_a_busy_machine_is_told() -> None:
    slow = replace(measurements(), times=[50.0] * 100, busy=9.0)
    (check,) = check_budget(Budget(p95_ms=10), slow, 1, [], [])
    assert check.verdict == "fail"
    assert str(check.remedy).startswith("the machine was busy (load 9.0 on 4 cores)")
    (check,) = check_budget(Budget(p95_ms=10), replace(slow, busy=2.2), 1, [], [])
    assert str(check.remedy).startswith("50 ms, 5.00 x the limit, at batch 1, 64 tokens, 2 threads")


def test_too_few_calls_prove_no_p95() -> None:
    (check,) = check_budget(Budget(p95_ms=10), replace(measurements(), times=[1.0] * 58), 1, [], [])
    assert check.verdict == "not proven"
    assert "needs 59" in str(check.remedy)


def test_impossible_times_prove_nothing() -> None:
    found = impossibilities(measurements(), 1.0)
    (check,) = check_budget(Budget(p95_ms=10), replace(measurements(), times=[1.0] * 100), 1, [], found)
    assert check.verdict == check_plausible(found).verdict == "not proven"
    assert "Gop/s" in str(check_plausible(found).detail)


@pytest.mark.parametrize(
    ("ops", "verdict"),
    [({"CUDA": 90.0, "CPU": 10.0}, "pass"), ({"CUDA": 70.0, "CPU": 30.0}, "fail"), ({"CPU": 1.0}, "fail")],
)
def test_a_silent_fallback_fails(ops: dict[str, float], verdict: str) -> None:
    check = check_provider("CUDA", replace(measurements(matmul_ops=ops), available=["CUDA", "CPU"]))
    assert check.verdict == verdict
    assert (verdict == "pass") == (check.remedy is None)
    assert check_provider("QNN", replace(measurements(matmul_ops=ops), available=["CPU"])).verdict == "not proven"


def test_times_below_what_the_machine_can_do_are_flagged() -> None:
    # 10^9 operations at 2 x 120 Gop/s take 4.2 ms.
    assert impossibilities(measurements(), 5.0) == []
    assert "Gop/s" in impossibilities(measurements(), 1.0)[0]
    assert "GB/s" in impossibilities(measurements(weight_bytes=1 << 30, matmul_ops={}), 5.0)[0]
    assert impossibilities(measurements(provider="CUDAExecutionProvider"), 0.1) == []
