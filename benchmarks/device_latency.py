"""Is latency that edgekit certifies on a device true? Real runs over SSH, block resamplings of them, planted disturbances.

Goals:
- link: of at least 40 pairs of runs, in turns with and without SSH to this same machine, the ratio of the medians: its 95 %
  interval contains 1 and lies in [0.97, 1.03]; a second run pushes 0 bytes
- coverage: of measurements that are resampled in blocks from those real times, the certified p95 is at or above the p95 of
  all times in at least 94 %; with the limit just below that p95 at most 5 % pass (and three Monte-Carlo standard errors), with
  looks after 8, 12 and 16 processes that end it early
- planted: of 100 planted disturbances at least 95 % are flagged with their reason: a second process at 100 % on a core, a
  control group cut to half a core, an artifact swapped after the build, a run stopped at half length, a paused process, a clock
  that is set
- quiet: of runs beside which nothing is planted at most 5 % are flagged

All that is planted is real but the last: setting the clock of a machine is nobody's to try, so the probe's own is set
(`time.time`). The control group needs root. A machine on which other programs work can judge neither the link nor quiet runs, and
shows little by a busy core, which it has without one: then `why` says so, and the goal counts as missed.

With `--rows FILE` each pair of runs and each planted one is kept as it is measured, and the next run goes on behind the last.

Usage: python benchmarks/device_latency.py [--pairs 40] [--planted 100] [--quiet 40] [--resamplings 2000] [--only PART]
[--rows FILE] [--json]; exit code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from disturbances import KINDS, OTHERS, Planted, ask, make_question
from rows import Row, Rows

from edgekit.devices import SshDevice
from edgekit.gate import t_quantile
from edgekit.probes import Question
from edgekit.runtimes import neighbours
from edgekit.verify import latency
from edgekit.verify.measurements import Timed
from tests.devices.sshd import native

LEAST_PAIRS, WITHIN, COVERAGE, ALPHA = 40, 0.03, 0.94, 0.05
FLAGGED, ALARMS, LEAST_PLANTED, LEAST_QUIET = 0.95, 0.05, 100, 20
BLOCK, MOST = 10, 16
# Cores' worth of other programs' work: beside more, the scheduler's turns are measured.
BUSY_CORES = 0.25
Floats = NDArray[np.float64]


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS)
    parser.add_argument("--resamplings", type=int, default=2000)
    parser.add_argument("--planted", type=int, default=LEAST_PLANTED, help="disturbances, of all kinds in turns")
    parser.add_argument("--quiet", type=int, default=40, help="runs beside which nothing is planted")
    parser.add_argument("--only", choices=("link", "planted"), help="leave the other part out (coverage needs link)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, help="keep what is measured in this file, and go on from it")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    told, rows = neighbours.watch(), Rows(asked.rows)
    with tempfile.TemporaryDirectory() as scratch:
        question = make_question(Path(scratch))
        if asked.only != "planted":
            found["link"], levels = measure_link(question, Path(scratch), asked.pairs, rows)
            found["coverage"] = measure_coverage(levels, asked.resamplings, np.random.default_rng(asked.seed))
        if asked.only != "link":
            tried = plant(question, asked.planted, asked.quiet, asked.seed, rows)
            found |= judge_planted(tried, whole=asked.planted >= LEAST_PLANTED and asked.quiet >= LEAST_QUIET)
    seen = told()
    found["machine"] = {"cpus": seen["cpus"], "load": seen["load"], "steal": seen["steal"], "met": True}
    missed = [name for name, row in found.items() if not row.get("met", True)]
    if asked.json:
        sys.stdout.write(json.dumps({"measured": found, "missed": missed}) + "\n")
    else:
        for name, row in found.items():
            told_row = ", ".join(f"{key} {_figure(value)}" for key, value in row.items() if key != "met")
            verdict = {True: "met", False: "MISSED", None: ""}[row.get("met")]
            sys.stdout.write(f"{name:22} {verdict:7} {told_row}\n")
    return 1 if missed else 0


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure_link(
    question: Question, folder: Path, pairs: int, rows: Rows
) -> tuple[dict[str, Any], list[Sequence[float]]]:
    """The ratio with the link by without it, of pairs in turns, and the times of all processes."""
    kept: list[Row] = []
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
                devices: list[Planted | SshDevice] = [local, remote] if turn % 2 else [remote, local]
                kept.append(rows.take(f"link {turn}", partial(_pair, devices, question)))
        local.close()
    times = [cast("Sequence[float]", row[side]) for row in kept for side in ("local", "ssh")]
    levels = [latency.level(side, 0.5) for side in times]
    logs = np.log(np.array(levels[1::2]) / np.array(levels[::2]))
    reach = t_quantile(0.975, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    lo, hi = math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)
    others = float(np.mean([cast("float", row["others"]) for row in kept]))
    why = {"why": f"not judged: other programs worked on {others:.1f} cores"} if others > BUSY_CORES else {}
    met = lo <= 1 <= hi and lo >= 1 - WITHIN and hi <= 1 + WITHIN and again == 0 and pairs >= LEAST_PAIRS and not why
    row = {
        "ratio": math.exp(logs.mean()),
        "lo": lo,
        "hi": hi,
        "pairs": pairs,
        "others": others,
        "first_bytes": once,
        "again_bytes": again,
    }
    return {**row, **why, "met": met}, times


def _pair(devices: Sequence[Planted | SshDevice], question: Question) -> Row:
    """The times of two processes in turns, and the cores that other programs took beside them."""
    timed: dict[str, Timed] = {}
    for device in devices:
        timed["ssh" if device.REMOTE else "local"] = ask(device, question)
    others = neighbours.mean([one.neighbours for one in timed.values()], "others")
    return {**{side: one.times for side, one in timed.items()}, "others": others or 0.0}


def measure_coverage(
    times: Sequence[Sequence[float]], resamplings: int, numbers: np.random.Generator
) -> dict[str, Any]:
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


def plant(question: Question, planted: int, quiet: int, seed: int, rows: Rows) -> Iterator[tuple[str, Sequence[str]]]:
    """The kind of each planted run, kinds in turns with quiet ones among them, and why the measurement is not comparable."""
    kinds = [kind for kind, (_, wanted) in KINDS.items() if wanted]
    turns = [(kinds[index % len(kinds)], index // len(kinds)) for index in range(planted)]
    # Quiet ones are spread over the whole, so that one bad minute is not all of them.
    for index in range(quiet):
        turns.insert(round(index * (planted + quiet) / quiet), ("quiet", index))
    for number, (kind, index) in enumerate(turns):
        chance = random.Random(f"{seed} {kind} {index}")
        row = rows.take(f"{kind} {index} {seed}", partial(_reasons, kind, question, chance))
        sys.stderr.write(f"\r{number + 1} of {len(turns)}: {kind:12}")
        yield kind, cast("Sequence[str]", row["reasons"])
    sys.stderr.write("\n")


def _reasons(kind: str, question: Question, chance: random.Random) -> Row:
    return {"reasons": KINDS[kind][0](question, chance)}


def judge_planted(tried: Iterator[tuple[str, Sequence[str]]], *, whole: bool) -> dict[str, dict[str, Any]]:
    """How many planted runs are flagged with the wanted reason, in all and by kind, and how many quiet ones for any.

    busy: the runs that are flagged for nothing but what other programs cause; whole: as many were tried as the goals are for.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"flagged": 0, "runs": 0, "busy": 0, "reasons": Counter()} for name in ("planted", "quiet", *KINDS)
    }
    for kind, reasons in tried:
        wanted = KINDS[kind][1]
        hit = any(word in reason for reason in reasons for word in wanted) if wanted else bool(reasons)
        for name in (kind, "planted") if wanted else (kind,):
            row = found[name]
            row["flagged"] += hit
            row["runs"] += 1
            row["busy"] += bool(reasons) and all(any(word in reason for word in OTHERS) for reason in reasons)
            row["reasons"].update(re.sub(r"[-+\d.%]+", "#", reason)[:60] for reason in reasons)
    quiet, planted = found["quiet"], found["planted"]
    del planted["reasons"], planted["busy"]
    loud = quiet["busy"] > ALARMS * quiet["runs"]
    planted["met"] = whole and planted["flagged"] >= FLAGGED * planted["runs"]
    quiet["met"] = whole and quiet["flagged"] <= ALARMS * quiet["runs"]
    if loud and quiet["flagged"] == quiet["busy"]:
        quiet["why"] = f"not judged: other load beside {quiet['busy']} of {quiet['runs']} runs, and nothing else"
    if loud:
        found["busy core"]["why"] = "shows little: other programs kept the cores busy without it"
    return found


if __name__ == "__main__":
    raise SystemExit(main())
