"""What a machine is like at a moment: its temperature, clock, governor, power source, and how much of its cores may be taken.

Looked at before and after calls are timed, because published times that leave it out cannot be compared. What a system does not
tell is None. Linux: sysfs (https://docs.kernel.org/driver-api/thermal/sysfs-api.html, .../admin-guide/pm/cpufreq.html,
.../power/power_supply_class.html); macOS tells the power source, other systems nothing.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import TypedDict

from edgekit.runtimes.control_groups import limit_cores
from edgekit.runtimes.files import read_file

_CPUS = "/sys/devices/system/cpu"
_HEAT = "/sys/class/thermal"
_POWER = "/sys/class/power_supply"
_STAT = "/proc/self/stat"
# Of the words behind the command's name, which may have spaces in it.
_STARTED = 20
# A zone that says less or more measures something else, or nothing.
_DEGREES = (-40.0, 150.0)


class State(TypedDict):
    """temperature_c: of the hottest zone. clock_mhz: the cores' mean at this moment, as the kernel says it. governor: of the
    first core, with its driver. power: "mains" or "battery". limit_cores: cores' worth of time that the control group gives."""

    temperature_c: float | None
    clock_mhz: float | None
    governor: str | None
    driver: str | None
    power: str | None
    limit_cores: float | None


def look() -> State:
    """What the machine is like now; a millisecond of reading files."""
    return {
        "temperature_c": temperature_c(),
        "clock_mhz": clock_mhz(),
        "governor": read_file(f"{_CPUS}/cpu0/cpufreq/scaling_governor") or None,
        "driver": read_file(f"{_CPUS}/cpu0/cpufreq/scaling_driver") or None,
        "power": _power(),
        "limit_cores": limit_cores(),
    }


def temperature_c() -> float | None:
    """Degrees Celsius of the hottest zone."""
    told = [read_file(path) for path in Path(_HEAT).glob("thermal_zone*/temp")]
    zones = [int(word) / 1000 for word in told if re.fullmatch(r"-?\d+", word)]
    zones = [zone for zone in zones if _DEGREES[0] < zone < _DEGREES[1]]
    return max(zones, default=None)


def clock_mhz() -> float | None:
    """The mean clock of the cores."""
    told = [read_file(path) for path in Path(_CPUS).glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = [int(word) / 1000 for word in told if word.isdigit()]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def alive_s() -> float | None:
    """Seconds since this process was started, to 10 ms (proc(5): the 22nd word of stat, in ticks since the system started)."""
    words = read_file(_STAT).rpartition(")")[2].split()
    if len(words) < _STARTED or not hasattr(time, "CLOCK_BOOTTIME") or not hasattr(os, "sysconf"):
        return None
    begun = int(words[_STARTED - 1]) / os.sysconf("SC_CLK_TCK")
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - begun, 0.0)


def clusters() -> list[list[int]]:
    """The logical cores that this process may use, by how fast they are, the fastest first; one cluster where all are alike.

    By cpu_capacity, which ARM's kernels tell, else by the highest clock.
    """
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    found: dict[int, list[int]] = {}
    for cpu in mine:
        told = read_file(f"{_CPUS}/cpu{cpu}/cpu_capacity") or read_file(f"{_CPUS}/cpu{cpu}/cpufreq/cpuinfo_max_freq")
        found.setdefault(int(told) if told.isdigit() else 0, []).append(cpu)
    return [found[speed] for speed in sorted(found, reverse=True)]


def _power() -> str | None:
    """Whether the machine runs on mains or on a battery; None where it has neither, as a server or a board."""
    if platform.system() == "Darwin":
        return _power_of_mac()
    supplies = [(read_file(folder / "type"), folder) for folder in sorted(Path(_POWER).glob("*"))]
    mains = [read_file(folder / "online") for kind, folder in supplies if kind in {"Mains", "USB"}]
    if "1" in mains:
        return "mains"
    # A mouse has a battery, too: its scope is "Device".
    batteries = [
        folder for kind, folder in supplies if kind == "Battery" and read_file(folder / "scope").lower() != "device"
    ]
    if any(read_file(folder / "status") == "Discharging" for folder in batteries):
        return "battery"
    return "mains" if batteries else None


def _power_of_mac() -> str | None:
    try:
        told = subprocess.run(
            ["/usr/bin/pmset", "-g", "ps"], capture_output=True, text=True, check=False, timeout=10
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "battery" if "'Battery Power'" in told else "mains" if "'AC Power'" in told else None
