"""What else the machine did while something was timed here: other programs' work, waiting, stolen time, a lowered clock.

Counters of Linux (proc(5), cgroups(7), https://docs.kernel.org/scheduler/sched-stats.html); elsewhere the load average is all.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.runtimes.control_groups import own_groups
from edgekit.runtimes.files import read_file
from edgekit.runtimes.machine import load_average

Seen = Mapping[str, float | None]
"""What `watch` says: by name, None where the system does not tell."""

_STAT, _TASKS = "/proc/stat", "/proc/self/task"
# In a control group's cpu.stat: version 2 counts microseconds, version 1 nanoseconds.
_DENIED_KEYS = {"throttled_usec": 1e6, "throttled_time": 1e9}
_HEAT = ("/sys/devices/system/cpu", "cpu*/thermal_throttle/*_throttle_count")
# Bits 0 to 3 of the Raspberry Pi's word are of this moment: under-voltage, a capped clock, throttled, a soft limit of heat.
_PI = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_NOW = 0b1111
# What the system counts in ticks (10 ms) may be off by one on each end.
_TICKS_S = 0.02
# What a busy machine is: threads that waited for a core, time that a hypervisor or a control group took, cores' worth of others.
_WAITED, _STOLEN, _DENIED, _OTHERS = 0.05, 0.05, 0.01, 0.25
# A scheduler takes turns every few milliseconds. An NTP client turns a clock by 500 parts in a million at most, or sets it.
_PAUSED_S = 0.05
_STEP_S, _TURNED = 0.05, 0.002
_READINGS = 5


def watch() -> Callable[[], Seen]:
    """Look at the machine's counters; what is returned looks again and says what happened in between.

    seconds: the time in between. others: the cores' worth that other programs worked, of `cpus` cores (hardware threads).
    steal: share of the cores' time that the hypervisor gave to others. waited: share of this process's wish for a core that it
    waited for one. throttled: share of the time that its control group was denied a core. slowed: how often heat or the power
    supply lowered the clock. switches: how often another thread took its core. load: the load average. stepped: the seconds that
    the clock of the day was set forward (or back, < 0). slept: the seconds that the machine was suspended. None: not told.
    """
    (begun, day), before = _moment(), _counters()

    def tell() -> Seen:
        (ended, today), after = _moment(), _counters()
        passed: dict[str, float | None] = {
            key: None if value is None or after[key] is None else max(float(after[key] or 0.0) - value, 0.0)
            for key, value in before.items()
        }
        seconds, own = max(ended - begun, 1e-9), passed["own"] or 0.0
        busy, steal, waited = passed["busy"], passed["steal"], passed["waited"]
        cpus = _cpus()
        return {
            "seconds": round(seconds, 6),
            "cpus": cpus,
            "others": None if busy is None else round(max(busy - own - _TICKS_S, 0.0) / seconds, 4),
            "steal": None if steal is None else round(max(steal - _TICKS_S, 0.0) / seconds / cpus, 4),
            "waited": None if waited is None else round(waited / max(waited + own, 1e-9), 4),
            "throttled": None if passed["throttled"] is None else round(passed["throttled"] / seconds, 4),
            "slowed": int(passed["slowed"] or 0) + (1 if _lowered() else 0),
            "switches": None if passed["switches"] is None else int(passed["switches"]),
            "load": load_average(),
            "stepped": round(today - day - seconds - (passed["slept"] or 0.0), 4),
            "slept": passed["slept"],
        }

    return tell


def disturbances(told: Sequence[Seen], threads: int) -> list[str]:
    """What disturbed the timed calls, from what each process saw of its neighbours; empty where the machine was quiet.

    `told`: as `watch` tells it; averaged over the time that each took. The load average counts only where a system
    tells nothing better: it is of a whole minute, and of a container's whole host.
    """
    found = []
    waited, others, steal, denied = (mean(told, key) for key in ("waited", "others", "steal", "throttled"))
    cpus = max((int(one.get("cpus") or 0) for one in told), default=0)
    if waited is not None and waited > _WAITED:
        found.append(f"its threads waited {waited:.0%} of their time for a core")
    if others is not None and cpus and others + min(threads, cpus) > cpus + max(_OTHERS, _STOLEN * cpus):
        found.append(f"other programs took {others:.1f} of {cpus} cores")
    if steal is not None and steal > _STOLEN:
        found.append(f"the hypervisor gave {steal:.0%} of the cores' time to others")
    if denied is not None and denied > _DENIED:
        found.append(f"its container was denied a core {denied:.0%} of the time")
    if any(one.get("slowed") for one in told):
        found.append("heat or the power supply lowered its clock")
    load = mean(told, "load")
    if waited is None and others is None and load is not None and cpus and load > threads + max(cpus / 4, 1.0):
        found.append(f"load {load:.1f} on {cpus} cores")
    paused = max((one.get("paused") or 0.0 for one in told), default=0.0)
    if paused > _PAUSED_S:
        found.append(f"a call stood still for {paused:.2f} s: its process was stopped, or had no core")
    if any((one.get("slept") or 0.0) > _STEP_S for one in told):
        found.append("the machine was suspended meanwhile")
    return found


def mean(told: Sequence[Seen], key: str) -> float | None:
    """The mean of what the processes saw, each by the time that it took; None where none of them was told."""
    known = [(value, one.get("seconds") or 0.0) for one in told if (value := one.get(key)) is not None]
    seconds = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / seconds if seconds else None


def stepped(told: Sequence[Seen]) -> float | None:
    """The farthest that the clock of the day was set while something was timed, in seconds; None where it was not set.

    Times are of a clock that nobody sets; a record's dates, and temperatures by the clock, are not.
    """
    steps = [
        value
        for one in told
        if abs(value := one.get("stepped") or 0.0) > max(_STEP_S, _TURNED * (one.get("seconds") or 0.0))
    ]
    return max(steps, key=abs, default=None)


def _counters() -> dict[str, float | None]:
    """All counters, of times in seconds."""
    busy, steal = worked(read_file(_STAT), os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)
    return {
        "own": time.process_time(),
        "busy": busy,
        "steal": steal,
        "waited": _waited(),
        "throttled": _throttled(),
        "slowed": _slowed(),
        "switches": _switches(),
        "slept": _slept(),
    }


def _moment() -> tuple[float, float]:
    """A clock that nobody sets, and the clock of the day, at one moment.

    On a busy machine a process may lose its core between two readings, for longer than what counts as a step: of several pairs it
    is the one whose readings lie closest.
    """
    pairs = []
    for _ in range(_READINGS):
        begun, day, ended = time.perf_counter(), time.time(), time.perf_counter()
        pairs.append((ended - begun, begun, day))
    _, clock, day = min(pairs)
    return clock, day


def worked(stat: str, ticks: float) -> tuple[float | None, float | None]:
    """Seconds that all cores together worked (guests' are in user's), and that were stolen, since the system started.

    stat: the text of /proc/stat, which counts `ticks` in a second.
    """
    told = re.match(r"cpu +(\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", stat)
    if told is None:
        return None, None
    user, nice, system, _idle, _io, irq, soft, steal = (int(value) / ticks for value in told.groups())
    # A sandbox has the file, with nothing in it.
    return (user + nice + system + irq + soft, steal) if user + system else (None, None)


def _cpus() -> int:
    return len(re.findall(r"^cpu\d+ ", read_file(_STAT), re.MULTILINE)) or os.cpu_count() or 1


def _waited() -> float | None:
    """Seconds that this process's threads were ready to run and did not."""
    told = [read_file(f"{_TASKS}/{task}/schedstat").split() for task in _list(_TASKS)]
    waits = [int(words[1]) for words in told if len(words) > 1]
    return sum(waits) / 1e9 if waits else None


def _throttled() -> float | None:
    told = [read_file(str(folder / "cpu.stat")) for folder in own_groups()]
    counts = [
        int(found.group(1)) / unit
        for text in told
        for key, unit in _DENIED_KEYS.items()
        if (found := re.search(rf"^{key} (\d+)$", text, re.MULTILINE))
    ]
    return sum(counts) if counts else None


def _slept() -> float | None:
    """Seconds that the machine was suspended since it started: CLOCK_BOOTTIME goes on then, CLOCK_MONOTONIC does not."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    # A core that is lost between the two readings makes it less, never more.
    both = (
        (time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC)) for _ in range(_READINGS)
    )
    return max(0.0, *(boot - clock for boot, clock in both))


def _slowed() -> float | None:
    folder, pattern = _HEAT
    counts = [read_file(str(path)) for path in Path(folder).glob(pattern)]
    return float(sum(int(count) for count in counts if count.isdigit()))


def _lowered() -> bool:
    word = read_file(_PI)
    return bool(re.fullmatch(r"(0x)?[0-9a-fA-F]+", word)) and bool(int(word, 16) & _NOW)


def _switches() -> float | None:
    try:
        import resource
    except ModuleNotFoundError:
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
