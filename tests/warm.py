"""Python processes that begin with torch and transformers imported.

Importing them takes five to eight seconds of a core, which is most of what a run on a tiny model costs. A server imports them
once; each run is a fork of it: a process of its own with its own folder, variables and output, which can be killed. All forks of
a server have one hash seed: where equal bytes of two processes are to be shown, one of them must be `alone`, a new Python.

A build that was forked has the process in which it times float models (`edgekit.record`) forked too (`forking`): it does nothing
else either, and would import the same again.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

# What edgekit, or who starts a program, reads while a command runs, and what changes from test to test. Other variables are read
# while libraries are imported, which is done by then; what OMP_NUM_THREADS says, torch is told in the fork.
RANKED = ("RANK", "WORLD_SIZE", "LOCAL_", "EDGEKIT_RANKS", "GLOO_", "NCCL_", "OMP_NUM_THREADS")
LATE = ("EDGEKIT_", "NO_COLOR", "OMP_NUM_THREADS", "PATH", "PYTEST_", *RANKED)
# What libraries, and edgekit where it quiets them, set in the process that asks. A run sets it itself; as a part of what is asked
# for it would make one more server for each library that a test imports.
OURS = ("HF_DATASETS_DISABLE_", "HF_HUB_DISABLE_", "KMP_", "TRANSFORMERS_")
_LONGEST = 1 << 20
# What most runs import, some of it at the first export only, in the order of seconds.
BEGUN_WITH = (
    *("torch.export._trace", "transformers.models.bert.modeling_bert", "onnxscript.function_libs.torch_lib.ops"),
    *("optimum.exporters.tasks", "sympy.tensor.tensor", "transformers.exporters.exporter_onnx"),
    *("transformers.exporters.onnxruntime_fusions", "transformers.models.sam3.modeling_sam3", "accelerate"),
    *("torch.ao.quantization.fx._decomposed", "torch.onnx._internal.exporter._core", "rich.progress"),
    *("transformers.models.auto.tokenization_auto", "edgekit.cli.build", "edgekit.record.timing", "edgekit.calibrate"),
    *("edgekit.distill.courses", "edgekit.tasks.loading", "edgekit.verify", "edgekit.bundle.package"),
)
# Standard output, standard error, the pipe on which the server tells the process id and the exit code, and standard input.
_PIPES = 4
# What is forked where a forked run starts it.
_FORKED = ("-m", "edgekit.record")


@dataclass
class Forked:
    """A run, as far as tests use what subprocess.Popen has."""

    stdout: IO[str]
    stderr: IO[str]
    told: IO[str]
    pid: int
    returncode: int | None = None

    def communicate(self) -> tuple[str, str]:
        """Standard output and standard error, once the run has ended."""
        with ThreadPoolExecutor(1) as other:
            err = other.submit(self.stderr.read)
            out = self.stdout.read()
        self.wait()
        return out, err.result()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative where a signal ended the run. Raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            if not select.select([self.told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a fork", timeout or 0)
            self.returncode = int(self.told.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """A signal, where it still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, where it still runs."""
        self.send_signal(signal.SIGKILL)


def start(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> Forked | subprocess.Popen[str]:
    """`python COMMAND` in a folder, COMMAND being -m MODULE or -c CODE and arguments; where no fork can stand for it, `alone`."""
    environment = {name: value for name, value in environment.items() if not name.startswith(OURS)}
    if sys.platform != "linux" or environment.get("HF_HUB_OFFLINE") != "1":
        return alone(command, folder, environment)
    with open(os.devnull, "rb") as nothing:
        return ask(server(environment), command, folder, environment, nothing)


def server(environment: Mapping[str, str]) -> socket.socket:
    """The server of runs in such an environment."""
    names = (*OURS, *LATE)
    return _server(frozenset((name, value) for name, value in environment.items() if not name.startswith(names)))


def ask(
    server: socket.socket, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str], given: IO[bytes]
) -> Forked:
    """A fork of a server; given: its standard input."""
    ends = [os.pipe() for _ in range(_PIPES - 1)]
    what = {"command": [str(part) for part in command], "folder": str(folder), "environment": dict(environment)}
    request = json.dumps(what).encode()
    assert len(request) < _LONGEST
    socket.send_fds(server, [request], [*(write for _, write in ends), given.fileno()])
    for _, write in ends:
        os.close(write)
    out, err, told = (os.fdopen(read, encoding="utf-8") for read, _ in ends)
    pid = told.readline()
    assert pid, server.recv(_LONGEST).decode()
    return Forked(stdout=out, stderr=err, told=told, pid=int(pid))


def forking(run: Callable[..., Any], begun: Callable[[], socket.socket]) -> Callable[..., Any]:
    """`subprocess.run` that has a server fork `python -m edgekit.record`, and starts all else itself."""

    def forked(command: Sequence[str], *more: Any, **how: Any) -> Any:
        if tuple(command[1:3]) != _FORKED or os.environ.get("HF_HUB_OFFLINE") != "1":
            return run(command, *more, **how)
        with tempfile.TemporaryFile() as given:
            given.write(how["input"].encode())
            given.seek(0)
            started = ask(begun(), command[1:], Path.cwd(), os.environ, given)
        try:
            out, err = started.communicate()
        except BaseException:
            started.kill()
            raise
        return subprocess.CompletedProcess(command, started.wait(), out, err)

    return forked


def alone(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """`python COMMAND` in a folder, as a user starts it."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=pipe, stderr=pipe, encoding="utf-8"
    )


@lru_cache
def _server(early: frozenset[tuple[str, str]]) -> socket.socket:
    """A server with these variables; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
    # What it says comes back: never, but where it fails.
    subprocess.Popen([sys.executable, __file__], stdin=theirs, stdout=theirs, stderr=theirs, env=dict(early))
    theirs.close()
    return ours


def _serve() -> tuple[str, str]:
    """Fork for each request that comes on standard input; returns in the fork only: what to run, -m or -c and a text."""
    from edgekit.cli import quiet_libraries

    quiet_libraries()
    for library in BEGUN_WITH:
        importlib.import_module(library)
    import torch

    # A fork has one thread, and waits forever for others: onnxruntime, which starts one, is not imported.
    assert len(list(Path("/proc/self/task").iterdir())) == 1
    asked = socket.socket(fileno=os.dup(0))
    # What the forks ask for.
    theirs, more = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the runs
    while True:
        (asking, *_), _, _ = select.select([asked, theirs], [], [])
        request, pipes, _, _ = socket.recv_fds(asking, _LONGEST, _PIPES)
        if not request:
            sys.exit()
        if os.fork() == 0:
            break
        for pipe in pipes:
            os.close(pipe)
    asked.close()
    theirs.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out, err, told, given = pipes
    run = os.fork()
    if run:
        # As long as this process holds them, no reader sees their end.
        os.close(out)
        os.close(err)
        os.write(told, f"{run}\n".encode())
        _, status = os.waitpid(run, 0)
        os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    for ours, standard in ((given, 0), (out, 1), (err, 2)):
        os.dup2(ours, standard)
        os.close(ours)
    os.close(told)
    what = json.loads(request)
    os.environ.clear()
    os.environ.update(what["environment"])
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    subprocess.run = forking(subprocess.run, lambda: more)
    os.chdir(what["folder"])
    sys.path[0] = what["folder"]
    option, text, *arguments = what["command"]
    sys.argv = [option, *arguments]
    return option, text


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    option, text = _serve()
    if option == "-m":
        runpy.run_module(text, run_name="__main__", alter_sys=True)
    else:
        exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
