"""A machine measured and written down: what the file says, and when none is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit import target_probe
from edgekit.errors import EdgekitError
from edgekit.pipeline import check_target
from edgekit.target import check_targets, load_target
from edgekit.target_probe import probe_target
from tests.test_doctor import MACHINE, machine

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
    machine["features"] = ["avx2"]
    target = load_target(str(probe_target("x", p95_ms=12.5, memory_mb=200, out=tmp_path / "new")))
    assert (target.budget_for("text-classification").p95_ms, target.budget["memory_mb"]) == (12.5, 200)
    assert target.export_for("text-classification")["reduce_range"] is True


def test_probe_refuses_to_overwrite_and_odd_names(
    machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probe_target("mine")
    before = Path("targets/mine.toml").read_bytes()
    with pytest.raises(EdgekitError, match=r"there already.*--force"):
        probe_target("mine", p95_ms=1)
    with pytest.raises(EdgekitError, match=r"raspberrypi.toml: this target is there already"):
        probe_target("raspberrypi")
    assert Path("targets/mine.toml").read_bytes() == before
    assert probe_target("mine", p95_ms=1, force=True).read_bytes() != before
    for name in ("", "../x", "a b", ".hidden", "x.toml"):
        with pytest.raises(EdgekitError, match=r"not a target's name; use letters"):
            probe_target(name)
    Path("file").write_text("", encoding="utf-8")
    with pytest.raises(EdgekitError, match=r"choose another --out"):
        probe_target("y", out=Path("file"))


def test_probe_writes_nothing_of_a_busy_machine(
    machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_probe.neighbours, "disturbances", lambda *_: ["other programs took 1.0 of 2 cores"])
    with pytest.raises(EdgekitError, match=r"other programs took 1.0 of 2 cores.*close other programs.*--busy"):
        probe_target("mine", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    target = load_target(str(probe_target("mine", out=tmp_path, busy=True)))
    assert "busy machine (other programs took 1.0 of 2 cores)" in str(target.hardware.notes)


def test_probe_writes_nothing_where_measurements_differ(
    machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([19.5, 0.185, 19.0, 19.5, 19.0, 18.0])
    monkeypatch.setattr(target_probe, "measure", lambda: {"bandwidth_gbs": next(told)})
    with pytest.raises(EdgekitError, match=r"bandwidth_gbs was 0.185 and 19.5 in 3 measurements"):
        probe_target("mine", out=tmp_path)
    target = load_target(str(probe_target("mine", out=tmp_path)))
    assert (target.hardware.bandwidth_gbs, target.hardware.notes) == (19.5, None)


def test_probe_measures_this_machine(tmp_path: Path) -> None:
    target = load_target(str(probe_target("here", out=tmp_path, busy=True)))
    hardware = target.hardware
    assert hardware.cores >= 1
    assert hardware.memory_mb > 100
    assert hardware.bandwidth_gbs is not None
    assert 0.1 < hardware.bandwidth_gbs < 2000
    assert hardware.fp32_gflops is not None
    assert 0.1 < hardware.fp32_gflops < 20000
