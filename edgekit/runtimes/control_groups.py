"""The share of a machine's time that this process's control groups give it (cgroups(7)); containers and services have one.

root: where the system's files lie; another folder in tests.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.runtimes.files import read_file

_MINE, _FOLDER = "proc/self/cgroup", "sys/fs/cgroup"
_SYSTEM = Path("/")


def own_groups(root: Path = _SYSTEM) -> list[Path]:
    """The folders of the control groups that share out this process's time: its own first, the root last.

    A container may see its own group as the root, while the process is told a path that only its host has.
    """
    groups: list[Path] = []
    for line in read_file(root / _MINE).splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        top = root / _FOLDER if number == "0" else root / _FOLDER / "cpu"
        inside = top / path.lstrip("/")
        groups += [folder for folder in (inside, *inside.parents) if folder == top or top in folder.parents]
    groups = groups or [root / _FOLDER, root / _FOLDER / "cpu"]
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
