"""Whether as many layers lie on the GPU as were asked for."""

from __future__ import annotations

import pytest

from edgekit.runtimes.llamacpp import placement
from edgekit.verify.checks import check_placement


@pytest.mark.parametrize(
    ("asked", "there", "wanted", "verdict"),
    [
        (0, 0, 0, "pass"),
        (-1, 5, 5, "pass"),
        (-1, 4, 5, "fail"),
        (99, 5, 5, "pass"),
        (3, 2, 3, "fail"),
        (3, 4, 3, "pass"),
    ],
)
def test_layers_that_stay_on_the_cpu_fail(asked: int, there: int, wanted: int, verdict: str) -> None:
    found = placement({"gpu_layers": asked}, {"provider": "GPU", "layers": 5, "offloaded": there}, ["GPU", "CPU"])
    check = check_placement(found)
    assert (check.name, check.measured, check.limit, check.verdict) == ("offload", there, wanted, verdict)
    assert found.on_cpu is (there == 0)
    assert (check.remedy is None) is (verdict == "pass")
    if check.remedy:
        assert f"{wanted - there} layers stay on the CPU" in check.remedy
        assert "llama-cpp-python" in check.remedy
        assert "runtime.llama-cpp.gpu_layers" in check.remedy
