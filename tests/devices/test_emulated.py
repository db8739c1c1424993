"""The emulated board: what a test finds there, and that nothing of it stays."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.devices.emulated import board
from tests.devices.sshd import HOST, Reachable


def say(device: Reachable, command: str) -> str:
    done = subprocess.run([device.commands / "ssh", HOST, command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def part(device: Reachable) -> str:
    (line,) = {line for line in say(device, "cat /proc/cpuinfo").splitlines() if line.startswith("CPU part")}
    return line.split(":")[1].strip()


def test_a_board_is_another_machine(arm_board: Reachable) -> None:
    assert say(arm_board, "uname -m") == "aarch64"
    assert part(arm_board) == "0xd0b"
    assert "asimddp" in say(arm_board, "cat /proc/cpuinfo")


def test_a_board_of_another_cpu_leaves_nothing(tmp_path: Path) -> None:
    with board(tmp_path, cpu="cortex-a72") as device:
        assert part(device) == "0xd08"
        assert "asimddp" not in say(device, "cat /proc/cpuinfo")
        say(device, "sleep 600 >/dev/null 2>&1 </dev/null & echo > /root/written")
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path("/proc", process, "cmdline").read_bytes()
        except OSError:
            continue
        assert b"sleep\x00600" not in line
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
