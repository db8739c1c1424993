"""Whether a provider did the matrix products that it was asked to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.runtimes.onnxruntime import CPU, SHARE, placement
from edgekit.runtimes.onnxruntime.profile import count
from edgekit.runtimes.placement import Work
from edgekit.verify.checks import check_placement

CUDA, WEBGPU = "CUDAExecutionProvider", "WebGpuExecutionProvider"


@pytest.mark.parametrize(
    ("ops", "verdict"), [({CUDA: 90.0, CPU: 10.0}, "pass"), ({CUDA: 70.0, CPU: 30.0}, "fail"), ({CPU: 1.0}, "fail")]
)
def test_a_silent_fallback_fails(ops: dict[str, float], verdict: str) -> None:
    found = placement({"provider": CUDA}, {"provider": CUDA, "matmul_ops": ops}, [CUDA, CPU])
    check = check_placement(found)
    assert (check.name, check.verdict, check.limit) == ("provider", verdict, SHARE)
    assert (verdict == "pass") == (check.remedy is None)
    assert found.absent is None
    assert not found.on_cpu


@pytest.mark.parametrize(
    ("provider", "build"), [(CUDA, "onnxruntime-gpu"), ("QNNExecutionProvider", "onnxruntime-qnn"), ("Unknown", None)]
)
def test_an_absent_provider_proves_nothing(provider: str, build: str | None) -> None:
    found = placement({"provider": provider}, {"provider": CPU, "matmul_ops": {CPU: 1.0}}, [CPU])
    assert check_placement(found).verdict == "not proven"
    assert (found.absent, found.on_cpu, found.measured) == (provider, True, None)
    assert str(found.remedy).startswith(f"this machine's onnxruntime has no {provider} (it has {CPU})")
    assert (str(build) in str(found.remedy)) is (build is not None)


@pytest.mark.parametrize(
    ("asked", "used", "verdict"), [(CPU, CPU, "pass"), (CUDA, CUDA, "not proven"), (CUDA, CPU, "fail")]
)
def test_products_that_nobody_counted_prove_no_provider(asked: str, used: str, verdict: str) -> None:
    """A session names its first provider, whatever its operators run on."""
    found = placement({"provider": asked}, {"provider": used}, [asked, CPU])
    assert check_placement(found).verdict == verdict


def test_a_provider_that_did_not_start_is_told_in_its_own_words() -> None:
    said = "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file"
    work: Work = {"provider": CPU, "matmul_ops": {CPU: 1.0}, "warnings": [said]}
    found = placement({"provider": CUDA}, work, [CUDA, CPU])
    assert check_placement(found).verdict == "fail"
    assert said in str(found.remedy)
    assert 'pip install --upgrade "onnxruntime-gpu[cuda,cudnn]"' in str(found.remedy)


PROFILES = json.loads((Path(__file__).parents[2] / "fixtures" / "decoder_profiles.json").read_text(encoding="utf-8"))


def test_a_decoder_whose_products_fall_back_fails() -> None:
    """Recorded of the WebGPU provider, which has no MatMulInteger: all 36 products of an int8-dynamic decoder ran on the CPU, with
    22 copies to the host in one step, under a session whose first provider is the GPU's."""
    work = count(PROFILES["int8-dynamic"], WEBGPU)
    assert (work["matmul_nodes"], work["attention_nodes"], work["copies"]) == ({CPU: 36}, {WEBGPU: 5}, 22)
    found = placement({"provider": WEBGPU}, work, [WEBGPU, CPU])
    assert (found.measured, check_placement(found).verdict) == (0.0, "fail")
    assert "products: CPUExecutionProvider 100%; 22 copies to the host" in str(found.remedy)
    exact = count(PROFILES["fp32"], WEBGPU)
    assert check_placement(placement({"provider": WEBGPU}, exact, [WEBGPU, CPU])).verdict == "pass"


def test_a_decoder_whose_attention_falls_back_fails() -> None:
    """As a first run with CUDA showed: each product on the GPU, GroupQueryAttention of float32 on the CPU, copies each step."""
    moved = json.loads(json.dumps(PROFILES["fp32"]).replace(WEBGPU, CUDA))
    for event in moved:
        if event.get("args", {}).get("op_name") == "GroupQueryAttention":
            event["args"]["provider"] = CPU
    work = count(moved, CUDA)
    assert work["matmul_ops"].keys() == {CUDA}
    found = placement({"provider": CUDA}, work, [CUDA, CPU])
    assert (found.measured, check_placement(found).verdict) == (0.0, "fail")
    assert "attention: CPUExecutionProvider 100%" in str(found.remedy)


def test_no_known_product_proves_nothing() -> None:
    work: dict[str, Any] = {"provider": CPU, "matmul_ops": {}}
    found = placement({}, work, [CPU])
    assert check_placement(found).verdict == "not proven"
    assert "edgekit inspect" in str(found.remedy)


def test_whether_graphs_are_replayed_is_told() -> None:
    work: Work = {"provider": CUDA, "matmul_ops": {CUDA: 1.0}, "graphs": ""}
    found = placement({"provider": CUDA}, work, [CUDA, CPU])
    assert (found.measured, found.detail) == (
        1.0,
        f"share of the matrix products that {CUDA} does; calls replay CUDA graphs, one for each length",
    )
    without = placement({"provider": CUDA}, {**work, "graphs": "CUDA failure 900"}, [CUDA, CPU])
    assert (check_placement(without).verdict, without.detail.endswith("; no CUDA graphs: CUDA failure 900")) == (
        "pass",
        True,
    )
    assert placement({}, {"provider": CPU, "matmul_ops": {CPU: 1.0}}, [CPU]).detail.endswith(f"that {CPU} does")
