"""Does a student learn from a recorded teacher what it learns from a live one? A decoder of 46 M weights teaches half its blocks.

Goals, with KL(teacher || student) in nats a token on held-out Python after the same batches:
- a recorded token takes <= 300 bytes
- `recorded` <= 1.02 of `live`
- `recorded` < `largest`: the 16 likeliest tokens alone, made to sum to 1, as other caches keep them
- a step beside the recording takes less than beside the teacher, <= 0.8 of it, in processor time (each step's teacher included)
The three students begin alike and read the same windows of text in the same order. Training text are the Python files of the
interpreter and its packages (see benchmarks/qad.py). Rows and students are kept in --cache: what was stopped goes on.

Usage: python benchmarks/recorded_teacher.py [--steps 40] [--data ../shared/data] [--cache DIR] [--blocks 16] [--json]
Exit code 1 where a goal is missed, 2 where data is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from qad import BATCH, HELD, LENGTH, MODEL, SHARED, TASK, say  # noqa: E402
from qad import Bench as Texts  # noqa: E402
from rows import Row, Rows  # noqa: E402

from edgekit.distill import recorded, teachers  # noqa: E402
from edgekit.distill.batches import Source, passage_source  # noqa: E402
from edgekit.distill.courses import Course, Job, Teaches, teach  # noqa: E402
from edgekit.distill.options import DistillOptions, choose_blocks  # noqa: E402
from edgekit.distill.recorded import EXACT  # noqa: E402
from edgekit.distill.signals import Batch, Recorded  # noqa: E402
from edgekit.distill.students import Cut, load_module  # noqa: E402
from edgekit.distill.tap import Tap  # noqa: E402
from edgekit.runtimes import machine  # noqa: E402
from edgekit.tasks import TASKS  # noqa: E402

WAYS = ("live", "recorded", "largest")
STEPS, BLOCKS, RATE = 40, 16, 2e-4
BYTES, AS_LIVE, TIME = 300, 1.02, 0.8


def main() -> int:
    """Record, teach, measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED)
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "recorded-teacher")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} windows of {LENGTH} tokens")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="held-out windows of 512 tokens")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    for needed in (asked.data / MODEL, asked.data / HELD):
        if not needed.exists():
            print(f"{needed}: not here; name the folder with --data", file=sys.stderr)
            return 2
    asked.cache.mkdir(parents=True, exist_ok=True)
    kept = Rows(asked.cache / "rows.jsonl")
    with tempfile.TemporaryDirectory(prefix="edgekit-recorded-") as scratch:
        bench = Bench(asked.data, asked.cache, Path(scratch), asked.steps, asked.blocks)
        found = {way: kept.take(f"{way}/{asked.steps}/{asked.blocks}", partial(bench.row, way)) for way in WAYS}
    kl = {way: float(str(row["kl"])) for way, row in found.items()}
    seconds = {way: float(str(row["step_seconds"])) for way, row in found.items()}
    measured = {
        "bytes a token": (float(recorded.RECORD.itemsize), BYTES),
        "KL, recorded over live": (kl["recorded"] / kl["live"], AS_LIVE),
        "KL, recorded over largest": (kl["recorded"] / kl["largest"], 1.0),
        "time of a step, recorded over live": (seconds["recorded"] / seconds["live"], TIME),
    }
    goals = [
        {"goal": name, "measured": value, "most": most, "met": value <= most}
        for name, (value, most) in measured.items()
    ]
    if asked.json:
        print(
            json.dumps({"machine": machine.describe(), "steps": asked.steps, "rows": found, "goals": goals}, indent=2)
        )
    else:
        print(f"{'taught by':<12}{'KL':>10}{'s a step':>10}")
        for way in WAYS:
            print(f"{way:<12}{kl[way]:>10.5f}{seconds[way]:>10.2f}")
        for goal in goals:
            print(
                f"{'met' if goal['met'] else 'MISSED':<8}{goal['goal']}: {goal['measured']:.3f} (at most {goal['most']:g})"
            )
    return 0 if all(goal["met"] for goal in goals) else 1


class Bench:
    """The teacher, its recording, and students of half its blocks."""

    def __init__(self, data: Path, cache: Path, scratch: Path, steps: int, blocks: int) -> None:
        self.texts = Texts(data, cache, scratch, steps, blocks, None)
        self.folder, self.cache, self.scratch, self.steps = self.texts.folder, cache, scratch, steps

    def row(self, way: str) -> Row:
        """Teach a student in one way, and measure how far it is from the teacher."""
        student, seconds = self.taught(way)
        row = {"kl": self.divergence(student), "step_seconds": round(seconds / self.steps, 3)}
        say(f"{way}: KL {row['kl']:.5f}, {row['step_seconds']:.2f} s a step")
        return row

    def taught(self, way: str) -> tuple[Path, float]:
        """A student's folder, and the processor seconds of its training, without loading and recording."""
        windows = self.texts.windows
        source = passage_source(windows, range(len(windows)), [])
        out = self.scratch / way
        out.mkdir()
        begun = list[float]()

        def tell(done: int, total: int, note: str) -> None:
            if note.startswith("batches"):
                begun.append(time.process_time())
            if done % 10 == 0:
                say(f"{way}: {done}/{total} {note}")

        recording = None if way == "live" else self.recording(source)
        kinds = dict(teachers.TEACHERS)
        if way == "live":
            # What a larger corpus leaves room for: the answers of all of it do not fit into memory.
            teachers.TEACHERS.pop("kept")
        if way == "largest":
            teachers.TEACHERS["recorded"] = largest
        try:
            teach(
                Course(
                    job=Job(task=TASKS[TASK], max_length=LENGTH, out=out, progress=tell),
                    student=Cut(folder=self.folder, keep=choose_blocks(self.texts.model.layers, 6, None, "benchmark")),
                    source=source,
                    losses={"logits": 1.0},
                    options=DistillOptions(epochs=1, batch=BATCH, temperature=1.0, learning_rate=RATE),
                    begins=self.folder,
                    teacher=Teaches(folder=self.folder, recording=recording),
                )
            )
        finally:
            teachers.TEACHERS.clear()
            teachers.TEACHERS.update(kinds)
        return out, time.process_time() - begun[0]

    def recording(self, source: Source) -> Path:
        """What the teacher says of the windows; what is recorded already is kept."""
        folder = self.cache / f"signals-{self.steps}"
        folder.mkdir(exist_ok=True)
        tap = Tap(load_module(TASKS[TASK], self.folder))
        recorded.record(
            self.folder,
            tap,
            source,
            folder,
            temperature=1.0,
            seed=0,
            progress=lambda *told: say(f"recorded {told[0]} windows"),
        )
        return folder

    def divergence(self, student: Path) -> float:
        """KL(teacher || student) in nats, mean over the tokens of the held-out windows."""
        task = TASKS[TASK]
        pair = [Tap(load_module(task, folder)) for folder in (self.folder, student)]
        total, count = 0.0, 0
        with torch.no_grad():
            for ids in self.texts.blocks:
                tokens = torch.tensor([ids])
                batch = Batch(rows=(0,), tokens=tokens, mask=torch.ones_like(tokens), targets=tokens[0])
                theirs, mine = (tap.logits(tap(batch).output[0]).log_softmax(-1) for tap in pair)
                total += float((theirs.exp() * (theirs - mine)).sum())
                count += len(ids)
        return total / count


def largest(inputs: teachers.TeacherInputs) -> teachers.Teacher | None:
    """A recorded teacher of whom only the likeliest tokens are read, made to sum to 1."""
    teacher = teachers.recorded(inputs)
    assert teacher is not None
    assert teacher.recorded is not None
    read = teacher.recorded

    def truncated(batch: Batch) -> Recorded:
        found = read(batch)
        weights = found.weights.clone()
        weights[:, EXACT:] = 0.0
        return replace(found, weights=weights / weights.sum(dim=-1, keepdim=True))

    return replace(teacher, recorded=truncated)


if __name__ == "__main__":
    sys.exit(main())
