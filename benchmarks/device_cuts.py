"""A build that measures on a device behind SSH, cut at a random moment: what it then says, and what the next one ends with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rows import Row

from tests.devices.sshd import Reachable

# Who is killed: edgekit, its ssh, the session's sshd, the probe on the device (the agent, where none runs yet).
VICTIMS = ("client", "link", "server", "probe")
# When: once this has begun, and within so many seconds.
MOMENTS = {"push": 0.3, "run": 2.5, "fetch": 0.02}
# What an undisturbed build ends with, and one whose client, or whose device, is gone.
DONE, KILLED, DEVICE_FAILED = 0, -signal.SIGKILL, 4
WITHIN_S, LEFT_S = 600.0, 30.0
PROBE = b"edgekit.runtimes.probe"
# Between two looks at one file, and at all processes.
_TURN_S, _LOOK_S = 0.01, 0.1


class Run(Protocol):
    """A run of edgekit, as subprocess.Popen has it."""

    pid: int

    def communicate(self) -> tuple[str, str]: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A project whose `edgekit build --json` measures on a device behind an sshd of ours, all but that being made.

    cache: of its steps; out: its dist; state: where its history is; start: begins the build.
    """

    host: Reachable
    cache: Path
    out: Path
    state: Path
    start: Callable[[], Run]

    def forget(self, *, device: bool) -> None:
        """Have the next build measure; device: and push all anew."""
        shutil.rmtree(self.cache / "verify", ignore_errors=True)
        shutil.rmtree(self.out, ignore_errors=True)
        if device and self.host.home is not None:
            shutil.rmtree(self.host.home / ".cache", ignore_errors=True)

    def results(self) -> int:
        """How many measurements its history has."""
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in self.state.glob("history/*.jsonl"))


def finish(bench: Bench) -> tuple[int, str]:
    """A build that is left alone: its exit code, and its verdict with all that must be equal each time."""
    run = bench.start()
    out, _ = run.communicate()
    code = run.wait()
    return code, verdict(out)


def verdict(out: str) -> str:
    """What the JSON of a build says that no measurement of time may change; "" where it says nothing."""
    try:
        bundles = json.loads(out)["bundles"]
    except (ValueError, KeyError):
        return ""
    keys = ("target", "verdict", "exit_code", "sha256", "archive_sha256", "accuracy")
    return json.dumps([{key: bundle[key] for key in keys} for bundle in bundles])


def cut(bench: Bench, victim: str, moment: str, chance: random.Random, expected: str) -> Row:
    """Cut a build, and look at what it said and left. hit: whether it came in time; wrong: what it said is none of its verdicts
    or exit codes; left: processes there or here."""
    bench.forget(device=moment == "push" or chance.random() < 0.5)
    delay = chance.uniform(0.0, MOMENTS[moment])
    run = bench.start()
    begun = _wait_for(bench, run, moment)
    time.sleep(delay if begun else 0.0)
    if victim == "client":
        run.kill()
    else:
        for process in _victims(bench.host, victim):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    code = run.wait(timeout=WITHIN_S)
    out, err = run.communicate()
    ended = KILLED if victim == "client" else DEVICE_FAILED
    wrong = code not in {DONE, ended} or (code == DONE and verdict(out) != expected)
    told = [line for line in err.splitlines() if line.startswith("Error")]
    return {"hit": code != DONE, "code": code, "wrong": wrong, "left": _left(bench.host), "said": told[-1:]}


def cut_and_finish(bench: Bench, victim: str, moment: str, chance: random.Random, expected: str) -> Row:
    """The same, and how the next build ends. lost: it does not end with the verdict, or its measurement is not in the history."""
    before = bench.results()
    row = dict(cut(bench, victim, moment, chance, expected))
    code, found = finish(bench)
    row["wrong"] = bool(row["wrong"]) or (code == DONE and found != expected)
    row["lost"] = code != DONE or bench.results() <= before
    row["left"] = row["left"] or _left(bench.host)
    return row


def plan(count: int, seed: int) -> Iterator[tuple[str, str, random.Random]]:
    """Whom to kill when, each pair as often as the others, and what chance the cut has."""
    pairs = [(victim, moment) for victim in VICTIMS for moment in MOMENTS]
    for index in range(count):
        yield *pairs[index % len(pairs)], random.Random(f"{seed} {index}")


def _wait_for(bench: Bench, run: Run, moment: str) -> bool:
    """Whether it has begun before the run ended; looked at again and again."""
    assert bench.host.home is not None
    there = bench.host.home / ".cache" / "edgekit"
    signs: dict[str, Callable[[], object]] = {
        "push": (there / "folders").exists,
        "run": lambda: any(PROBE in _words(process) for process in bench.host.processes()),
        "fetch": (there / "work" / "measured" / "outputs.npz").exists,
    }
    end = time.monotonic() + WITHIN_S
    while not signs[moment]():
        if not _lives(run.pid) or time.monotonic() > end:
            return False
        time.sleep(_LOOK_S if moment == "run" else _TURN_S)
    # The file of the answers is written before the last of what is measured.
    probes = [process for process in bench.host.processes() if PROBE in _words(process)] if moment == "fetch" else []
    while any(map(_lives, probes)):
        time.sleep(_TURN_S)
    return True


def _victims(host: Reachable, victim: str) -> Sequence[int]:
    if victim == "link":
        return clients(host)
    there = host.processes()
    agents = {process for process in there if _parent(process) not in there}
    if victim == "server":
        return sorted({_parent(process) for process in agents} - {1, os.getpid()})
    return [process for process in there if PROBE in _words(process)] or sorted(agents)


def clients(host: Reachable) -> list[int]:
    """The processes of ssh that go to this device."""
    mark = f"{host.folder}/ssh.conf".encode()
    return [int(process) for process in filter(str.isdecimal, os.listdir("/proc")) if mark in _words(int(process))]


def _left(host: Reachable) -> bool:
    """Whether something still runs there or to there, after a while."""
    end = time.monotonic() + LEFT_S
    while host.processes() or clients(host):
        if time.monotonic() > end:
            return True
        time.sleep(_LOOK_S)
    return False


def _words(process: int) -> list[bytes]:
    with suppress(OSError):
        return Path("/proc", str(process), "cmdline").read_bytes().split(b"\0")
    return []


def _lives(process: int) -> bool:
    with suppress(OSError):
        return _stat(process)[0] != "Z"
    return False


def _parent(process: int) -> int:
    with suppress(OSError):
        return int(_stat(process)[1])
    return 1


def _stat(process: int) -> list[str]:
    """proc(5): the state, the parent and the rest, behind the name, which may have spaces and brackets in it."""
    return Path("/proc", str(process), "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
