"""What of a machine this process's control groups give it (cgroups(7)), time and memory; containers and services have one.

root: where the system's files lie; another folder in tests.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgekit.runtimes.files import read_file

_MINE, _FOLDER = "proc/self/cgroup", "sys/fs/cgroup"
_SYSTEM = Path("/")


def own_groups(root: Path = _SYSTEM, controller: str = "cpu") -> list[Path]:
    """The folders of the control groups that share out this process's time, or its "memory": its own first, the root last.

    A container may see its own group as the root, while the process is told a path that only its host has.
    """
    groups: list[Path] = []
    for line in read_file(root / _MINE).splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        top = root / _FOLDER if number == "0" else root / _FOLDER / controller
        inside = top / path.lstrip("/")
        groups += [folder for folder in (inside, *inside.parents) if folder == top or top in folder.parents]
    groups = groups or [root / _FOLDER, root / _FOLDER / controller]
    return [folder for folder in groups if folder.is_dir()]


def limit_cores(root: Path = _SYSTEM) -> float | None:
    """The cores' worth of time that this process may take by its groups' limits; None where none is limited.

    Version 2 has "quota period" in microseconds ("max": no limit), version 1 a file each (-1: no limit);
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files.
    """
    limits = []
    for folder in own_groups(root):
        words = read_file(folder / "cpu.max") or " ".join(
            read_file(folder / f"cpu.cfs_{key}_us") for key in ("quota", "period")
        )
        quota, _, period = words.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def free_memory(root: Path = _SYSTEM) -> int | None:
    """The bytes that this process may still take: what the system has (MemAvailable, proc_meminfo(5)), and of each group that has
    a limit what is below it. None where the system does not say.

    A group's use holds pages of files that the system takes back (inactive_file): those are free. Version 2 has memory.max and
    memory.current, version 1 memory.limit_in_bytes and memory.usage_in_bytes;
    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files.
    """
    told = re.search(r"^MemAvailable:\s+(\d+) kB$", read_file(root / "proc/meminfo"), re.MULTILINE)
    free = [int(told[1]) * 1024] if told else []
    for folder in own_groups(root, "memory"):
        limit, used = (
            read_file(folder / names[0]) or read_file(folder / names[1])
            for names in (("memory.max", "memory.limit_in_bytes"), ("memory.current", "memory.usage_in_bytes"))
        )
        if limit.isdigit() and used.isdigit():
            # Of version 1 the total is of the groups inside too, as its use is.
            files = re.findall(r"^(?:total_)?inactive_file (\d+)$", read_file(folder / "memory.stat"), re.MULTILINE)
            free.append(max(0, int(limit) - int(used) + int(files[-1] if files else 0)))
    return min(free, default=None)
