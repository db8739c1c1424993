"""What a device without Python is and in which state: its system's files through its shell, an Android's own tools, and speeds by
the native probe.

The files are laid out here as they lie there, and read as those of any Linux. What a device's system does not let its shell
read stays unknown.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices import there
from edgekit.devices.adb import AdbDevice
from edgekit.devices.native import PROGRAM, built_probe, name_machine
from edgekit.errors import DeviceFailed
from edgekit.runtimes import onnxruntime
from edgekit.runtimes.control_groups import limit_cores
from edgekit.runtimes.emulation import emulation
from edgekit.runtimes.files import read_file
from edgekit.runtimes.machine import Machine, describe_files
from edgekit.runtimes.neighbours import worked
from edgekit.runtimes.sensors import Power, Zone, clusters, power, slowed, zones
from edgekit.runtimes.survey import ROUNDS, Busy, Heat, Library, Survey, busiest, memory, read_ticks
from edgekit.typed_json import read_table

_LOOK_S, _MEASURE_S = 120, 600
# What /proc counts processor time in: 100 of them are a second on every architecture that Android and edgekit know (USER_HZ).
_TICKS = 100
SAVER = "battery saver"
"""The power profile of an Android that saves its battery."""
# android.os.PowerManager's THERMAL_STATUS by its numbers.
_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
# A sensor that is not read says about -273, or the least float there is.
_COLDEST, _HOTTEST = -60.0, 200.0


@dataclass(frozen=True, kw_only=True)
class _Spoken:
    """What `edgekit-probe --survey` says."""

    version: str
    providers: tuple[str, ...]
    rounds: tuple[Mapping[str, float], ...]
    saturates: Mapping[str, bool]
    neighbours: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class _Device:
    device: Machine


def ask_shell(device: AdbDevice, *, speed: bool) -> Survey:
    """What the device's shell and the native probe say of it; with `speed` the probe measures, and tells what the machine is.

    Raises DeviceFailed where the device does not answer, and with `speed` where no native probe is built for it or it does not
    run there; without, that is a problem of the engine.
    """
    told = there.read_facts(device.run(["sh", "-c", there.FACTS], timeout_s=_LOOK_S).stdout)
    ended = device.run(["sh", "-c", there.SURVEY], timeout_s=_LOOK_S)
    said = device.run(["sh", "-c", there.CONDITION], timeout_s=_LOOK_S).stdout if "android" in told else ""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        root = Path(scratch)
        lay_out(ended.stdout, root)
        survey = read_survey(root, told, said)
    if not speed:
        return {**survey, "engines": [_beside_probe(device)]}
    facts = read_table(_Device, {"device": dict(device.facts())}, device.identity).device
    rounds = 1 if "emulator" in facts else ROUNDS
    spoken = _ask_program(device, rounds)
    measured = [dict(one) for one in spoken.rounds]
    return {
        **survey,
        "machine": facts,
        "engines": [_library(spoken)],
        "speed": {"rounds": measured, "saturates": dict(spoken.saturates), "seen": dict(spoken.neighbours)},
        "emulated": emulation(facts, measured[0]),
    }


def lay_out(text: str, root: Path) -> None:
    """Write the files that there.SURVEY showed below `root`, each by its path; DeviceFailed where it was cut."""
    parts = re.split(rf"^{there.FILE} /(.+)$", text, flags=re.MULTILINE)
    if not text.rstrip().endswith(there.SHOWN):
        raise DeviceFailed("what the device's shell said of its system was cut; run it again")
    for name, content in zip(parts[1::2], parts[2::2], strict=True):
        path = root / name
        if ".." in Path(name).parts or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.removeprefix("\n"), encoding="utf-8")


def read_survey(root: Path, told: Mapping[str, str], said: str) -> Survey:
    """What the files say of the device, and of an Android what its services said."""
    android, state = "android" in told, memory(root)
    kernel = read_file(root / "proc/sys/kernel/osrelease")
    system = there.system_of(told) or f"Linux {kernel}".strip()
    numbers = re.findall(r"^processor\s*:", read_file(root / "proc/cpuinfo"), re.MULTILINE)
    online = max(len(numbers), 1)
    mine = _count(re.search(r"^Cpus_allowed_list:\s*(\S+)$", read_file(root / "proc/self/status"), re.MULTILINE))
    cores = min(online, mine or online)
    machine = describe_files(root, arch=told["arch"], cores=cores, memory_mb=state["total_mb"], system=system)
    named = name_machine({"part": machine["part"], "cpu": machine["cpu"]})["cpu"]
    if android:
        # It swaps to memory that it compresses (zram), never to a disk.
        state = {**state, "swap_mb": 0, "swap_used_mb": 0}
    return {
        "machine": {**machine, "cpu": str(named)},
        "system": system,
        "board": None if android else read_file(root / "proc/device-tree/model").rstrip("\0") or None,
        "clusters": clusters(root),
        "memory": state,
        "heat": _heat(root, said),
        "power": _power(said) if android else power(root),
        "allowed": {"online": online, "cores": cores, "quota": limit_cores(root)},
        "busy": _busy(root),
        "engines": [],
        "accelerators": [],
        "speed": None,
        "emulated": emulation(machine, {}),
    }


def _count(found: re.Match[str] | None) -> int:
    """The length of a list as Linux writes it (0-3,6); 0 where there is none."""
    total = 0
    for part in found[1].split(",") if found else ():
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _heat(root: Path, said: str) -> Heat:
    """The zones and what slows the machine: of an Android by its thermal service (ThermalManagerService.dump), where that has a
    device's own sensors; else by the kernel's files."""
    current = said.partition("Current temperatures from HAL:")[2]
    limits = {
        name: next((float(value) for value in values.split(",")[1:] if "NaN" not in value), None)
        for name, values in re.findall(r"mName=([^,}]+), mHotThrottlingThresholds=\[([^\]]*)\]", current)
    }
    felt: list[Zone] = [
        {"name": name, "celsius": float(value), "slows_at": limits.get(name)}
        for value, name in re.findall(r"Temperature\{mValue=(-?[\d.]+), mType=\d+, mName=([^,}]+)", current)
        if _COLDEST < float(value) < _HOTTEST
    ]
    # mType 2: a processor's (android.os.CoolingDevice).
    held = [
        name
        for value, name in re.findall(r"CoolingDevice\{mValue=(\d+), mType=2, mName=([^,}]+)", current)
        if int(value)
    ]
    if (status := int(there.read_condition(said).get("thermal_status", 0))) in range(1, len(_STATUS)):
        held.append(f"Android's thermal status: {_STATUS[status]}")
    return {"zones": felt or list(zones(root)), "slowed": [*held, *slowed(root)], "throttled": None}


def _power(said: str) -> Power:
    """Where an Android's current comes from, as its battery service says."""
    condition = there.read_condition(said)
    plugged, percent = condition.get("plugged"), condition.get("battery_percent")
    return {
        "on_battery": None if plugged is None else not plugged,
        "percent": None if percent is None else round(percent),
        "profile": SAVER if condition.get("low_power") else None,
    }


def _busy(root: Path) -> Busy:
    """What the programs there did in the second between both readings; those that its shell may see."""
    before, after = (_reading(root / name) for name in ("before", "after"))
    uptime = [read_file(root / name / "uptime").split() for name in ("before", "after")]
    seconds = float(uptime[1][0]) - float(uptime[0][0]) if all(uptime) else 0.0
    stat = read_file(root / "after/stat")
    seen: dict[str, float | None] = {"seconds": seconds, "others": None, "steal": None}
    if seconds > 0 and None not in (*before, *after):
        (busy, steal), (busy_then, steal_then) = _known(after), _known(before)
        cpus = len(re.findall(r"^cpu\d+ ", stat, re.MULTILINE)) or 1
        seen |= {"cpus": cpus, "others": round((busy - busy_then) / seconds, 4)}
        seen |= {"steal": round((steal - steal_then) / seconds / cpus, 4)}
    first, last = (read_ticks(read_file(root / name / "programs").splitlines()) for name in ("before", "after"))
    return {"seen": seen, "programs": busiest(first, last, seconds * _TICKS) if seconds > 0 else []}


def _reading(folder: Path) -> tuple[float | None, float | None]:
    return worked(read_file(folder / "stat"), _TICKS)


def _known(reading: tuple[float | None, float | None]) -> tuple[float, float]:
    return float(reading[0] or 0), float(reading[1] or 0)


def _beside_probe(device: AdbDevice) -> Library:
    """The library beside the native probe, as far as it runs there."""
    engine: Library = {"name": onnxruntime.NAME, "version": None, "problem": None, "debug": None, "providers": []}
    try:
        return _library(_ask_program(device, 0))
    except DeviceFailed as failed:
        return {**engine, "problem": failed.message.removeprefix(f"{device.identity}: ").partition("; run:")[0]}


def _library(spoken: _Spoken) -> Library:
    return {
        "name": onnxruntime.NAME,
        "version": spoken.version,
        "problem": None,
        "debug": None,
        "providers": [*spoken.providers],
    }


def _ask_program(device: AdbDevice, rounds: int) -> _Spoken:
    """Send the native probe and let it speak. Raises DeviceFailed where none is built, or it does not run there."""
    program = f"{device.push(built_probe(device.platform))}/{PROGRAM}"
    ended = device.run([program, "--survey", str(rounds)], timeout_s=_MEASURE_S)
    if ended.returncode != 0:
        last = next((line.strip() for line in reversed(ended.stderr.splitlines()) if line.strip()), "no word")
        raise DeviceFailed(
            f"{device.identity}: the native probe ends with exit code {ended.returncode}: {last[:300]}; run:"
            f" {device.platform.build_command}"
        )
    try:
        table = json.loads(ended.stdout)
    except ValueError as garbled:
        raise DeviceFailed(f"{device.identity}: what the native probe says is garbled; run it again") from garbled
    return read_table(_Spoken, table, device.identity)
