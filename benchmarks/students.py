"""What do the smallest students lose, at how many bytes, and how fast are they? (BANKING77, teacher: BERT MiniLM of 6 layers.)

Goals, the worst of the seeds:
- ngrams: the int8 artifact keeps >= 99.0 % of the teacher's accuracy in <= 1 MB, with p50 <= 0.1 ms a text on one thread,
  tokenization included, and is taught in < 60 s, the teacher's answers included
- ngrams against linear, the same table taught by the labels alone: better by a proven margin (paired, lower 95 % bound > 0)
The 3,080 test rows are only counted: every default was chosen on a part of the train rows. Bytes are model.onnx's; the tokenizer
is the teacher's and counted apart.

Usage: python benchmarks/students.py [--seeds 3] [--data DIR] [--cache DIR] [--json]
Exit code 1 where a goal is missed, 2 where the data is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from banking77 import CLASSIFY, MAX_LENGTH, SHARED, Bench, machine, missing  # noqa: E402

from edgekit.distill import DistillInputs, distill  # noqa: E402
from edgekit.distill.machine import conditions  # noqa: E402
from edgekit.distill.options import Ngrams, read_distill_options  # noqa: E402
from edgekit.gate import paired_bounds  # noqa: E402
from edgekit.inputs import identity  # noqa: E402
from edgekit.modalities.text import of_tokens  # noqa: E402
from edgekit.model import load_model  # noqa: E402
from edgekit.runtimes import onnxruntime  # noqa: E402
from edgekit.workspace import Product  # noqa: E402

# The [distill] table of each row.
ROWS: dict[str, dict[str, object]] = {"ngrams": {}, "linear": {"losses": {"labels": 1.0}}}
KEPT, BYTES, P50_MS, SECONDS = 0.99, 1_000_000, 0.1, 60.0
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one student and seed: accuracy in float and int8, bytes of model.onnx, ms a text, seconds of teaching."""

    float_accuracy: float
    accuracy: float
    bytes: int
    p50_ms: float
    seconds: float
    right: NDArray[np.bool_] = field(repr=False)

    def facts(self) -> dict[str, object]:
        """What --json shows."""
        return {key: value for key, value in asdict(self).items() if key != "right"}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal, what was measured, and whether it is met."""

    goal: str
    measured: float
    limit: float
    met: bool


def main() -> int:
    """Make, measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="a folder with banking77 and banking77-teacher")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "students", help="where products are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if (needed := missing(arguments.data)) is not None:
        print(f"{needed}: not here; name the folder with --data")
        return 2
    bench = Bench(arguments.data, arguments.cache)
    teacher = bench.accuracy(bench.float_outputs)
    found = {name: [measure(bench, name, seed) for seed in range(arguments.seeds)] for name in ROWS}
    goals = judge(teacher, found)
    if arguments.json:
        rows = {name: [one.facts() for one in seeds] for name, seeds in found.items()}
        told = {"machine": machine(), "teacher": teacher, "rows": rows, "goals": [asdict(goal) for goal in goals]}
        print(json.dumps(told, indent=2))
    else:
        show(bench, teacher, found, goals)
    return 0 if all(goal.met for goal in goals) else 1


def measure(bench: Bench, name: str, seed: int) -> Figures:
    """Teach a row's student and export it; its figures."""
    bench.say(f"{name}, seed {seed}")
    student = taught(bench, name, seed)
    folder, facts = bench.export(student.folder, {"scheme": "int8-static"})
    file = folder / str(facts["file"])
    session = onnxruntime.load(file, onnxruntime.joined({"threads": 1}, facts["runtime_options"]))
    answers = np.stack([session.run(of_tokens([ids], 0).prompts[0]) for ids in bench.test_ids])
    names = np.array(bench.labels)[answers.reshape(len(answers), -1).argmax(axis=1)]
    right = names == np.array([label for _, label in bench.test])
    # Inputs as an app makes them: a tokenizer's ids, and a mask of ones.
    tokenizer, times = load_model(student.folder).tokenizer(MAX_LENGTH), []
    for _ in range(ROUNDS):
        for text, _ in bench.test:
            begun = time.perf_counter()
            ids = np.array([tokenizer.encode(text).ids], np.int64)
            session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
            times.append((time.perf_counter() - begun) * 1e3)
    return Figures(
        float_accuracy=bench.accuracy(bench.outputs_of(student.folder)),
        accuracy=float(right.mean()),
        bytes=int(facts["bytes"]),
        p50_ms=statistics.median(times),
        seconds=float(student.facts["seconds"]),
        right=right,
    )


def taught(bench: Bench, name: str, seed: int) -> Product:
    """The student of a row and a seed, and how long it took to teach it (wall seconds, the teacher's answers included)."""
    options, losses = read_distill_options(ROWS[name], "logits", "benchmark", "ngrams")
    inputs = DistillInputs(
        teacher=bench.content(bench.teacher),
        prompts=bench.splits("train"),
        task=CLASSIFY,
        kept=[],
        options=options,
        losses=losses,
        out_of_scope=None,
        max_length=MAX_LENGTH,
        seed=seed,
        machine=conditions(options),
        ngrams=Ngrams(),
    )

    def timed(out: Path) -> dict[str, object]:
        begun = time.perf_counter()
        facts = distill(inputs, out)
        return facts | {"seconds": time.perf_counter() - begun}

    return bench.workspace.once("distill", identity(inputs), timed)


def judge(teacher: float, found: Mapping[str, Sequence[Figures]]) -> list[Goal]:
    """The goals, each by its worst seed."""
    ours, linear = found["ngrams"], found["linear"]
    kept = min(one.accuracy for one in ours) / teacher
    size, slowest = max(one.bytes for one in ours), max(one.p50_ms for one in ours)
    longest = max(one.seconds for one in ours)
    # What ngrams loses against linear, its upper bound: below zero it is the better one.
    bound = max(
        paired_bounds(
            int((theirs.right & ~mine.right).sum()), int((mine.right & ~theirs.right).sum()), len(mine.right)
        )[1]
        for mine, theirs in zip(ours, linear, strict=True)
    )
    return [
        Goal(goal="ngrams: share of the teacher's accuracy", measured=kept, limit=KEPT, met=kept >= KEPT),
        Goal(goal="ngrams: bytes", measured=size, limit=BYTES, met=size <= BYTES),
        Goal(goal="ngrams: p50 ms, tokenization included", measured=slowest, limit=P50_MS, met=slowest <= P50_MS),
        Goal(goal="ngrams: seconds of teaching", measured=longest, limit=SECONDS, met=longest < SECONDS),
        Goal(goal="ngrams: loss against linear, upper bound", measured=bound, limit=0.0, met=bound < 0),
    ]


def show(bench: Bench, teacher: float, found: Mapping[str, Sequence[Figures]], goals: Sequence[Goal]) -> None:
    """Tables for people."""
    print(
        f"{machine()['cpu']}; teacher {teacher:.4f}, {bench.float_bytes:,} bytes in float32; {len(bench.test)} test rows\n"
    )
    print("student   accuracy mean (worst)   float mean   of the teacher   bytes     p50 ms   taught in s")
    for name, seeds in found.items():
        mean, worst = statistics.mean(one.accuracy for one in seeds), min(one.accuracy for one in seeds)
        floats = statistics.mean(one.float_accuracy for one in seeds)
        size, p50 = max(one.bytes for one in seeds), statistics.mean(one.p50_ms for one in seeds)
        took = max(one.seconds for one in seeds)
        print(
            f"{name:<9} {mean:.4f} ({worst:.4f})         {floats:.4f}       {mean / teacher:.4f}"
            f"           {size:>8,}  {p50:.3f}    {took:.1f}"
        )
    print()
    for goal in goals:
        print(f"{'met   ' if goal.met else 'MISSED'} {goal.goal}: {goal.measured:.4g} (limit {goal.limit:g})")


if __name__ == "__main__":
    sys.exit(main())
