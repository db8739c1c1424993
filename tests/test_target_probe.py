"""A machine measured and written down: what the file says, and when none is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.pipeline import check_target
from edgekit.probes.web.npm import PACKAGES
from edgekit.target import Gpu, check_targets, load_target
from edgekit.target_probe import Limits, probe_target
from tests.devices.chromium import need_chromium
from tests.devices.surveys import MACHINE, QUIET, SPEED, cluster, engine
from tests.test_doctor import machine

__all__ = ["machine"]


def test_probed_target_is_valid_and_has_no_budget(
    machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = probe_target("my-board")
    assert path == Path("targets/my-board.toml")
    assert check_targets([str(path)], check_target) == {str(path): None}
    target = load_target("my-board")
    assert target.budget == {}
    assert target.hardware.cpu == MACHINE["cpu"]
    assert target.hardware.features == ["avx2", "avx512_vnni"]
    assert (target.hardware.bandwidth_gbs, target.hardware.int8_gops) == (16.6, 191.0)
    assert target.export_for("text-classification")["reduce_range"] is False
    assert target.export_for("feature-extraction")["activation"] == "uint8"
    assert target.runtime["onnxruntime"]["threads"] == 2
    assert [path.name for path in Path("targets").iterdir()] == ["my-board.toml"]


def test_probed_target_carries_the_limits_given(machine: dict[str, Any], tmp_path: Path) -> None:
    machine["speed"]["saturates"]["u8s8"] = True
    target = load_target(str(probe_target("x", limits=Limits(p95_ms=12.5, memory_mb=200), out=tmp_path / "new")))
    assert (target.budget_for("text-classification").p95_ms, target.budget["memory_mb"]) == (12.5, 200)
    assert target.export_for("text-classification")["reduce_range"] is True


def test_probe_refuses_to_overwrite_and_odd_names(
    machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probe_target("mine")
    before = Path("targets/mine.toml").read_bytes()
    with pytest.raises(EdgekitError, match=r"there already.*--force"):
        probe_target("mine", limits=Limits(p95_ms=1))
    with pytest.raises(EdgekitError, match=r"raspberrypi.toml: this target is there already"):
        probe_target("raspberrypi")
    assert Path("targets/mine.toml").read_bytes() == before
    assert probe_target("mine", limits=Limits(p95_ms=1), force=True).read_bytes() != before
    for name in ("", "../x", "a b", ".hidden", "x.toml"):
        with pytest.raises(EdgekitError, match=r"not a target's name; use letters"):
            probe_target(name)
    Path("file").write_text("", encoding="utf-8")
    with pytest.raises(EdgekitError, match=r"choose another --out"):
        probe_target("y", out=Path("file"))


def test_probe_writes_nothing_of_a_busy_machine(machine: dict[str, Any], tmp_path: Path) -> None:
    machine["speed"]["seen"] = QUIET | {"others": 1.0}
    with pytest.raises(EdgekitError, match=r"other programs took 1.0 of 2 cores.*close other programs.*--busy"):
        probe_target("mine", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    target = load_target(str(probe_target("mine", out=tmp_path, busy=True)))
    assert "busy machine (other programs took 1.0 of 2 cores)" in str(target.hardware.notes)


def test_probe_writes_nothing_where_measurements_differ(machine: dict[str, Any], tmp_path: Path) -> None:
    machine["speed"]["rounds"] = [SPEED | {"bandwidth_gbs": figure} for figure in (19.5, 0.185, 19.0)]
    with pytest.raises(EdgekitError, match=r"bandwidth_gbs was 0.185 and 19.5 in 3 measurements"):
        probe_target("mine", out=tmp_path)
    machine["speed"]["rounds"] = [SPEED | {"bandwidth_gbs": figure} for figure in (19.5, 19.0, 18.0)]
    target = load_target(str(probe_target("mine", out=tmp_path)))
    assert (target.hardware.bandwidth_gbs, target.hardware.notes) == (19.5, None)


def test_probed_target_says_what_the_board_was(machine: dict[str, Any], tmp_path: Path) -> None:
    machine["machine"] |= {"arch": "aarch64", "cpu": "Cortex-A55", "part": "0x41/0xd05", "cores": 8}
    machine["board"] = 'Orange Pi 5 "Plus"'
    machine["clusters"] = [
        cluster("Cortex-A76", [4, 5, 6, 7], capacity=1024, clock_ghz=2.304, governor="schedutil"),
        cluster("Cortex-A55", [0, 1, 2, 3], capacity=530, clock_ghz=1.8, governor="schedutil"),
    ]
    machine["heat"]["zones"] = [{"name": "soc", "celsius": 51.2, "slows_at": None}]
    target = load_target(str(probe_target("mine", device={"kind": "ssh", "host": "opi"}, out=tmp_path)))
    assert target.title.startswith('Orange Pi 5 "Plus", 8 cores, Debian')
    assert (target.hardware.cpu, target.hardware.clock_ghz) == ("Cortex-A76 + Cortex-A55", 2.3)
    assert target.device == {"kind": "ssh", "host": "opi"}
    probed: Any = target.probed
    assert [one["cpus"] for one in probed["clusters"]] == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert (probed["emulated"], probed["part"], probed["governor"]) == (False, "0x41/0xd05", "schedutil")
    assert (probed["memory_free_mb"], probed["memory_free_share"]) == (18000, 0.75)
    assert probed["engines"] == {"onnxruntime": "1.31.1"}
    assert probed["thermal_zones"] == [{"name": "soc", "celsius": 51.2}]
    assert probed["saturates"] == {"u8s8": False, "s8s8": False, "u8u8": False}
    assert probed["measured"]["read_gbs"] == 17.9
    assert check_targets([str(target.path)], check_target) == {str(target.path): None}


def test_probed_target_of_an_emulated_board_states_no_speed(machine: dict[str, Any], tmp_path: Path) -> None:
    """Also where other programs keep the emulator's machine busy: nothing is made of its speed."""
    machine["emulated"] = ["emulated: programs for aarch64 on a kernel for x86_64"]
    machine["speed"]["seen"] = QUIET | {"others": 2.0}
    target = load_target(str(probe_target("mine", out=tmp_path)))
    hardware = target.hardware
    assert (hardware.bandwidth_gbs, hardware.fp32_gflops, hardware.int8_gops) == (None, None, None)
    assert "no speed of the board is known" in str(hardware.notes)
    assert target.probed["emulated"] is True
    assert "fp32_gflops" in target.probed["measured"]  # type: ignore[operator]


def test_probed_target_of_a_gpu_is_judged_on_it(machine: dict[str, Any], tmp_path: Path) -> None:
    laptop = {"name": "NVIDIA GeForce RTX 4050 Laptop GPU", "memory_mb": 6141, "driver": "550.120", "cuda": "12.4"}
    machine["accelerators"] = [{**laptop, "vulkan": None, "busy": 0.0, "celsius": 40}]
    assert load_target(str(probe_target("idle", out=tmp_path))).hardware.gpu is None, "no runtime here works on it"
    machine["speed"]["rounds"] = [SPEED | {"gpu_copy_gbs": 171.24, "gpu_fp16_gflops": 15_432.0}] * 3
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    machine["engines"] = [engine("onnxruntime", "1.31.1", *providers), engine("llama-cpp", "0.3.36", "GPU", "CPU")]
    target = load_target(str(probe_target("mine", out=tmp_path)))
    assert target.hardware.gpu == Gpu(**laptop, copy_gbs=171.0, fp16_gflops=15_400.0)
    assert (target.runtime["onnxruntime"]["provider"], target.runtime["llama-cpp"]["gpu_layers"]) == (providers[0], -1)
    assert target.export_for("text-classification") == {"format": "onnx", "scheme": "fp16"}
    assert check_targets([str(target.path)], check_target) == {str(target.path): None}


def test_probe_measures_this_machine(tmp_path: Path) -> None:
    target = load_target(str(probe_target("here", out=tmp_path, busy=True)))
    hardware = target.hardware
    assert hardware.cores >= 1
    assert hardware.memory_mb > 100
    assert hardware.bandwidth_gbs is not None
    assert 0.1 < hardware.bandwidth_gbs < 2000
    assert hardware.fp32_gflops is not None
    assert 0.1 < hardware.fp32_gflops < 20000


def test_a_browser_is_probed_where_it_is(tmp_path: Path) -> None:
    """A real one: its speeds are WebAssembly's, its runtimes those that pages have, and the file is a target."""
    need_chromium()
    path = probe_target("mine", device={"kind": "browser", "program": "chromium"}, out=tmp_path, busy=True)
    assert check_targets([str(path)], check_target) == {str(path): None}
    target = load_target(str(path))
    assert (target.hardware.arch, target.hardware.memory_mb) == ("wasm32", 4096)
    assert "simd128" in target.hardware.features
    assert target.hardware.fp32_gflops
    assert target.hardware.int8_gops
    assert target.hardware.bandwidth_gbs
    assert [*target.runtime] == ["onnxruntime", "llama-cpp"]
    assert [*target.export] == ["text-classification", "feature-extraction", "text-generation"]
    assert target.export_for("text-classification")["reduce_range"] is False
    assert target.device == {"kind": "browser", "program": "chromium"}
    assert target.probed["engines"] == {
        "onnxruntime": PACKAGES["onnxruntime-web"].version, "llama-cpp": PACKAGES["wllama"].engine
    }  # fmt: skip
    assert "memory_free_mb" not in target.probed, "no page is told"
