"""What the machine's own speeds predict of a call, beside what was measured: the formula, and the reason where both differ."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.evidence import Rates, RuntimeVersion, Shape
from edgekit.report.times import roofline_line
from edgekit.verify.measurements import Measurements, Speed, Timed
from edgekit.verify.roofline import Around, of_call, of_prompt

SPEED = {"int8_gops": 100.0, "fp32_gflops": 25.0, "read_gbs": 10.0, "dispatch_us": 2.0}
QUIET = Around(on_cpu=True, emulated=False, disturbed=(), threads=1)
# 10^8 operations of bytes take 1 ms, 5 x 10^6 bytes 0.5 ms, 50 operators 0.1 ms.
WORK = {
    "provider": "CPUExecutionProvider",
    "nodes": {"CPUExecutionProvider": 50},
    "matmul_nodes": {"CPUExecutionProvider": 1},
    "matmul_ops": {"CPUExecutionProvider": 1e8},
    "int8_ops": 1e8,
    "weight_bytes": 5_000_000,
    "time_shares": {"MatMulIntegerToFloat": 0.95, "Softmax": 0.05},
}
FILE: Any = SimpleNamespace(bits=8.0, bytes_per_token=None)


def measured(ms: float, work: dict[str, Any], **changes: Any) -> Measurements:
    found = Measurements(
        device={"arch": "x86_64", "cpu": "a CPU", "cores": 2, "features": [], "clock_ghz": None},
        speed=SPEED,
        work=WORK | work,
        runtime=RuntimeVersion(name="onnxruntime", version="1"),
        available=(),
        shape=Shape(batch=1, sequence=64, threads=1),
        load_ms=1.0,
        first_ms=1.0,
        processes=(Timed(times=(ms,) * 60),),
        real_times=(),
        real_lengths=(),
        peak_mb=None,
    )
    return replace(found, **changes)


def test_openvino_is_held_against_its_own_speeds() -> None:
    own = {"own_int8_gops": 50.0, "own_fp32_gflops": 10.0, "read_gbs": 10.0, "dispatch_us": 2.0}
    called = replace(measured(2.2, {}), runtime=RuntimeVersion(name="openvino", version="1"))
    assert of_call(FILE, called, QUIET) is None
    found = of_call(FILE, replace(called, speed={**SPEED, **own}), QUIET)
    assert found is not None
    assert (found.predicted_ms, found.bound, found.note) == (2.1, "compute", None)


@pytest.mark.parametrize(
    ("work", "threads", "predicted", "bound"),
    [
        ({}, 1, 1.1, "compute"),
        ({}, 2, 0.6, "compute"),
        ({"int8_ops": 0.0}, 1, 4.1, "compute"),
        ({"int8_ops": 5e7}, 1, 2.6, "compute"),
        ({"weight_bytes": 30_000_000}, 1, 3.1, "memory"),
        ({"nodes": {"CPUExecutionProvider": 900}}, 1, 2.8, "dispatch"),
    ],
)
def test_a_known_graph_takes_what_its_work_takes(
    work: dict[str, Any], threads: int, predicted: float, bound: str
) -> None:
    found = of_call(FILE, measured(predicted, work), replace(QUIET, threads=threads))
    assert found is not None
    assert (found.predicted_ms, found.bound, found.note) == (pytest.approx(predicted), bound, None)
    assert found.ratio == pytest.approx(1.0)
    twice = of_call(FILE, measured(2 * predicted, work), replace(QUIET, threads=threads))
    assert twice is not None
    assert twice.ratio == pytest.approx(0.5)
    assert twice.note is not None


@pytest.mark.parametrize(
    ("ms", "work", "around", "says"),
    [
        (9.0, {}, {}, "unexplained"),
        (0.1, {}, {}, "unexplained"),
        (9.0, {}, {"emulated": True}, "emulated: neither is a speed of the device"),
        (9.0, {}, {"disturbed": ["others took 1.0 cores"]}, "other load: others took 1.0 cores"),
        (9.0, {}, {"threads": 2}, "2 threads wait for each other"),
        (9.0, {"time_shares": {"MatMul": 0.6, "Gelu": 0.3, "Softmax": 0.1}}, {}, "take 40% of a call (Gelu 30%, Softmax 10%)"),
        (9.0, {"int8_ops": 6e7}, {}, "40% of the multiplications are in float"),
        (9.0, {"matmul_nodes": {"CPUExecutionProvider": 50}}, {}, "small products (2 million operations each"),
        (9.0, {"nodes": {"CPUExecutionProvider": 900}}, {}, "a small graph: its 900 operators"),
        (1.0, {"weight_bytes": 30_000_000}, {}, "stays in a cache"),
    ],
)  # fmt: skip
def test_a_call_that_is_not_as_predicted_is_explained_by_its_facts(
    ms: float, work: dict[str, Any], around: dict[str, Any], says: str
) -> None:
    found = of_call(FILE, measured(ms, work), replace(QUIET, **around))
    assert found is not None
    assert says in str(found.note)
    assert says in roofline_line("a call", found)


def test_nothing_is_predicted_of_speeds_that_nobody_measured() -> None:
    assert of_call(FILE, measured(1.0, {}), replace(QUIET, on_cpu=False)) is None
    for absent in SPEED:
        known = {key: value for key, value in SPEED.items() if key != absent}
        assert of_call(FILE, measured(1.0, {}, speed=known), QUIET) is None
    other = measured(1.0, {}, runtime=RuntimeVersion(name="openvino", version="1"))
    assert of_call(FILE, other, QUIET) is None
    uncounted = {key: value for key, value in WORK.items() if key == "provider"}
    assert of_call(FILE, replace(measured(1.0, {}), work=uncounted), QUIET) is None  # type: ignore[arg-type]


def test_a_decoder_reads_its_weights_for_each_token_and_multiplies_for_each_of_a_prompt() -> None:
    file: Any = SimpleNamespace(bits=4.5, bytes_per_token=100_000_000)
    spoken = Speed(
        ttft_ms={"16": 9.0, "128": 300.0}, ttft_cold_ms={}, tokens_per_second=Rates(decode=1, prefill=1), threads={}, memory_mb={}
    )  # fmt: skip
    told = RuntimeVersion(name="llama-cpp", version="1")
    decoder = replace(measured(12.5, {}), generation=spoken, runtime=told, work={"parameters": 10**8})  # type: ignore[arg-type]
    token, prompt = of_call(file, decoder, QUIET), of_prompt(file, decoder, QUIET)
    assert token is not None
    assert prompt is not None
    assert (token.predicted_ms, token.bound, token.ratio, token.note) == (pytest.approx(10.0), "memory", 0.8, None)
    assert (prompt.predicted_ms, prompt.bound, prompt.measured_ms) == (pytest.approx(256.0), "compute", 300.0)
    assert of_prompt(FILE, measured(1.0, {}), QUIET) is None
    small = replace(decoder, work={"parameters": 10**5}, processes=(Timed(times=(0.2,) * 60),))  # type: ignore[arg-type]
    found = of_call(SimpleNamespace(bits=8.0, bytes_per_token=10**5), small, QUIET)  # type: ignore[arg-type]
    assert found is not None
    assert "a small model" in str(found.note)
