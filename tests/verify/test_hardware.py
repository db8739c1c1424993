"""House rule 8: which machine may vouch for a target's speed; and times that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.evidence import Rates, RuntimeVersion, Shape
from edgekit.target import Budget, Gpu, Hardware
from edgekit.verify.budgets import Conditions, check_budget
from edgekit.verify.checks import check_plausible
from edgekit.verify.hardware import impossibilities, mismatches, scales, tolerances
from edgekit.verify.measurements import Measurements, Speed, Timed

SPEED = {"bandwidth_gbs": 11.0, "int8_gops": 120.0, "fp32_gflops": 32.0}
PI = Hardware(
    arch="aarch64", cpu="Cortex-A76", cores=4, features=["asimddp"], memory_mb=4096, sources=[], bandwidth_gbs=11.2, fp32_gflops=32.1
)  # fmt: skip
BOARD = {"arch": "aarch64", "cpu": "Cortex-A76", "cores": 4, "features": ["asimd", "asimddp"], "clock_ghz": None}
RATES = Rates(decode=100.0, prefill=1000.0)
SPOKEN = Speed(ttft_ms={}, ttft_cold_ms={}, tokens_per_second=RATES, threads={}, memory_mb={})
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


@pytest.mark.parametrize("hardware", [PI, FLOOR], ids=["one machine", "a floor"])
@pytest.mark.parametrize("speed", [{"fp32_gflops": 1.9}, {"int8_gops": 7.6}], ids=str)
def test_an_emulated_board_is_refused_by_its_speed(hardware: Hardware, speed: dict[str, float]) -> None:
    """Although its CPU, features and cores are the target's: a fifth of 2.4 GHz x 4 floats (16 bytes) is below any real core."""
    hardware = replace(hardware, clock_ghz=2.4)
    assert not [why for why in mismatches(hardware, BOARD, SPEED, 4) if "emulated" in why]
    (why,) = mismatches(hardware, BOARD, SPEED | speed, 4)
    assert "where 4 core(s) of 2.4 GHz reach" in why
    assert why.endswith("emulated")


def test_a_target_without_speeds_is_matched_by_nothing() -> None:
    (why,) = mismatches(replace(PI, bandwidth_gbs=None, fp32_gflops=None), BOARD, SPEED, 4)
    assert "states no measured speed" in why


@pytest.mark.parametrize(
    ("stated", "told", "same"),
    [
        ("Intel N100", "Intel(R) N100", True),
        ("Intel Core i7-10750H", "Intel(R) Core(TM) i7-10750H CPU @ 2.60GHz", True),
        ("AMD EPYC", "AMD EPYC", True),
        ("Intel Core i5-1135G7", "11th Gen Intel(R) Core(TM) i5-1135G7 @ 2.40GHz", True),
        ("AMD Ryzen 5 5600", "AMD Ryzen 5 5600 6-Core Processor", True),
        ("AMD Ryzen 7 5800H", "AMD Ryzen 7 5800H with Radeon Graphics", True),
        ("Cortex-A76 + Cortex-A55", "Cortex-A55", True),
        ("Cortex-A76", "Cortex-A72", False),
        ("Cortex-A7", "Cortex-A76", False),
        ("Apple M1", "Apple M1 Max", False),
        ("Apple M1 Max", "Apple M1", False),
        ("AMD Ryzen 5 5600", "AMD Ryzen 5 5600X 6-Core Processor", False),
        ("Intel N100", "", False),
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
    assert "ran on its CPU" in mismatches(replace(FLOOR, accelerator="a GPU"), other, SPEED, 4)[0]


def test_a_cpus_name_does_not_matter_where_all_its_speeds_are_known() -> None:
    """Facts are compared. The name stands in for those that nobody has published."""
    stated = replace(PI, int8_gops=110.0)
    assert mismatches(stated, BOARD | {"cpu": "Neoverse-N1"}, SPEED, 4) == []
    assert "INT8" in mismatches(stated, BOARD | {"cpu": "Neoverse-N1"}, SPEED | {"int8_gops": 300.0}, 4)[0]
    assert "does not state int8_gops" in mismatches(PI, BOARD | {"cpu": "Neoverse-N1"}, SPEED, 4)[0]


GPU = Gpu(name="NVIDIA RTX 4050 Laptop", copy_gbs=165.0, fp16_gflops=18000.0)
GPU_SPEED = {"gpu_copy_gbs": 170.0, "gpu_fp16_gflops": 17000.0}


def test_where_the_accelerator_works_the_cpu_does_not_matter() -> None:
    """A fast CPU beside the stated GPU vouches for it; a server's GPU beside the stated CPU does not."""
    floor = replace(FLOOR, arch="aarch64", accelerator="a GPU", gpu=GPU)
    for hardware in (floor, replace(floor, generic=False)):
        fast = SPEED | {"fp32_gflops": 500.0, "bandwidth_gbs": 90.0} | GPU_SPEED
        other = BOARD | {"cpu": "a server's", "cores": 64, "features": []}
        assert mismatches(hardware, other, fast, 8, on_cpu=False) == []
        (why,) = mismatches(hardware, BOARD, SPEED | GPU_SPEED | {"gpu_copy_gbs": 2400.0}, 4, on_cpu=False)
        assert why.startswith("the accelerator's copy bandwidth, GB/s: 2.4e+03")
        (why,) = mismatches(hardware, BOARD, SPEED | {"gpu_copy_gbs": 170.0}, 4, on_cpu=False)
        assert "fp16 throughput, GFLOP/s: not measured there" in why
        assert "accelerator" in tolerances(hardware)
        assert scales(hardware, fast, on_cpu=False) == pytest.approx((17 / 18, 170 / 165))
    (why,) = mismatches(replace(floor, gpu=None), BOARD, SPEED | GPU_SPEED, 4, on_cpu=False)
    assert "does not state copy_gbs and fp16_gflops of its accelerator in [hardware.gpu]" in why


def measurements(**work: Any) -> Measurements:
    facts = {"provider": "CPUExecutionProvider", "matmul_ops": {"CPUExecutionProvider": 1e9}, "weight_bytes": 20 << 20}
    return Measurements(
        device=BOARD,
        speed=SPEED,
        work=facts | work,
        runtime=RuntimeVersion(name="onnxruntime", version="1"),
        available=[],
        shape=Shape(batch=1, sequence=64, threads=2),
        load_ms=1.0,
        first_ms=1.0,
        processes=(Timed(times=(1.0,)),),
        real_times=[1.0],
        real_lengths=[1],
        peak_mb=None,
    )


def timed(*levels: float) -> list[Timed]:
    return tuple(Timed(times=(level,) * 60) for level in levels)


def test_a_busy_machine_proves_nothing_and_fails_nothing() -> None:
    """Times on a busy machine are of both, whatever they are."""
    for time, quiet_verdict in ((50.0, "fail"), (1.0, "pass")):
        measured = replace(measurements(), processes=timed(*[time] * 5))
        (check,) = check_budget(Budget(p95_ms=10), measured, 1, Conditions(disturbed=["load 9"]))
        assert check.verdict == "not proven"
        assert str(check.remedy).startswith("the machine was busy or slowed (load 9)")
        (check,) = check_budget(Budget(p95_ms=10), measured, 1, Conditions())
        assert check.verdict == quiet_verdict
    assert check_budget(Budget(p95_ms=10), replace(measurements(), processes=timed(*[50.0] * 5)), 1, Conditions())[
        0
    ].remedy.startswith("50 ms, 5.00 x the limit, at batch 1, 64 tokens, 2 threads")  # type: ignore[union-attr]


def test_too_few_processes_and_those_that_disagree_prove_nothing() -> None:
    (check,) = check_budget(Budget(p95_ms=10), replace(measurements(), processes=timed(1, 1, 1, 1)), 1, Conditions())
    assert check.verdict == "not proven"
    assert "4 processes: a bound needs at least 5" in str(check.remedy)
    apart = replace(measurements(), processes=timed(18.0, 17.0, 72.0, 77.0, 18.0))
    for limit in (30.0, 80.0):
        (check,) = check_budget(Budget(p95_ms=limit), apart, 1, Conditions())
        assert check.verdict == "not proven"
        assert "the processes disagree (17 to 77 ms)" in str(check.remedy)
    assert check.detail == "5 processes, 17 to 77 ms"


def test_a_faster_host_does_not_vouch_for_a_slower_target() -> None:
    fast, slow = SPEED | {"bandwidth_gbs": 20.0, "fp32_gflops": 32.1}, SPEED | {"bandwidth_gbs": 6.0}
    assert scales(PI, fast) == pytest.approx((1.0, 20.0 / 11.2))
    assert scales(PI, slow) == pytest.approx((6.0 / 11.2, 1.0))
    assert scales(FLOOR, SPEED | {"int8_gops": 121.0}) == pytest.approx((11.0 / 11.2, 1.1))
    host = replace(measurements(), processes=timed(*[6.0] * 5))
    (check,) = check_budget(Budget(p95_ms=10), host, 1, Conditions(scales=scales(PI, fast)))
    assert (check.verdict, check.bound) == ("not proven", pytest.approx(6.0 * 20.0 / 11.2))
    assert "bound x 1.79" in str(check.detail)
    late = replace(measurements(), processes=timed(*[12.0] * 5))
    (check,) = check_budget(Budget(p95_ms=10), late, 1, Conditions(scales=scales(PI, slow)))
    assert check.verdict == "not proven", "a host of half its speed does not fail it"
    assert "factor of 2" in tolerances(PI)
    assert "1.2 x" in tolerances(FLOOR)


def test_a_decoders_first_token_and_rate_are_of_processes_too() -> None:
    processes = tuple(Timed(times=(10.0,) * 60, first=(100.0 + place, 101.0 + place)) for place in range(5))
    measured = replace(measurements(), processes=processes, generation=SPOKEN)
    first, rate = check_budget(Budget(ttft_ms=120, tokens_per_second=90), measured, 1, Conditions())
    assert (first.name, first.verdict) == ("ttft_ms", "pass")
    assert 102.0 < float(first.bound or 0) < 115.0
    assert (rate.name, rate.verdict, rate.measured) == ("tokens_per_second", "pass", pytest.approx(100.0))
    (rate,) = check_budget(Budget(tokens_per_second=110), measured, 1, Conditions())
    assert rate.verdict == "fail"


def test_impossible_times_prove_nothing() -> None:
    found = impossibilities(measurements(), 1.0)
    measured = replace(measurements(), processes=timed(*[1.0] * 5))
    (check,) = check_budget(Budget(p95_ms=10), measured, 1, Conditions(impossible=found))
    assert check.verdict == check_plausible(found).verdict == "not proven"
    assert "Gop/s" in str(check_plausible(found).detail)


def test_times_below_what_the_machine_can_do_are_flagged() -> None:
    # 10^9 operations at 2 x 120 Gop/s take 4.2 ms.
    assert impossibilities(measurements(), 5.0) == []
    assert "Gop/s" in impossibilities(measurements(), 1.0)[0]
    assert "GB/s" in impossibilities(measurements(weight_bytes=1 << 30, matmul_ops={}), 5.0)[0]
    without = replace(measurements(), speed={"bandwidth_gbs": 11.2})
    assert impossibilities(without, 0.1) == [], "a device that has llama.cpp alone measures no products"
