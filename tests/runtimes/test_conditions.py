"""What a machine is like at a moment, read from the files of Linux."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgekit.runtimes import conditions, sensors
from tests.devices.surveys import tree

CPUS, HEAT, POWER = "sys/devices/system/cpu", "sys/class/thermal", "sys/class/power_supply"


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert set(conditions.look(tmp_path).values()) == {None}


def test_temperature_clock_and_governor(tmp_path: Path) -> None:
    """The hottest zone that measures a temperature; the cores' mean."""
    told = enumerate(("41000", "62500", "-274000", "odd"))
    files = {f"{HEAT}/thermal_zone{zone}/temp": word for zone, word in told}
    for cpu, clock in enumerate(("1500000", "2400000")):
        files[f"{CPUS}/cpu{cpu}/cpufreq/scaling_cur_freq"] = clock
    files[f"{CPUS}/cpu0/cpufreq/scaling_governor"] = "ondemand\n"
    files[f"{CPUS}/cpu0/cpufreq/scaling_driver"] = "cpufreq-dt\n"
    state = conditions.look(tree(tmp_path, files))
    assert (state["temperature_c"], state["clock_mhz"]) == (62.5, 1950.0)
    assert (state["governor"], state["driver"]) == ("ondemand", "cpufreq-dt")


@pytest.mark.parametrize(
    ("supplies", "power", "on_battery"),
    [
        ({"AC": ("Mains", "1", ""), "BAT0": ("Battery", "", "Charging")}, "mains", False),
        ({"AC": ("Mains", "0", ""), "BAT0": ("Battery", "", "Discharging")}, "battery", True),
        ({"BAT0": ("Battery", "", "Full")}, "mains", False),
        ({"AC": ("Mains", "1", "")}, "mains", None),
        ({}, None, None),
    ],
)
def test_the_power_source(
    tmp_path: Path, supplies: dict[str, tuple[str, str, str]], power: str | None, on_battery: bool | None
) -> None:
    """The survey says the same."""
    for name, words in supplies.items():
        for key, word in zip(("type", "online", "status"), words, strict=True):
            tree(tmp_path, {f"{POWER}/{name}/{key}": word})
    assert conditions.look(tmp_path)["power"] == power
    assert sensors.power(tmp_path)["on_battery"] is on_battery


def test_the_battery_of_a_mouse_is_none_of_the_machine(tmp_path: Path) -> None:
    mouse = {"type": "Battery", "status": "Discharging", "scope": "Device"}
    tree(tmp_path, {f"{POWER}/mouse/{key}": word for key, word in mouse.items()})
    assert conditions.look(tmp_path)["power"] is None


def test_clusters_of_cores_by_their_capacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert conditions.clusters(tmp_path) == [[0, 1, 2, 3]]
    capacities = enumerate((446, 446, 1024, 1024))
    tree(tmp_path, {f"{CPUS}/cpu{cpu}/cpu_capacity": str(capacity) for cpu, capacity in capacities})
    assert conditions.clusters(tmp_path) == [[2, 3], [0, 1]]


@pytest.mark.skipif(sys.platform != "linux", reason="proc(5)")
def test_how_long_this_process_runs() -> None:
    alive = conditions.alive_s()
    assert alive is not None
    assert 0.0 < alive < 24 * 3600
