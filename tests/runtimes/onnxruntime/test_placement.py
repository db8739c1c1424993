"""Whether a provider did the matrix products that it was asked to do."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.runtimes.onnxruntime import CPU, SHARE, placement
from edgekit.verify.checks import check_placement

CUDA = "CUDAExecutionProvider"


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
    assert (f"with {build} installed there" in str(found.remedy)) is (build is not None)


@pytest.mark.parametrize(
    ("asked", "used", "verdict"), [(CPU, CPU, "pass"), (CUDA, CUDA, "not proven"), (CUDA, CPU, "fail")]
)
def test_products_that_nobody_counted_prove_no_provider(asked: str, used: str, verdict: str) -> None:
    """A decoder's session names its first provider, whatever its operators run on."""
    found = placement({"provider": asked}, {"provider": used}, [asked, CPU])
    assert check_placement(found).verdict == verdict
    assert verdict != "not proven" or ("gguf" in str(found.remedy) and found.measured is None)


def test_no_known_product_proves_nothing() -> None:
    work: dict[str, Any] = {"provider": CPU, "matmul_ops": {}}
    found = placement({}, work, [CPU])
    assert check_placement(found).verdict == "not proven"
    assert "edgekit inspect" in str(found.remedy)
