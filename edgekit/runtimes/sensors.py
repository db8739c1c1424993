"""What a system tells of its cores, its heat and its power: read here alone, for the state around times and for a survey.

root: where the system's files lie, as Linux has them; another folder in tests. What a system does not tell is None or empty.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict

from edgekit.runtimes.files import read_file
from edgekit.runtimes.machine import ARM_PARTS

CPUS = "sys/devices/system/cpu"
_HEAT, _POWER = "sys/class/thermal", "sys/class/power_supply"
_SYSTEM = Path("/")

Source = Literal["mains", "battery"]


class Cluster(TypedDict):
    """Cores that are alike. capacity: of 1,024, what the largest core of the machine does (Linux's cpu_capacity); limit_ghz: the
    clock that it may take now, where that is set below its highest; preference: energy or performance, as the driver has it."""

    cpu: str
    cpus: list[int]
    capacity: int | None
    clock_ghz: float | None
    limit_ghz: float | None
    governor: str | None
    driver: str | None
    preference: str | None


class Zone(TypedDict):
    """A thermal zone; slows_at: where the kernel begins to lower the clock."""

    name: str
    celsius: float
    slows_at: float | None


class Power(TypedDict):
    """on_battery: None where there is no battery; profile: the firmware's (low-power, balanced, performance)."""

    on_battery: bool | None
    percent: int | None
    profile: str | None


def capacity(cpu: int, root: Path = _SYSTEM) -> int | None:
    """Of 1,024, what a core does by the largest's measure, which ARM's kernels tell."""
    return number(root / CPUS / f"cpu{cpu}" / "cpu_capacity")


def highest_khz(cpu: int, root: Path = _SYSTEM) -> int | None:
    """The highest clock that a core may take."""
    return number(root / CPUS / f"cpu{cpu}" / "cpufreq/cpuinfo_max_freq")


def governor(cpu: int, root: Path = _SYSTEM) -> tuple[str | None, str | None]:
    """What chooses a core's clock: the governor, and its driver (https://docs.kernel.org/admin-guide/pm/cpufreq.html)."""
    folder = root / CPUS / f"cpu{cpu}" / "cpufreq"
    return read_file(folder / "scaling_governor") or None, read_file(folder / "scaling_driver") or None


def clusters(root: Path = _SYSTEM) -> list[Cluster]:
    """Cores of one kind, capacity and clock each (big.LITTLE), the fastest first."""
    found: dict[tuple[str, int | None, float | None], Cluster] = {}
    for index, cpu in sorted(_cpus(root).items()):
        folder = root / CPUS / f"cpu{index}" / "cpufreq"
        size, clock, limit = capacity(index, root), highest_khz(index, root), number(folder / "scaling_max_freq")
        clock_ghz = clock / 1e6 if clock else None
        chosen, driver = governor(index, root)
        cluster = found.setdefault(
            (cpu, size, clock_ghz),
            {
                "cpu": cpu,
                "cpus": [],
                "capacity": size,
                "clock_ghz": clock_ghz,
                "limit_ghz": limit / 1e6 if limit and clock and limit < clock else None,
                "governor": chosen,
                "driver": driver,
                "preference": read_file(folder / "energy_performance_preference") or None,
            },
        )
        cluster["cpus"].append(index)
    return sorted(found.values(), key=lambda one: (-(one["capacity"] or 0), -(one["clock_ghz"] or 0), one["cpus"]))


def _cpus(root: Path) -> dict[int, str]:
    """The name of each core, by its number, of /proc/cpuinfo (arm64 has a part for each, x86 a name)."""
    found = {}
    for block in re.split(r"\n\s*\n", read_file(root / "proc/cpuinfo")):
        fields = dict(re.findall(r"^([^:\n]+?)\s*:[ \t]*(.*)$", block, re.MULTILINE))
        if not fields.get("processor", "").isdigit():
            continue
        maker, part = fields.get("CPU implementer"), fields.get("CPU part")
        arm = ARM_PARTS.get((int(maker, 16), int(part, 16))) if maker and part else None
        found[int(fields["processor"])] = arm or fields.get("model name") or f"part {maker}/{part}"
    return found


def temperatures(root: Path = _SYSTEM) -> Iterator[tuple[Path, float]]:
    """Degrees Celsius of each thermal zone, with its folder: https://docs.kernel.org/driver-api/thermal/sysfs-api.html, which
    counts thousandths."""
    for folder in sorted((root / _HEAT).glob("thermal_zone*")):
        degrees = number(folder / "temp")
        if degrees is not None:
            yield folder, degrees / 1000


def zones(root: Path = _SYSTEM) -> Iterator[Zone]:
    """Each thermal zone with where it slows the machine."""
    for folder, celsius in temperatures(root):
        trips = [
            trip
            for kind in folder.glob("trip_point_*_type")
            if read_file(kind) in {"passive", "hot"}
            and (trip := number(kind.with_name(kind.name.replace("_type", "_temp")))) is not None
            and trip > 0
        ]
        name = read_file(folder / "type") or folder.name
        yield {"name": name, "celsius": celsius, "slows_at": min(trips) / 1000 if trips else None}


def slowed(root: Path = _SYSTEM) -> Iterator[str]:
    """The cooling devices of processors that hold their clock down now."""
    for folder in sorted((root / _HEAT).glob("cooling_device*")):
        kind, state = read_file(folder / "type"), number(folder / "cur_state")
        if state and (kind.startswith(("thermal-cpufreq", "cpufreq", "thermal-devfreq")) or kind == "Processor"):
            yield kind


def power(root: Path = _SYSTEM) -> Power:
    """Where the current comes from: https://docs.kernel.org/power/power_supply_class.html."""
    batteries, source = _batteries(root), power_source(root)
    return {
        "on_battery": True if source == "battery" else False if batteries else None,
        "percent": next((number(folder / "capacity") for folder in batteries), None),
        "profile": read_file(root / "sys/firmware/acpi/platform_profile") or None,
    }


def power_source(root: Path = _SYSTEM) -> Source | None:
    """Whether the machine runs on mains or on a battery; None where it has neither, as a server or a board."""
    if root == _SYSTEM and platform.system() == "Darwin":
        return _source_of_mac()
    online = (
        read_file(folder / "online")
        for folder in (root / _POWER).glob("*")
        if read_file(folder / "type") in {"Mains", "USB"}
    )
    if "1" in online:
        return "mains"
    batteries = _batteries(root)
    if any(read_file(folder / "status") == "Discharging" for folder in batteries):
        return "battery"
    return "mains" if batteries else None


def _batteries(root: Path) -> list[Path]:
    # A mouse has a battery, too: its scope is "Device".
    return [
        folder
        for folder in sorted((root / _POWER).glob("*"))
        if read_file(folder / "type") == "Battery" and read_file(folder / "scope").lower() != "device"
    ]


def _source_of_mac() -> Source | None:
    command = ["/usr/bin/pmset", "-g", "ps"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "battery" if "'Battery Power'" in told else "mains" if "'AC Power'" in told else None


def number(path: Path) -> int | None:
    """The whole number in a file; None for anything else."""
    text = read_file(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None
