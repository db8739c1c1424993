"""The share of time that control groups give, read from trees of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.runtimes.control_groups import limit_cores, own_groups
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
