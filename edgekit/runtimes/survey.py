"""What a machine is, in the state that it is in: what a target file says of a board, and what hinders a fair measurement there.

`python -m edgekit.runtimes.survey [speed]` prints a `Survey` as one line of JSON; with `speed` its speeds are measured too.
Files are those of Linux; elsewhere, and where a system does not tell something, it is None or an empty list.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from edgekit.runtimes import RUNTIMES, neighbours
from edgekit.runtimes.accelerators import Accelerator, find_accelerators, say
from edgekit.runtimes.control_groups import limit_cores
from edgekit.runtimes.emulation import emulation
from edgekit.runtimes.files import read_file
from edgekit.runtimes.machine import Machine, describe, measure, read_gbs
from edgekit.runtimes.onnxruntime.library import build_type
from edgekit.runtimes.onnxruntime.throughput import saturation
from edgekit.runtimes.sensors import Cluster, Power, Zone, clusters, power, slowed, zones

# How often the machine's speed is measured, and how long its other load is watched.
ROUNDS, WATCH_S = 3, 1.0
# The Raspberry Pi's firmware tells here what `vcgencmd get_throttled` prints.
Ticks = tuple[str, int]
"""A process's name and the processor time that it has taken, in the system's ticks."""
_PI = "sys/devices/platform/*/*firmware/get_throttled"


class MemoryState(TypedDict):
    """MiB. available: what programs may still take without swapping."""

    total_mb: int
    available_mb: int
    swap_mb: int
    swap_used_mb: int


class Heat(TypedDict):
    """zones; slowed: what the kernel holds down now (its cooling devices); throttled: the Raspberry Pi's word, see `doctor`."""

    zones: list[Zone]
    slowed: list[str]
    throttled: int | None


class Allowed(TypedDict):
    """The cores that are online, that this process may use, and that its control groups pay for (None: no limit)."""

    online: int
    cores: int
    quota: float | None


class Program(TypedDict):
    """Another program that worked while the machine was watched; cores: how many it kept busy."""

    name: str
    pid: int
    cores: float


class Busy(TypedDict):
    """What `neighbours.watch` saw in a second in which this process slept, and the programs that worked most."""

    seen: dict[str, float | None]
    programs: list[Program]


class Library(TypedDict):
    """A runtime's library. version: None where it is not installed; problem: why it does not load; debug: of a debug build."""

    name: str
    version: str | None
    problem: str | None
    debug: bool | None
    providers: list[str]


class Speed(TypedDict):
    """Measured speeds by round, whether bytes saturate by the types of their product, and what the machine did meanwhile."""

    rounds: list[dict[str, float]]
    saturates: dict[str, bool]
    seen: dict[str, float | None]


class Survey(TypedDict):
    """Everything. system: the operating system's name; board: the board's, as its firmware has it; emulated: what shows it."""

    machine: Machine
    system: str
    board: str | None
    clusters: list[Cluster]
    memory: MemoryState
    heat: Heat
    power: Power
    allowed: Allowed
    busy: Busy
    engines: list[Library]
    accelerators: list[Accelerator]
    speed: Speed | None
    emulated: list[str]


def look(root: Path = Path("/"), *, engines: bool = True, watch_s: float = WATCH_S) -> Survey:
    """The machine whose files are under `root`, unmeasured. engines: import each to see whether it loads."""
    facts = describe()
    return {
        "machine": facts,
        "system": _system(root),
        "board": read_file(root / "proc/device-tree/model").rstrip("\0") or None,
        "clusters": clusters(root),
        "memory": memory(root),
        "heat": {"zones": list(zones(root)), "slowed": list(slowed(root)), "throttled": _throttled(root)},
        "power": power(root),
        "allowed": allowed(root),
        "busy": watch(root, watch_s),
        "engines": list(_engines()) if engines else [],
        "accelerators": find_accelerators(),
        "speed": None,
        "emulated": emulation(facts, {}),
    }


def measured(survey: Survey) -> Survey:
    """The same with its speeds, best taken of several rounds; one round of an emulated machine, which is slow."""
    tell = neighbours.watch()
    rounds: list[dict[str, float]] = []
    facts, shows = survey["machine"], survey["emulated"]
    while len(rounds) < (1 if shows else ROUNDS):
        rounds.append({**measure(accelerated=True), "read_gbs": read_gbs()})
        shows = shows or emulation(facts, rounds[-1])
    speed: Speed = {"rounds": rounds, "saturates": saturation(), "seen": dict(tell())}
    return {**survey, "speed": speed, "emulated": shows}


def _system(root: Path) -> str:
    """The operating system's name as it calls itself (os-release(5)), with its kernel."""
    named = re.search(r'^PRETTY_NAME="?([^"\n]*)', read_file(root / "etc/os-release"), re.MULTILINE)
    kernel = f"{platform.system()} {platform.release()}"
    return f"{named[1]}, {kernel}" if named else platform.platform(aliased=True)


def memory(root: Path) -> MemoryState:
    """What /proc/meminfo says, which counts in KiB; zeros where there is none."""
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", read_file(root / "proc/meminfo"), re.M)}
    swap = kib.get("SwapTotal", 0)
    return {
        "total_mb": kib.get("MemTotal", 0) // 1024,
        "available_mb": kib.get("MemAvailable", 0) // 1024,
        "swap_mb": swap // 1024,
        "swap_used_mb": (swap - kib.get("SwapFree", swap)) // 1024,
    }


def _throttled(root: Path) -> int | None:
    word = next((read_file(path) for path in root.glob(_PI)), "").removeprefix("throttled=")
    if not word and root == Path("/"):
        word = say(["vcgencmd", "get_throttled"]).strip().removeprefix("throttled=")
    return int(word, 16) if re.fullmatch(r"(0x)?[0-9a-fA-F]+", word) else None


def allowed(root: Path) -> Allowed:
    """The cores that there are, and how many of them this process gets."""
    online = os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else online
    return {"online": online, "cores": mine, "quota": limit_cores(root)}


def watch(root: Path, seconds: float) -> Busy:
    """What other programs do while this one sleeps."""
    tell, before = neighbours.watch(), _ticks(root)
    time.sleep(seconds)
    seen, after = dict(tell()), _ticks(root)
    passed = (seen["seconds"] or seconds) * (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)
    after.pop(os.getpid(), None)
    return {"seen": seen, "programs": busiest(before, after, passed)}


def busiest(before: Mapping[int, Ticks], after: Mapping[int, Ticks], passed: float) -> list[Program]:
    """The programs that worked most in so many ticks, three at most."""
    programs: list[Program] = [
        {"name": name, "pid": pid, "cores": round((ticks - before.get(pid, (name, ticks))[1]) / passed, 2)}
        for pid, (name, ticks) in after.items()
    ]
    worked = sorted((one for one in programs if one["cores"] >= 0.1), key=lambda one: -one["cores"])
    return worked[:3]


def _ticks(root: Path) -> dict[int, Ticks]:
    """Of each process."""
    return read_ticks(read_file(path) for path in (root / "proc").glob("[0-9]*/stat"))


def read_ticks(lines: Iterable[str]) -> dict[int, Ticks]:
    """By process, from the lines of /proc/PID/stat: fields 1, 2, 14 and 15."""
    found = {}
    for line in lines:
        pid, _, more = line.partition(" (")
        name, _, rest = more.rpartition(") ")
        fields = rest.split()
        if len(fields) > 12 and pid.isdigit():
            found[int(pid)] = (name, int(fields[11]) + int(fields[12]))
    return found


def _engines() -> Iterator[Library]:
    """Each runtime's library."""
    for name, runtime in RUNTIMES.items():
        engine: Library = {"name": name, "version": None, "problem": None, "debug": None, "providers": []}
        try:
            engine["version"] = runtime.version()
            engine["providers"] = runtime.providers()
            engine["debug"] = build_type() == "Debug" if name == "onnxruntime" else None
        except ModuleNotFoundError as missing:
            if missing.name != runtime.PACKAGE.module:
                engine["problem"] = str(missing)
        except (ImportError, OSError, RuntimeError, AttributeError) as broken:
            engine["problem"] = str(broken).strip().splitlines()[-1][:300] if str(broken).strip() else repr(broken)
        yield engine


def main() -> None:
    """Print the survey of this machine."""
    found = look()
    sys.stdout.write(json.dumps(measured(found) if "speed" in sys.argv[1:] else found) + "\n")


if __name__ == "__main__":
    main()
