"""What a call costs in energy, where the machine has a meter: joules of all that the meter covers (gross) and above idle (net).

Meters, of which the first that is there is taken: INA2xx chips (hwmon), the power chip of a Raspberry Pi 5 (`vcgencmd`), Intel's
and AMD's counters (RAPL, powercap), a battery's gauge while it discharges, macOS's powermetrics (as root). What each one covers
its method says: RAPL counts the processor and its memory, an INA2xx chip the rail that it lies on. Where there is none, or what
it said proves nothing, there is no figure but a reason: energy is measured or it is not told.

The machine is watched idle, then calling, then idle again; idle power is of both spells, and where they disagree nothing is told.
MLPerf Power (arXiv:2410.12032) measures so, too, at the wall. A counter that began again at 0 went past `max_energy_range_uj`
(https://docs.kernel.org/power/powercap/powercap.html); where it may have done so twice since the last look, or the machine has
slept, nothing is told.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

# Seconds of each idle spell and of calls; a longer idle one tells no more where power is steady, and where not nothing is told.
IDLE_S, BUSY_S = 4.0, 6.0
# More than any processor of one board or laptop takes: a counter that rose faster than this was reset, or went round unseen.
MOST_W = 1000.0
# Power between two readings is interpolated; over a longer gap that would be a guess.
GAP_S = 1.5
# Of a gauge: fewer different readings than this say nothing of the calls' time.
FEWEST = 8
# Idle power before and after may differ by this share of what the calls took above it.
STEADY = 0.2
_COMMAND_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One thing that a meter reads: joules counted (with the range after which it begins again) or watts; None where it fails."""

    read: Callable[[], float | None]
    range_j: float | None = None


@dataclass(frozen=True, kw_only=True)
class Meter:
    """method: what it is, in words; every_s: how often it is read; channels: all counters, or all powers, that are summed."""

    method: str
    every_s: float
    channels: tuple[Channel, ...]

    def look(self) -> tuple[float | None, ...]:
        """What all channels say now."""
        return tuple(channel.read() for channel in self.channels)


class Spent(TypedDict):
    """Joules of one call: net is above idle. idle_w: the idle power, W; calls: how many were measured, in so many seconds."""

    net: float
    gross: float
    method: str
    idle_w: float
    calls: int
    seconds: float


class Told(TypedDict):
    """The line of the protocol: what one call costs or None, and then why."""

    energy_j: Spent | None
    why: str | None


Sample = tuple[float, tuple[float | None, ...]]
"""When (seconds of a monotonic clock), and what each channel said."""


class Unknown(Exception):
    """What the meter said proves nothing; why."""


def spent(call: Callable[[], object], *, meter: Meter | None = None) -> Told:
    """What one call costs. meter: without it the machine's own."""
    meter, absent = (meter, "") if meter else find()
    if meter is None:
        return {"energy_j": None, "why": f"not measurable here: {absent}"}
    try:
        return {"energy_j": _measure(call, meter), "why": None}
    except Unknown as why:
        return {"energy_j": None, "why": f"not measured: {why} ({meter.method})"}


def _measure(call: Callable[[], object], meter: Meter) -> Spent:
    before = _watched(meter, lambda: time.sleep(IDLE_S))
    calls = 0

    def work() -> None:
        nonlocal calls
        end = time.monotonic() + BUSY_S
        while time.monotonic() < end:
            call()
            calls += 1

    during = _watched(meter, work)
    after = _watched(meter, lambda: time.sleep(IDLE_S))
    if meter.channels[0].range_j is None and len({seen for _, seen in during}) < FEWEST:
        raise Unknown(f"it gave only {len({seen for _, seen in during})} different readings in {BUSY_S:g} s")
    idle = [energy_j(meter.channels, samples) / _seconds(samples) for samples in (before, after)]
    idle_w, seconds, gross = sum(idle) / 2, _seconds(during), energy_j(meter.channels, during)
    net = gross - idle_w * seconds
    if net <= 0 or abs(idle[0] - idle[1]) * seconds > STEADY * net:
        raise Unknown(
            f"idle power was {idle[0]:.3g} W before and {idle[1]:.3g} W after, and {gross / seconds:.3g} W while it worked"
        )
    return {
        "net": net / calls,
        "gross": gross / calls,
        "method": meter.method,
        "idle_w": idle_w,
        "calls": calls,
        "seconds": seconds,
    }


def _watched(meter: Meter, during: Callable[[], None]) -> list[Sample]:
    """The meter's samples while something goes on, its begin and end among them."""
    samples: list[Sample] = [(time.monotonic(), meter.look())]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(meter.every_s):
            samples.append((time.monotonic(), meter.look()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        during()
    finally:
        ended.set()
        thread.join()
    samples.append((time.monotonic(), meter.look()))
    return samples


def _seconds(samples: Sequence[Sample]) -> float:
    return samples[-1][0] - samples[0][0]


def energy_j(channels: Sequence[Channel], samples: Sequence[Sample]) -> float:
    """Joules from the first sample to the last, over all channels. Raises Unknown where that is not known."""
    return sum(
        _channel_j(channel, [(at, seen[index]) for at, seen in samples]) for index, channel in enumerate(channels)
    )


def _channel_j(channel: Channel, samples: Sequence[tuple[float, float | None]]) -> float:
    known = [(at, value) for at, value in samples if value is not None]
    if len(known) < 2 or samples[0][1] is None or samples[-1][1] is None:
        raise Unknown("it could not be read when the calls began or ended")
    if channel.range_j is not None:
        return sum(_counted(channel.range_j, *pair) for pair in pairwise(known))
    if (gap := max(later - earlier for (earlier, _), (later, _) in pairwise(known))) > GAP_S:
        raise Unknown(f"it could not be read for {gap:.1f} s")
    # The trapezoidal rule.
    return sum((later - earlier) * (one + two) / 2 for (earlier, one), (later, two) in pairwise(known))


def _counted(range_j: float, before: tuple[float, float], after: tuple[float, float]) -> float:
    """Joules between two looks at a counter that begins again at 0 after its range."""
    seconds, rise = after[0] - before[0], after[1] - before[1]
    if seconds * MOST_W >= range_j:
        raise Unknown(
            f"it could not be read for {seconds:.0f} s, in which its counter may have gone round more than once"
        )
    rise += range_j if rise < 0 else 0.0
    if rise > MOST_W * max(seconds, 1e-3):
        raise Unknown(f"its counter was reset: it rose by {rise:.0f} J in {seconds:.2f} s")
    return rise


def find(root: Path = Path("/")) -> tuple[Meter | None, str]:
    """The machine's meter; where it has none, why in words. root: of the system's files."""
    reasons = []
    for of in (_ina, _pi, _rapl, _battery, _mac):
        found = of(root)
        if isinstance(found, Meter):
            return found, ""
        reasons += [found] if found else []
    return None, "; ".join(
        reasons
    ) or "no meter that edgekit reads (RAPL, INA2xx, a discharging battery, a Pi 5's power chip)"


def _file(path: Path, unit: float) -> Callable[[], float | None]:
    """What reads a number from a file of the system."""

    def read() -> float | None:
        try:
            return int(path.read_text(encoding="ascii")) * unit
        except (OSError, ValueError):
            return None

    return read


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _product(one: Callable[[], float | None], two: Callable[[], float | None]) -> Callable[[], float | None]:
    """Watts of volts and amperes, whose sign is the direction of charging."""

    def read() -> float | None:
        values = one(), two()
        return None if values[0] is None or values[1] is None else abs(values[0] * values[1])

    return read


def _ina(root: Path) -> Meter | None:
    """INA219, 226, 3221, ... on a board: power in microwatts, or millivolts times milliamperes (hwmon's sysfs interface)."""
    found: dict[str, Channel] = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = _word(folder / "name")
        if not name.startswith("ina"):
            continue
        for volts in sorted(folder.glob("in[0-9]_input")):
            index = volts.name[2]
            label = _word(folder / f"in{index}_label") or f"{folder.name} {index}"
            # Of one with a single rail, in0 is the drop over its shunt and in1 the rail.
            current = folder / f"curr{index}_input"
            power = folder / f"power{index}_input"
            if power.exists():
                read = _file(power, 1e-6)
            elif current.exists():
                read = _product(_file(volts, 1e-3), _file(current, 1e-3))
            else:
                continue
            found[f"{name.upper()} {label}"] = Channel(read=read)
    # Where a board says which rail feeds all others (NVIDIA Jetson), they are in it.
    whole = {name: channel for name, channel in found.items() if name.endswith(("VDD_IN", "POM_5V_IN"))} or found
    usable = {name: channel for name, channel in whole.items() if channel.read() is not None}
    if not usable:
        return None
    return Meter(method=", ".join(usable), every_s=0.1, channels=tuple(usable.values()))


def _rapl(root: Path) -> Meter | str | None:
    """Counters of the processors' packages and of their memory, microjoules."""
    zones: dict[str, Channel] = {}
    top = [zone for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")) if zone.name.count(":") == 1]
    packages = [zone for zone in top if _word(zone / "name").startswith("package")]
    for package in packages:
        inner = [zone for zone in sorted(package.glob("intel-rapl:*")) if _word(zone / "name") == "dram"]
        for zone in (package, *inner):
            whole = _file(zone / "max_energy_range_uj", 1e-6)()
            read = _file(zone / "energy_uj", 1e-6)
            if whole and read() is not None:
                owner = "" if zone is package else f"{_word(package / 'name')} "
                zones[owner + _word(zone / "name")] = Channel(read=read, range_j=whole)
    if not zones:
        return "RAPL counters are there, and only root may read them" if packages else None
    # A look each second: the counters themselves do the integral.
    return Meter(method=f"RAPL {', '.join(zones)}", every_s=1.0, channels=tuple(zones.values()))


def _battery(root: Path) -> Meter | str | None:
    """A battery's gauge, which measures the whole machine while nothing charges it: its power, or its voltage and current."""
    found: dict[str, Channel] = {}
    charging = False
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        if _word(folder / "type") != "Battery" or _word(folder / "scope") == "Device":
            continue
        if _word(folder / "status") != "Discharging":
            charging = True
            continue
        read = _file(folder / "power_now", 1e-6)
        if read() is None:
            read = _product(_file(folder / "current_now", 1e-6), _file(folder / "voltage_now", 1e-6))
        if read() is not None:
            found[folder.name] = Channel(read=read)
    if not found:
        return "the battery does not discharge: unplug the charger to measure by its gauge" if charging else None
    return Meter(method=f"battery gauge {', '.join(found)}", every_s=0.25, channels=tuple(found.values()))


def _pi(_root: Path) -> Meter | None:
    """The power chip of a Raspberry Pi 5: what its rails give, without what the 5 V supply and USB lose."""
    command = shutil.which("vcgencmd")
    if command is None:
        return None
    return _commanded([command, "pmic_read_adc"], pmic_watts, "vcgencmd pmic_read_adc", every_s=0.2)


def _mac(_root: Path) -> Meter | str | None:
    if platform.system() != "Darwin":
        return None
    if os.geteuid():
        return "powermetrics measures only for root"
    command = ["powermetrics", "--samplers", "cpu_power,gpu_power,ane_power", "-i", "100", "-n", "1"]
    return _commanded(command, powermetrics_watts, "powermetrics CPU, GPU, ANE", every_s=0.0)


def _commanded(command: list[str], parse: Callable[[str], float | None], method: str, every_s: float) -> Meter | None:
    """A meter that a program reads; None where it does not."""

    def read() -> float | None:
        try:
            told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMMAND_S).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
        return parse(told)

    return None if read() is None else Meter(method=method, every_s=every_s, channels=(Channel(read=read),))


def pmic_watts(text: str) -> float | None:
    """The sum over rails of amperes times volts, of what `vcgencmd pmic_read_adc` prints; None where it has no rail with both."""
    found: dict[str, dict[str, float]] = {}
    for rail, kind, value in re.findall(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]", text):
        found.setdefault(rail, {})[kind] = float(value)
    powers = [values["A"] * values["V"] for values in found.values() if len(values) == 2]
    return sum(powers) if powers else None


def powermetrics_watts(text: str) -> float | None:
    """What `powermetrics` calls the combined power, else the sum of CPU, GPU and ANE; None where it says neither."""
    told = re.findall(r"^(\w+) Power[^:\n]*: (\d+) mW", text, re.MULTILINE)
    found = {name: float(value) / 1000 for name, value in told}
    return found.get("Combined") or (sum(found.values()) if found else None)
