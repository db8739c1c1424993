"""What a machine is like at a moment: its temperature, clock, governor, power source, and how much of its cores may be taken.

Looked at before and after calls are timed, because published times that leave it out cannot be compared. What a system does not
tell is None: Linux's sysfs tells most (see `sensors`), macOS the power source, other systems nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypedDict

from edgekit.runtimes import sensors
from edgekit.runtimes.control_groups import limit_cores
from edgekit.runtimes.files import read_file

_SYSTEM = Path("/")
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


def look(root: Path = _SYSTEM) -> State:
    """What the machine whose files are under `root` is like now; a millisecond of reading files."""
    governor, driver = sensors.governor(0, root)
    return {
        "temperature_c": temperature_c(root),
        "clock_mhz": clock_mhz(root),
        "governor": governor,
        "driver": driver,
        "power": sensors.power_source(root),
        "limit_cores": limit_cores(root),
    }


def temperature_c(root: Path = _SYSTEM) -> float | None:
    """Degrees Celsius of the hottest zone."""
    zones = (celsius for _, celsius in sensors.temperatures(root) if _DEGREES[0] < celsius < _DEGREES[1])
    return max(zones, default=None)


def clock_mhz(root: Path = _SYSTEM) -> float | None:
    """The mean clock of the cores."""
    told = map(sensors.number, (root / sensors.CPUS).glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    clocks = [khz / 1000 for khz in told if khz is not None]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def alive_s() -> float | None:
    """Seconds since this process was started, to 10 ms (proc(5): the 22nd word of stat, in ticks since the system started)."""
    words = read_file(_STAT).rpartition(")")[2].split()
    if len(words) < _STARTED or not hasattr(time, "CLOCK_BOOTTIME") or not hasattr(os, "sysconf"):
        return None
    begun = int(words[_STARTED - 1]) / os.sysconf("SC_CLK_TCK")
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - begun, 0.0)


def clusters(root: Path = _SYSTEM) -> list[list[int]]:
    """The logical cores that this process may use, by how fast they are, the fastest first; one cluster where all are alike.

    By cpu_capacity, else by the highest clock: cores of one capacity whose clocks differ a little are one cluster here.
    """
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    found: dict[int, list[int]] = {}
    for cpu in mine:
        speed = sensors.capacity(cpu, root) or sensors.highest_khz(cpu, root) or 0
        found.setdefault(speed, []).append(cpu)
    return [found[speed] for speed in sorted(found, reverse=True)]
