"""What goes wrong on a device, for real: each fault has its own message and exit code 4, leaves no process there, and a run after
it goes on from what is there.

A link that is cut, keys, a full disk, a deadline and another edgekit: test_ssh.py. Lies of a probe: tests/probes/test_probes.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.devices import SshDevice
from edgekit.errors import DeviceFailed
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Calls
from edgekit.runtimes import neighbours
from tests.devices.native import ask_graph
from tests.devices.sshd import HOST, Reachable, startable
from tests.devices.test_ssh import open_ssh, own_ssh, running, wait_until
from tests.verify.verify_folders import make_graph

__all__ = ["own_ssh"]

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
TEXTS = [[4, 7, 5], [9, 10], [8]]


@pytest.fixture
def question(tmp_path: Path) -> Question:
    """Three texts for a tiny classifier."""
    (tmp_path / "artifact").mkdir()
    make_graph(tmp_path / "artifact/model.onnx")
    return ask_graph(tmp_path / "artifact/model.onnx", TEXTS)


def wrap(folder: Path, script: str) -> str:
    """An interpreter for the device, which is this one behind a line of shell."""
    folder.mkdir(exist_ok=True)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n{script}\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return str(python)


def check_goes_on(reachable: Reachable, question: Question) -> None:
    """Nothing is left of the run before; the next pushes nothing of what is there, and answers."""
    wait_until(lambda: not reachable.processes())
    with open_ssh(reachable) as device:
        device.push(question.file.parent)
        assert device.sent_bytes == 0
        assert len(PROBES["python"].ask(device, question.only_times()).lines.read("latency", Calls).ms) == 20
    wait_until(lambda: not reachable.processes())


@pytest.mark.skipif(sys.platform != "linux", reason="its boots are named by Linux")
@pytest.mark.parametrize(
    ("back", "message"),
    [
        (
            False,
            r"connection was lost.*, and it cannot be reached now \(nothing answers there.*\); when it is back, run",
        ),
        (True, r"connection was lost.*: the device was restarted meanwhile, and nothing of the run is left there"),
    ],
    ids=["still away", "back before anybody noticed"],
)
def test_a_device_that_is_restarted_while_it_works(
    tmp_path: Path, question: Question, monkeypatch: pytest.MonkeyPatch, back: bool, message: str
) -> None:
    """Its power goes: sshd and all behind it is gone at once. Only a device that nobody missed is told from one that is away."""
    if os.geteuid() != 0:
        pytest.skip("only root gives what is behind an sshd another boot")
    with startable(tmp_path / "device") as (reachable, server):
        monkeypatch.setenv("PATH", f"{reachable.commands}{os.pathsep}{os.environ['PATH']}")

        def power_cycle(device: SshDevice) -> None:
            wait_until(lambda: mark in {words for pid in reachable.processes() for words in _words(pid)})
            if back:
                # ssh learns of its peer's end after 45 s, or when the peer answers again: until then it is as if it slept.
                device._link.process.send_signal(signal.SIGSTOP)
            server.end()
            if back:
                server.start(boot="11111111-2222-3333-4444-555555555555")
                device._link.process.send_signal(signal.SIGCONT)

        mark = f"edgekit-restarted-{os.getpid()}"
        with open_ssh(reachable) as device:
            device.push(question.file.parent)
            cutting = threading.Thread(target=power_cycle, args=(device,))
            cutting.start()
            with pytest.raises(DeviceFailed, match=rf"(?s)^ssh://{HOST}: .*{message}") as failed:
                device.run([*SLEEP, mark], timeout_s=60)
            cutting.join()
        assert (failed.value.exit_code, failed.value.message.count("\n")) == (4, 0)
        assert not running(mark)
        if not back:
            server.start()
        check_goes_on(reachable, question)


def _words(process: int) -> list[str]:
    try:
        return Path("/proc", str(process), "cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return []


# SDOT v0.4s, v0.16b, v0.16b (Arm Architecture Reference Manual, C7.2) and RET: a build for ARMv8.2 with dotprod has it, and a
# Cortex-A72 has not.
NEWER = """
import ctypes, mmap
page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("0094804e" "c0035fd6"))
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""


def test_an_engine_that_was_built_for_a_newer_cpu(
    arm_board: Reachable, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine code has an instruction that the board's CPU lacks: the kernel kills it. The board's other CPU has it."""
    monkeypatch.setenv("PATH", f"{arm_board.commands}{os.pathsep}{os.environ['PATH']}")
    script = "mkdir -p newer/numpy; cat >newer/numpy/__init__.py"
    subprocess.run([arm_board.commands / "ssh", HOST, script], input=NEWER.encode(), check=True)
    older = '#!/bin/sh\nexport QEMU_CPU=cortex-a72 PYTHONPATH="$PYTHONPATH:/root/newer"\nexec python3 "$@"\n'
    script = "cat >newer/python; chmod 755 newer/python"
    subprocess.run([arm_board.commands / "ssh", HOST, script], input=older.encode(), check=True)
    message = r"an instruction that this CPU does not have \(SIGILL\): the engine there was built for a newer one; run: edgekit"
    with SshDevice(arm_board.table(python="/root/newer/python")) as device:
        with pytest.raises(DeviceFailed, match=message) as failed:
            PROBES["python"].ask(device, question)
        assert (failed.value.exit_code, failed.value.message.count("\n")) == (4, 0)
        there = "import sys; sys.path.append('/root/newer'); import numpy"
        assert device.run(["python3", "-c", there], timeout_s=60).returncode == -signal.SIGILL
        ended = device.run(["python3", "-c", there], timeout_s=60, env={"QEMU_CPU": "cortex-a76"})
        assert ended.returncode == 0, ended.stderr


def make_hungry(path: Path, floats: int) -> None:
    """A graph whose every call needs so many zeros for each token, which it adds to its answer."""
    make_graph(path)
    model = onnx.load(str(path))
    graph = model.graph
    graph.node[-1].output[0] = "modest"
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    graph.node.extend([
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Mul", ["length", "floats"], ["many"]),
        helper.make_node("ConstantOfShape", ["many"], ["zeros"], value=zero),
        helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["modest", "nothing"], ["logits"]),
    ])  # fmt: skip
    import numpy as np

    graph.initializer.append(numpy_helper.from_array(np.array([floats], np.int64), "floats"))
    onnx.save(model, str(path))


@contextmanager
def memory_group(megabytes: int) -> Iterator[Path | None]:
    """A control group of this machine with so little memory, and no swap (cgroups(7)); None where none can be made."""
    group = make_group(megabytes << 20)
    try:
        yield group
    finally:
        if group is not None:
            members = group / "cgroup.procs"
            wait_until(lambda: not members.read_text(encoding="ascii"))
            group.rmdir()


def make_group(limit: int) -> Path | None:
    """A new control group of so many bytes, of version 2 or 1; None where this user may make none."""
    tops = {"/sys/fs/cgroup": ("memory.max", "0"), "/sys/fs/cgroup/memory": ("memory.limit_in_bytes", str(limit))}
    for top, (file, swap) in tops.items():
        group = Path(top, f"edgekit-memory-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        if not (group / file).exists():
            group.rmdir()
            continue
        (group / file).write_text(str(limit), encoding="ascii")
        for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            if (group / name).exists():
                (group / name).write_text(swap, encoding="ascii")
        return group
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_probe_that_gets_no_more_memory(stand_in: Reachable, question: Question, tmp_path: Path) -> None:
    """An artifact that wants 32 GB where the system gives a process 8; then one of 1 GB on a device that has 400 MB, where the
    kernel kills it. The agent lives, and tells."""
    sound = question.file.read_bytes()

    def ask(python: str, floats: int, message: str) -> None:
        make_hungry(question.file, floats)
        with open_ssh(stand_in, python=python) as device:
            with pytest.raises(DeviceFailed, match=message) as failed:
                PROBES["python"].ask(device, question.only_times())
            assert (failed.value.exit_code, failed.value.message.count("\n")) == (4, 0)
            assert device.run(["true"], timeout_s=10).returncode == 0

    ask(
        wrap(tmp_path / "limit", "ulimit -v 8388608"), 10**9, r"the probe got no more memory \(.*llocate.*\); free some"
    )
    with memory_group(400) as group:
        if group is not None:
            enter = f"echo $$ >{group}/cgroup.procs"
            message = "the system killed the probe, most likely for want of memory; free some, or use a smaller student"
            ask(wrap(tmp_path / "group", enter), 32_000_000, message)
    question.file.write_bytes(sound)
    with open_ssh(stand_in) as device:
        device.push(question.file.parent)
    check_goes_on(stand_in, question)


def test_a_clock_that_jumps(stand_in: Reachable, question: Question, tmp_path: Path) -> None:
    """Each reading of the device's clock of the day is an hour past the one before. Deadlines and times are by a clock that
    nobody sets: the run ends as ever, and says that its clock was set."""
    folder = tmp_path / "jumps"
    python = wrap(folder, f'export PYTHONPATH="$PYTHONPATH:{folder}"')
    code = "import itertools, time\nreal, hours = time.time, itertools.count()\n"
    code += "time.time = lambda: real() + 3600 * next(hours)\n"
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    with open_ssh(stand_in, python=python) as device:
        asked = replace(question.only_times(), timeout_s=60)
        calls = PROBES["python"].ask(device, asked).lines.read("latency", Calls)
        with pytest.raises(DeviceFailed, match=r"no end after 1 s; it was stopped"):
            device.run(SLEEP, timeout_s=1)
    assert (neighbours.stepped([calls.neighbours]) or 0) >= 3500
    assert max(calls.ms) < 60_000


def test_an_engine_of_another_version_there(stand_in: Reachable, question: Question, tmp_path: Path) -> None:
    """A real engine that is found first there and says another version of itself."""
    planted = tmp_path / "older"
    python = wrap(planted, f'export PYTHONPATH="{planted}:$PYTHONPATH"')
    code = "import onnxruntime\nonnxruntime.__version__ = '0.9.0'\n"
    (planted / "sitecustomize.py").write_text(code, encoding="utf-8")
    message = rf"onnxruntime 0.9.0 is installed there, and 1\.\S+ here; run: edgekit devices setup ssh://{HOST}"
    with open_ssh(stand_in, python=python) as device, pytest.raises(DeviceFailed, match=message) as failed:
        PROBES["python"].ask(device, question.only_times())
    assert failed.value.exit_code == 4


def test_an_engine_that_is_missing_there(stand_in: Reachable, question: Question, tmp_path: Path) -> None:
    """An interpreter with nothing but the standard library."""
    python = tmp_path / "bare"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    message = (
        rf"the device's Python lacks a library \(ModuleNotFoundError: .*\); run: edgekit devices setup ssh://{HOST}"
    )
    with open_ssh(stand_in, python=str(python)) as device, pytest.raises(DeviceFailed, match=message) as failed:
        PROBES["python"].ask(device, question)
    assert failed.value.exit_code == 4
    wait_until(lambda: not stand_in.processes())
