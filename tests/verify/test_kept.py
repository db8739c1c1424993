"""What was measured before: counted for the same artifact on the same device, for nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.evidence import RuntimeVersion, Shape
from edgekit.verify.kept import keep
from edgekit.verify.measurements import Measurements, Timed

MACHINE = {
    "arch": "aarch64",
    "cpu": "Cortex-A76",
    "part": "0x41/0xd0b",
    "cores": 4,
    "memory_mb": 8192,
    "system": "Linux",
}


def measured(**machine: Any) -> Measurements:
    """A measurement of two calls."""
    return Measurements(
        device=MACHINE | machine,
        speed={},
        work={},
        runtime=RuntimeVersion(name="onnxruntime", version="1"),
        available=[],
        shape=Shape(batch=1, sequence=8, threads=1),
        load_ms=1.0,
        first_ms=1.0,
        processes=(Timed(times=(1.0, 2.0)),),
        real_times=[1.0],
        real_lengths=[8],
        peak_mb=None,
    )


def kept(device: str = "ssh pi", artifact: str = "a", *, disturbed: bool = False, **machine: Any) -> int:
    """Keep a measurement; how many that makes."""
    why = ["another process took the core"] if disturbed else []
    found = keep(measured(**machine), device=device, artifact=artifact, options={"threads": 1}, disturbed=why)
    assert len(found.earlier) == found.measurement - 1
    return found.measurement


def test_earlier_measurements_of_the_same_count() -> None:
    assert [kept(), kept(), kept(disturbed=True), kept()] == [1, 2, 3, 3]
    assert kept(system="Linux 6.99", python="3.14") == 4, "a new kernel or Python is the same machine"


@pytest.mark.parametrize(
    "other", [{"device": "ssh pj"}, {"device": "local"}, {"artifact": "b"}, {"cpu": "Cortex-A72"}, {"memory_mb": 4096}]
)
def test_those_of_another_device_or_artifact_never_count(other: dict[str, Any]) -> None:
    """Two boards of one make say the same of themselves: their addresses tell them apart."""
    assert kept() == 1
    assert kept(**other) == 1
    assert (kept(), kept(**other)) == (2, 2)
