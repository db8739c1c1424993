"""What a machine is like at a moment, read from the files of Linux."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgekit.runtimes import conditions


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose files a test writes."""
    for name, folder in {"_CPUS": "cpu", "_HEAT": "thermal", "_POWER": "power"}.items():
        monkeypatch.setattr(conditions, name, str(tmp_path / folder))
    monkeypatch.setattr(conditions.platform, "system", lambda: "Linux")
    monkeypatch.setattr(conditions, "limit_cores", lambda: None)
    return tmp_path


def lay(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_machine_that_tells_nothing(system: Path) -> None:
    assert set(conditions.look().values()) == {None}


def test_temperature_clock_and_governor(system: Path) -> None:
    for zone, told in enumerate(("41000", "62500", "-274000", "odd")):
        lay(system / f"thermal/thermal_zone{zone}/temp", told)
    for cpu, clock in enumerate(("1500000", "2400000")):
        lay(system / f"cpu/cpu{cpu}/cpufreq/scaling_cur_freq", clock)
    lay(system / "cpu/cpu0/cpufreq/scaling_governor", "ondemand\n")
    lay(system / "cpu/cpu0/cpufreq/scaling_driver", "cpufreq-dt\n")
    state = conditions.look()
    assert (state["temperature_c"], state["clock_mhz"]) == (62.5, 1950.0)
    assert (state["governor"], state["driver"]) == ("ondemand", "cpufreq-dt")


@pytest.mark.parametrize(
    ("supplies", "power"),
    [
        ({"AC": ("Mains", "1", ""), "BAT0": ("Battery", "", "Charging")}, "mains"),
        ({"AC": ("Mains", "0", ""), "BAT0": ("Battery", "", "Discharging")}, "battery"),
        ({"BAT0": ("Battery", "", "Full")}, "mains"),
        ({}, None),
    ],
)
def test_the_power_source(system: Path, supplies: dict[str, tuple[str, str, str]], power: str | None) -> None:
    for name, words in supplies.items():
        for key, word in zip(("type", "online", "status"), words, strict=True):
            lay(system / "power" / name / key, word)
    assert conditions.look()["power"] == power


def test_the_battery_of_a_mouse_is_none_of_the_machine(system: Path) -> None:
    for key, word in (("type", "Battery"), ("status", "Discharging"), ("scope", "Device")):
        lay(system / "power/mouse" / key, word)
    assert conditions.look()["power"] is None


def test_clusters_of_cores_by_their_capacity(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert conditions.clusters() == [[0, 1, 2, 3]]
    for cpu, capacity in enumerate((446, 446, 1024, 1024)):
        lay(system / f"cpu/cpu{cpu}/cpu_capacity", str(capacity))
    assert conditions.clusters() == [[2, 3], [0, 1]]


@pytest.mark.skipif(sys.platform != "linux", reason="proc(5)")
def test_how_long_this_process_runs() -> None:
    alive = conditions.alive_s()
    assert alive is not None
    assert 0.0 < alive < 24 * 3600
