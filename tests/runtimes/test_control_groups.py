"""What control groups give of time and memory, read from trees of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.runtimes.control_groups import free_memory, limit_cores, own_groups
from tests.devices.surveys import tree


@pytest.mark.parametrize(
    ("mine", "files", "limit"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a.slice/b.service", {"a.slice/cpu.max": "150000 100000", "a.slice/b.service/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/elsewhere", {"cpu.max": "200000 100000"}, 2.0),
        ("1:cpu,cpuacct:/box\n9:name=systemd:/", {"cpu/box/cpu.cfs_quota_us": "25000", "cpu/box/cpu.cfs_period_us": "100000"}, 0.25),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ("", {}, None),
    ],
    ids=["no limit", "a group above", "the tightest", "a host's path", "version 1", "version 1, no limit", "not told", "none"],
)  # fmt: skip
def test_the_limit_of_own_and_outer_groups(
    mine: str, files: dict[str, str], limit: float | None, tmp_path: Path
) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": mine, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}})
    assert limit_cores(root) == limit


def test_a_system_without_groups(tmp_path: Path) -> None:
    assert own_groups(tmp_path) == []


MEMINFO = "MemTotal: 8000000 kB\nMemFree: 100000 kB\nMemAvailable: 4000000 kB"


@pytest.mark.parametrize(
    ("mine", "files", "free"),
    [
        ("", {}, 4_096_000_000),
        ("0::/a/b", {"a/memory.max": "max", "a/b/memory.max": "max", "a/b/memory.current": "5"}, 4_096_000_000),
        ("0::/a/b", {"a/memory.max": "1000000", "a/memory.current": "400000", "a/b/memory.max": "max"}, 600_000),
        (
            "0::/a",
            {"a/memory.max": "1000", "a/memory.current": "900", "a/memory.stat": "anon 1\ninactive_file 300\nfile 9"},
            400,
        ),
        ("0::/a", {"a/memory.max": "1000", "a/memory.current": "1001"}, 0),
        (
            "4:memory:/box\n1:cpu:/",
            {
                "memory/box/memory.limit_in_bytes": "1000",
                "memory/box/memory.usage_in_bytes": "700",
                "memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 50",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "2000",
            },
            350,
        ),
    ],
    ids=["no group", "no limit", "a group above", "pages of files", "over its limit", "version 1"],
)
def test_the_memory_that_is_free(mine: str, files: dict[str, str], free: int, tmp_path: Path) -> None:
    groups = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    root = tree(tmp_path, {"proc/self/cgroup": mine, "proc/meminfo": MEMINFO, **groups})
    assert free_memory(root) == free


def test_a_system_that_does_not_say_what_is_free(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
