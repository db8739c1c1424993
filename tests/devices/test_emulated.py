"""The emulated board: what a test finds there, and that nothing of it stays."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices import LocalDevice, SshDevice
from edgekit.formats.onnx.ort import write_ort
from edgekit.model import load_model
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Load, MachineSpeed
from edgekit.runtimes.emulation import emulation
from edgekit.verify.measurements import flat, request
from tests.devices.emulated import board
from tests.devices.native import ARM, ask_graph, lay_probe
from tests.devices.sshd import HOST, Reachable
from tests.stories import STORIES, write_stories
from tests.verify.verify_folders import make_graph


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


def test_the_native_probe_answers_on_it_as_here(
    arm_board: Reachable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-compiled, with the library of the aarch64 wheel; the board's Python is used by the link alone."""
    monkeypatch.setenv("PATH", f"{arm_board.commands}{os.pathsep}{os.environ['PATH']}")
    lay_probe(ARM)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    make_graph(artifact / "model.onnx", depth=1)
    # As phones get it, written on this machine's CPU.
    question = ask_graph(write_ort(artifact / "model.onnx", ()), [[4, 7, 5], [9, 10], [8]])
    with SshDevice(arm_board.table()) as device:
        answer = PROBES["native"].ask(device, question)
    assert (answer.lines.device["arch"], answer.lines.device["cpu"]) == ("aarch64", "Cortex-A76")
    speed = answer.lines.read("machine", MachineSpeed).speed
    assert emulation(answer.lines.device, speed, 2.4), "it vouches for no time"
    with LocalDevice({}) as here:
        expected = PROBES["python"].ask(here, question)
    assert np.allclose(answer.arrays["outputs"], expected.arrays["outputs"], atol=1e-5)
    assert answer.lines.work["matmul_ops"] == expected.lines.work["matmul_ops"]


def test_the_native_probe_writes_on_it_as_here(
    arm_board: Reachable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder, with llama.cpp for ARM: the same greedy tokens, and likelihoods but for the rounding of other kernels."""
    monkeypatch.setenv("PATH", f"{arm_board.commands}{os.pathsep}{os.environ['PATH']}")
    lay_probe(ARM)
    (tmp_path / "artifact").mkdir()
    rows = load_model(STORIES).encode(["Once upon a time there was a", "The big red ball"], 100)
    counts = {"starts": np.array([1, 1]), "referenced": 0, "generate": 2, "max_new": 12, "stop": np.array([], np.int64)}
    timing = {"prompts": (4,), "new": 2, "repeats": 1, "seconds": 0.1, "sweep": False}
    question = Question(
        file=write_stories(tmp_path / "artifact" / "model.gguf"),
        request=request("llama-cpp", {"threads": 1, "context": 0}, timing, kind="tokens"),  # type: ignore[arg-type]
        inputs={**flat(rows), **counts},
        timeout_s=120,
    )
    with SshDevice(arm_board.table()) as device:
        there = PROBES["native"].ask(device, question)
    with LocalDevice({}) as here:
        expected = PROBES["python"].ask(here, question)
    assert there.lines.device["cpu"] == "Cortex-A76"
    assert "(ggml " in there.lines.read("load", Load).version
    assert {key: there.lines.work[key] for key in ("layers", "provider", "kv")} == {
        key: expected.lines.work[key] for key in ("layers", "provider", "kv")
    }  # type: ignore[literal-required]
    assert np.array_equal(there.arrays["answers"], expected.arrays["answers"])
    assert np.abs(there.arrays["nll"] - expected.arrays["nll"]).max() < 0.1
    assert there.arrays["nll"].mean() == pytest.approx(expected.arrays["nll"].mean(), rel=0.01)
