"""Is latency that edgekit certifies on a device true? Real runs over SSH, block resamplings of them, planted disturbances.

Goals:
- link: of at least 40 pairs of runs, in turns with and without SSH to this same machine, the ratio of the medians: its 95 %
  interval contains 1 and lies in [0.97, 1.03]; a second run pushes 0 bytes
- coverage: of measurements that are resampled in blocks from those real times, the certified p95 is at or above the p95 of
  all times in at least 94 %; with the limit just below that p95 at most 5 % pass (and three Monte-Carlo standard errors), with
  looks after 8, 12 and 16 processes that end it early
- disturbances: of the planted ones of each kind at least 95 % are flagged with their reason, and of quiet runs at most 5 %: a
  second process at 100 % on a core, a control group cut to half a core, an artifact swapped after the build, a run stopped at
  half length, a paused process, a clock that is set

All that is planted is real but the last: setting the clock of a machine is nobody's to try, so the probe's own is set
(`time.time`). The control group needs root. A machine that others use misses the goals of the link and of quiet runs; `busy`
counts the runs that are flagged for nothing but other programs.

Usage: python benchmarks/device_latency.py [--pairs 40] [--planted 100] [--resamplings 2000] [--only PART] [--json]; exit
code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgekit.devices import LocalDevice, SshDevice
from edgekit.devices.device import Finished
from edgekit.errors import DeviceFailed
from edgekit.gate import t_quantile
from edgekit.modalities.text import of_tokens
from edgekit.probes import PROBES, Question
from edgekit.runtimes import neighbours
from edgekit.runtimes.control_groups import own_groups
from edgekit.runtimes.request import Timing
from edgekit.verify import latency
from edgekit.verify.comparable import Asked, why_not
from edgekit.verify.measurements import Timed, pack_rows, read_timed
from edgekit.workspace import file_sha256
from tests.devices.sshd import native
from tests.verify.verify_folders import make_graph

LEAST_PAIRS, WITHIN, COVERAGE, ALPHA = 40, 0.03, 0.94, 0.05
FLAGGED, ALARMS = 0.95, 0.05
DEPTH, BLOCK, MOST = 40, 10, 16
# Of a planted measurement: two short processes of one thread.
PLANTED = 2
TIMING: Timing = {"warmup": 5, "repeats": 10**6, "least": 20, "seconds": 0.5, "sequence": 8}
Floats = NDArray[np.float64]


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


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS)
    parser.add_argument("--resamplings", type=int, default=2000)
    parser.add_argument("--planted", type=int, default=100, help="of each kind, and as many quiet runs")
    parser.add_argument(
        "--only", choices=("link", "disturbances"), help="leave the other part out (coverage needs link)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    told = neighbours.watch()
    with tempfile.TemporaryDirectory() as scratch:
        question = make_question(Path(scratch))
        if asked.only != "disturbances":
            found["link"], levels = measure_link(question, Path(scratch), asked.pairs)
            found["coverage"] = measure_coverage(levels, asked.resamplings, np.random.default_rng(asked.seed))
        if asked.only != "link":
            found |= {f"planted {kind}": row for kind, row in measure_planted(question, asked.planted, asked.seed)}
    seen = told()
    found["machine"] = {"cpus": seen["cpus"], "load": seen["load"], "steal": seen["steal"], "met": True}
    missed = [name for name, row in found.items() if not row["met"]]
    if asked.json:
        sys.stdout.write(json.dumps({"measured": found, "missed": missed}) + "\n")
    else:
        for name, row in found.items():
            told_row = ", ".join(f"{key} {_figure(value)}" for key, value in row.items() if key != "met")
            sys.stdout.write(f"{name:22} {'met' if row['met'] else 'MISSED':7} {told_row}\n")
    return 1 if missed else 0


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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


def ask(device: Any, question: Question) -> Timed:
    """The times of one process."""
    return read_timed(PROBES[device.PROBE].ask(device, question).lines)


def measure_link(question: Question, folder: Path, pairs: int) -> tuple[dict[str, Any], list[list[float]]]:
    """The ratio with the link by without it, of pairs in turns, and the times of all processes."""
    ratios, times = [], []
    with native(folder / "sshd") as host:
        os.environ["PATH"] = f"{host.commands}{os.pathsep}{os.environ['PATH']}"
        local = Planted()
        with SshDevice(host.table()) as first:
            ask(first, question)
            once = first.sent_bytes
        with SshDevice(host.table()) as remote:
            ask(remote, question)
            # The request is the same, too: it is of the same bytes.
            again = remote.sent_bytes
            for turn in range(pairs):
                devices = [local, remote] if turn % 2 else [remote, local]
                own = {device is remote: ask(device, question).times for device in devices}
                times += [list(own[False]), list(own[True])]
                ratios.append(math.log(latency.level(own[True], 0.5) / latency.level(own[False], 0.5)))
        local.close()
    logs = np.array(ratios)
    reach = t_quantile(0.975, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    lo, hi = math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)
    met = lo <= 1 <= hi and lo >= 1 - WITHIN and hi <= 1 + WITHIN and again == 0 and pairs >= LEAST_PAIRS
    row = {
        "ratio": math.exp(logs.mean()),
        "lo": lo,
        "hi": hi,
        "pairs": pairs,
        "first_bytes": once,
        "again_bytes": again,
    }
    return {**row, "met": met}, times


def measure_coverage(times: list[list[float]], resamplings: int, numbers: np.random.Generator) -> dict[str, Any]:
    """How often the certified p95 covers the p95 of all, and how often a limit just below that is passed with looks."""
    count = min(map(len, times))
    calls = np.array([row[:count] for row in times])
    truth = float(np.quantile(calls, 0.95, method="higher"))
    limit, covered, passed, ended = truth * (1 - 1e-9), 0, 0, 0
    for _ in range(resamplings):
        drawn = resample(calls, MOST, numbers)
        for look in latency.looks(MOST):
            hi = latency.certified(drawn[:look].tolist(), 0.95, latency.alpha_at(look, MOST, 1))[1]
            if hi is not None and hi <= limit:
                passed += 1
                break
        eight = latency.certified(drawn[: latency.PROCESSES].tolist(), 0.95)[1]
        covered += eight is None or eight >= truth
        first = latency.certified(
            drawn[: latency.PROCESSES].tolist(), 0.95, latency.alpha_at(latency.PROCESSES, MOST, 1)
        )[1]
        ended += first is not None and first <= 2 * truth
    allowed = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / resamplings)
    rates = {
        "coverage": covered / resamplings,
        "false_pass": passed / resamplings,
        "ends_early_at_2x": ended / resamplings,
    }
    spread = [latency.level(row.tolist(), 0.5) for row in calls]
    facts = {"p95_ms": truth, "processes": len(calls), "calls": count, "spread": max(spread) / min(spread)}
    return {**rates, **facts, "met": rates["coverage"] >= COVERAGE and rates["false_pass"] <= allowed}


def resample(calls: Floats, processes: int, numbers: np.random.Generator) -> Floats:
    """So many of the real processes, with replacement, each with its calls drawn in blocks of neighbours."""
    count = calls.shape[1]
    blocks = math.ceil(count / BLOCK)
    rows = numbers.integers(len(calls), size=processes)
    begins = numbers.integers(max(count - BLOCK, 1), size=(processes, blocks))
    places = (begins[:, :, None] + np.arange(min(BLOCK, count))).reshape(processes, -1)[:, :count]
    found: Floats = calls[rows[:, None], places]
    return found


def measure_planted(question: Question, count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each kind how many of the planted measurements are flagged with the wanted reason; of quiet ones how many at all."""
    chance = random.Random(seed)
    for kind, (plant, wanted) in KINDS.items():
        flagged, busy = 0, 0
        told: Counter[str] = Counter()
        for _ in range(count):
            reasons = plant(question, chance)
            flagged += any(word in reason for reason in reasons for word in wanted) if wanted else bool(reasons)
            told.update(re.sub(r"[-+\d.%]+", "#", reason)[:60] for reason in reasons)
            busy += bool(reasons) and all(any(word in reason for word in OTHERS) for reason in reasons)
        rate = flagged / count if count else 0.0
        met = rate >= FLAGGED if wanted else rate <= ALARMS
        yield kind, {"flagged": rate, "runs": count, "busy": busy, "reasons": dict(told), "met": met or not count}


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


if __name__ == "__main__":
    raise SystemExit(main())
