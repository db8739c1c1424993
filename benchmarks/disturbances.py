"""What is planted beside a measurement on this machine, for real, and what the measurement then says of itself."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices import LocalDevice
from edgekit.devices.device import Finished
from edgekit.errors import DeviceFailed
from edgekit.modalities.text import of_tokens
from edgekit.probes import PROBES, Question
from edgekit.runtimes.control_groups import own_groups
from edgekit.runtimes.request import Timing
from edgekit.verify.comparable import Asked, why_not
from edgekit.verify.measurements import Timed, pack_rows, read_timed
from edgekit.workspace import file_sha256
from tests.verify.verify_folders import make_graph

if TYPE_CHECKING:
    from edgekit.devices import Device

DEPTH = 40
# Of a planted measurement: two short processes of one thread.
PLANTED = 2
TIMING: Timing = {"warmup": 5, "repeats": 10**6, "least": 20, "seconds": 0.5, "sequence": 8}


@dataclass
class Planted(LocalDevice):
    """This machine, on which something happens to each probe: `started` at its start, `timing` when its calls begin.

    python: what starts it, where it is not started as it is; path: of Python's modules before edgekit's.
    """

    started: Callable[[int], None] = field(default=lambda _: None)
    timing: Callable[[int], None] = field(default=lambda _: None)
    wrapped: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        super().__init__({})

    @property
    def python(self) -> str:
        """The interpreter, or what starts it."""
        return self.wrapped or super().python

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        """Run a probe, and have happen to it what is planted."""
        variables = os.environ | dict(env or {})
        if self.path:
            variables["PYTHONPATH"] = f"{self.path}{os.pathsep}{variables.get('PYTHONPATH', '')}"
        process = subprocess.Popen(
            list(command),
            cwd=self.work,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # As a command behind sshd: the scheduler shares the cores among sessions.
            start_new_session=True,
        )
        self.started(process.pid)
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if '"event": "first"' in line:
                threading.Thread(target=self.timing, args=(process.pid,)).start()
        return Finished(returncode=process.wait(timeout=timeout_s), stdout="".join(said), stderr="")


def make_question(folder: Path) -> Question:
    """A small classifier of some milliseconds a call, of which times are asked."""
    artifact = folder / "artifact"
    artifact.mkdir()
    make_graph(artifact / "model.onnx", depth=DEPTH)
    encoded = of_tokens([[1, 2, 3]], 0)
    return Question(
        file=artifact / "model.onnx",
        request={
            "kind": "rows",
            "runtime": "onnxruntime",
            "options": {"threads": 1},
            "timing": {**TIMING, "only": True},
        },
        inputs=pack_rows(encoded, encoded.resized(TIMING["sequence"])),
        timeout_s=120,
        sha256=file_sha256(artifact / "model.onnx"),
    )


def ask(device: Device, question: Question) -> Timed:
    """The times of one process."""
    return read_timed(PROBES[device.PROBE].ask(device, question).lines)


# What other programs on this machine cause.
OTHERS = ("other programs", "waited", "hypervisor", "differ by a factor", "stood still")


def judge(processes: Sequence[Timed], question: Question) -> list[str]:
    """Why this measurement may not be compared."""
    return why_not(processes, Asked(sha256=str(question.sha256), threads=1, planned=PLANTED))


def _measure(question: Question, device: LocalDevice, between: Callable[[], None] = lambda: None) -> list[str]:
    """The reasons that a measurement on a device gives."""
    try:
        processes = [ask(device, question)]
        between()
        processes += [ask(device, question) for _ in range(PLANTED - 1)]
        return judge(processes, question)
    except DeviceFailed as failed:
        return [failed.message]
    finally:
        device.close()


def quiet(question: Question, _chance: random.Random) -> list[str]:
    """Nothing happens."""
    return _measure(question, Planted())


def busy_core(question: Question, _chance: random.Random) -> list[str]:
    """A second process at 100 % on a core."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return _measure(question, Planted())
    finally:
        other.kill()
        other.wait()


def half_a_core(question: Question, chance: random.Random) -> list[str]:
    """The control group is cut from a whole core to half of it, at the start or when calls are timed."""
    with _group(100_000) as group, tempfile.TemporaryDirectory() as scratch:
        shell = Path(scratch, "python")
        shell.write_text(f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {sys.executable} "$@"\n')
        shell.chmod(0o755)
        cut: Callable[[int], None] = lambda _: _limit(group, 50_000)  # noqa: E731
        when = chance.choice(("started", "timing"))
        device = (
            Planted(wrapped=str(shell), started=cut) if when == "started" else Planted(wrapped=str(shell), timing=cut)
        )
        return _measure(question, device)


@contextmanager
def _group(quota_us: int) -> Iterator[Path]:
    """A control group of this machine that may take so much of each 100 ms."""
    group = own_groups()[0] / f"edgekit-{os.getpid()}"
    group.mkdir()
    try:
        _limit(group, quota_us)
        yield group
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)  # the last process is still leaving


def _limit(group: Path, quota_us: int) -> None:
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota_us} 100000")
    else:
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))


def swapped(question: Question, chance: random.Random) -> list[str]:
    """Another file lies where the artifact was, before the first process or between two."""
    original = question.file.read_bytes()

    def swap() -> None:
        make_graph(question.file, depth=DEPTH, flip=True)

    try:
        if chance.random() < 0.5:
            swap()
            return _measure(question, Planted())
        return _measure(question, Planted(), swap)
    finally:
        question.file.write_bytes(original)


def cut_short(question: Question, chance: random.Random) -> list[str]:
    """The run is stopped at half length: its process is killed, or its record loses half of the calls or of the processes."""
    how = chance.choice(("killed", "calls", "processes"))
    if how == "killed":
        return _measure(question, Planted(timing=_kill))
    device = Planted()
    processes = [ask(device, question) for _ in range(PLANTED)]
    device.close()
    if how == "processes":
        return judge(processes[: PLANTED // 2], question)
    first, *others = processes
    return judge([replace(first, times=first.times[: len(first.times) // 2]), *others], question)


def _kill(pid: int) -> None:
    time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)


def paused(question: Question, chance: random.Random) -> list[str]:
    """The process is stopped for 0.3 s while its calls are timed."""

    def pause(pid: int) -> None:
        time.sleep(chance.uniform(0.05, 0.3))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)

    reasons = _measure(question, Planted(timing=pause))
    # A core that others have taken lets a call stand still as well, for shorter.
    long = [
        reason
        for reason in reasons
        if (found := re.search(r"stood still for ([\d.]+)", reason)) and float(found[1]) > 0.25
    ]
    return [reason for reason in reasons if "stood still" not in reason] + long


def clock_set(question: Question, chance: random.Random) -> list[str]:
    """The clock of the day jumps by up to an hour, forward or back, while calls are timed; see the module."""
    step = chance.choice((-1, 1)) * 10 ** chance.uniform(-0.5, 3.5)
    with tempfile.TemporaryDirectory() as scratch:
        flag = Path(scratch, "jumped")
        Path(scratch, "sitecustomize.py").write_text(
            "import os, time\nreal = time.time\n"
            f"time.time = lambda: real() + ({step} if os.path.exists({str(flag)!r}) else 0.0)\n"
        )
        return _measure(question, Planted(path=scratch, timing=lambda _: flag.touch()))


# How a kind is planted, and words of the reasons that are right for it; none: any reason is a false alarm.
KINDS: dict[str, tuple[Callable[[Question, random.Random], list[str]], tuple[str, ...]]] = {
    "quiet": (quiet, ()),
    "busy core": (busy_core, ("other programs", "waited")),
    "half a core": (half_a_core, ("denied a core", "may take")),
    "swapped": (swapped, ("another sha256", "another file")),
    "cut short": (cut_short, ("exit code", "there: the record was cut", "processes: it was stopped", "one process")),
    "paused": (paused, ("stood still",)),
    "clock set": (clock_set, ("clock of the day",)),
}
