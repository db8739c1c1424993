"""What the machine is and how fast; the hand-written ONNX model is one that the onnx package accepts and that is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from edgekit.runtimes import machine, timing


def test_describe_is_stable_and_json() -> None:
    facts = machine.describe()
    assert facts == machine.describe() == json.loads(json.dumps(facts))
    assert facts["arch"] in {"x86_64", "aarch64"}
    assert facts["cores"] >= 1
    assert facts["memory_mb"] > 100
    assert facts["cpu"]


@pytest.mark.parametrize("system", ["Darwin", "Windows", "Plan9"])
def test_describe_does_not_fail_elsewhere(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine, "_sysctl", {"hw.memsize": str(8 << 30), "hw.physicalcpu": "8"}.get)
    monkeypatch.setattr(
        machine, "_sysctl", lambda key: {"hw.memsize": str(8 << 30), "hw.physicalcpu": "8"}.get(key, "")
    )
    facts = machine.describe()
    assert set(facts) == {
        *("arch", "cpu", "part", "cores", "features", "memory_mb", "clock_ghz", "governor", "system", "python")
    }
    assert facts["memory_mb"] == (8192 if system == "Darwin" else 0)
    assert facts["governor"] is None


def test_arm_cores_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = (
        "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\n"
        "CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
    )
    monkeypatch.setattr(machine, "read_file", lambda path: cpuinfo if str(path) == "/proc/cpuinfo" else "")
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    facts = machine.describe()
    assert (facts["cpu"], facts["part"]) == ("Cortex-A76", "0x41/0xd0b")
    assert "asimddp" in facts["features"]


def test_peak_memory_is_the_largest_so_far_and_this_process_only() -> None:
    code = (
        "from edgekit.runtimes.machine import peak_memory_mb as peak\n"
        "before = peak(); held = bytearray(b'1') * (100 << 20); del held; print(before, peak())"
    )
    # What the parent holds does not count: ru_maxrss would inherit it.
    held = np.ones(300 << 20, dtype=np.uint8)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(float, ended.stdout.split())
    assert 3 < before < 100 < after < 200
    assert held[-1] == 1


def test_speeds_are_of_a_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SPELL_S", 0.05)
    speed = machine.measure()
    assert set(speed) == {"bandwidth_gbs", "fp32_gflops", "int8_gops"}
    assert all(0.1 < value < 1e5 for value in speed.values())


def test_a_device_without_onnxruntime_tells_its_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SPELL_S", 0.05)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert set(machine.measure()) == {"bandwidth_gbs"}


def test_bandwidth_of_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SPELL_S", 0.05)
    alone, together = machine.bandwidth_gbs(), machine.bandwidth_gbs(threads=3)
    # One by processor time, three by the wall: another program may have most of the cores.
    assert 0.02 * alone < together < 20 * alone


def test_reading_of_as_many_bytes_as_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SPELL_S", 0.05)
    for threads, size in ((1, None), (1, 1), (1, 3 << 20), (3, 3 << 20)):
        assert 0.01 < machine.read_gbs(threads, size) < 1e4
    assert machine.measure_roof("llama-cpp", 0, 1) == {}
    assert machine.measure_roof("onnxruntime", 1 << 20, 1).keys() == {"read_gbs", "dispatch_us"}
    own = machine.measure_roof("openvino", 0, 1)
    assert own.keys() == {"own_fp32_gflops", "own_int8_gops", "dispatch_us"}
    assert 0.01 < own["dispatch_us"] < 100


@pytest.mark.parametrize(("limit", "cores"), [(None, 64), (2.5, 3), (0.05, 1), (99.0, 64), (2.0, 2)])
def test_a_containers_share_bounds_the_cores(limit: float | None, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 threads that share two cores' time wait for each other most of it."""
    monkeypatch.setattr(machine, "limit_cores", lambda: limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.available_cores() == cores
