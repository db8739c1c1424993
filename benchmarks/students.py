"""What do the smallest students lose, at how many bytes, and how fast are they? (BANKING77, teacher: BERT MiniLM of 6 layers.)

Goals, the worst of the seeds:
- ngrams: the int8 artifact keeps >= 99.0 % of the teacher's accuracy in <= 1 MB, with p50 <= 0.1 ms a text on one thread,
  tokenization included, and is taught in < 60 s, the teacher's answers included
- 1-layer: int8 keeps >= 99 % in <= 1/60 of the teacher's bytes in float32
- 3-layer: float keeps >= 99.8 %, int8 >= 99.5 % in <= 1/30 of them
- each of them against `linear`, the linear model that reports draw as a line (`edgekit.linear`): better by a proven margin
  (paired, lower 95 % bound > 0)
The others show what the teacher added: `ngrams-control` and `1-layer-control` are the same students without it; the rows of
`ablations` are 3-layer students by one loss alone or all of them, 4 epochs each, `by-labels` being their control.
The 3,080 test rows are only counted (and new texts that are near to one are left out): every default was chosen on a part of
the train rows, which the teacher has learned: gains there are larger than on test rows. Bytes are model.onnx's; the tokenizer is
the teacher's and counted apart. Students of blocks keep 4,300 of its tokens (those of the train texts and all characters), as
many positions as a text may have, and the heads, neurons and channels that are most active on the train texts; their embedding is
held in 4 bits, and all but the control and ablations also learn what the teacher says of new texts of train ones (`spliced`).

Usage: python benchmarks/students.py [--only ROW,...] [--seeds 3] [--data DIR] [--cache DIR] [--svg FILE] [--json]
Each row is kept as soon as it is there, and a training that was killed continues: run it again until all are. Without --only the
rows DEFAULT, an hour on two idle cores at most; `--only ablations` is six more trainings of 4 epochs.
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

from edgekit import linear  # noqa: E402
from edgekit.distill import ControlInputs, DistillInputs, ImportanceInputs, control, distill, rank  # noqa: E402
from edgekit.distill.machine import conditions  # noqa: E402
from edgekit.distill.options import (  # noqa: E402
    DistillOptions,
    Ngrams,
    choose_blocks,
    default_losses,
    read_distill_options,
)
from edgekit.distill.sizes import choose_sizes  # noqa: E402
from edgekit.gate import paired_bounds  # noqa: E402
from edgekit.inputs import Content, identity  # noqa: E402
from edgekit.modalities.text import of_tokens  # noqa: E402
from edgekit.model import Model, load_model  # noqa: E402
from edgekit.recipe import Student  # noqa: E402
from edgekit.report import ModelFigures  # noqa: E402
from edgekit.report.charts import scatter  # noqa: E402
from edgekit.report.page import STYLE  # noqa: E402
from edgekit.runtimes import onnxruntime  # noqa: E402
from edgekit.schema import parse  # noqa: E402
from edgekit.tasks import TASKS, outputs  # noqa: E402
from edgekit.tasks.padding import find_pad_id  # noqa: E402
from edgekit.workspace import Product, file_sha256, write_atomically  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: blocks of the student, 0 of n-grams; its other keys; its [distill] table; what is exported beside
    int8; whether it is a control."""

    layers: int = 0
    student: Mapping[str, object] = field(default_factory=dict)
    table: Mapping[str, object] = field(default_factory=dict)
    export: Mapping[str, object] = field(default_factory=dict)
    control: bool = False


LINEAR = "linear"
SMALL = {"vocabulary": 4300, "positions": MAX_LENGTH}
WIDE = SMALL | {"hidden": 256, "intermediate": 896}
THREE = SMALL | {"hidden": 256, "intermediate": 544}
HALVED = {"table_bits": 4}
# Cut this small a student has more to learn again than one of whole blocks: a higher rate than the default, and more texts, of
# which the answers alone teach: what is inside the teacher would not be kept of so many.
MANY = {"spliced": 3, "learning_rate": 5e-4, "losses": {"logits": 0.5, "labels": 0.5}}
ALONE = ("labels", "logits", "hidden", "attention_relation")
ABLATIONS = {
    **{f"by-{name}": Row(layers=3, student=THREE, table={"epochs": 4, "losses": {name: 1.0}}) for name in ALONE},
    "by-all": Row(layers=3, student=THREE, table={"epochs": 4, "losses": default_losses("logits")}),
    "by-all-influence": Row(
        layers=3, student=THREE | {"depth": "influence"}, table={"epochs": 4, "losses": default_losses("logits")}
    ),
}
ROWS = {
    # New texts took it from 98.8 % of the teacher in the mean to 98.9 (three seeds, the worst 98.6 and 98.5) at twice the time.
    "ngrams": Row(),
    "ngrams-control": Row(control=True),
    "1-layer": Row(layers=1, student=WIDE, table=MANY | {"epochs": 10}, export=HALVED),
    "1-layer-control": Row(
        layers=1, student=WIDE, table={"epochs": 12, "learning_rate": 5e-4}, export=HALVED, control=True
    ),
    "3-layer": Row(layers=3, student=WIDE, table=MANY | {"epochs": 6}, export=HALVED),
    **ABLATIONS,
}
DEFAULT = (LINEAR, "ngrams", "ngrams-control", "1-layer", "3-layer")
# Of the teacher's accuracy in int8 and in float (None: no goal), and of its bytes in float32 (None: BYTES).
KEPT: dict[str, tuple[float, float | None, float | None]] = {
    "ngrams": (0.99, None, None),
    "1-layer": (0.99, None, 1 / 60),
    "3-layer": (0.995, 0.998, 1 / 30),
}
BYTES, P50_MS, SECONDS = 1_000_000, 0.1, 60.0
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one student and seed: accuracy in float (None where there is no float one) and int8, bytes of model.onnx, ms a text,
    seconds of teaching (None where it was killed and went on), and which test rows it answers rightly."""

    float_accuracy: float | None
    accuracy: float
    bytes: int
    p50_ms: float
    seconds: float | None
    right: list[bool] = field(repr=False)

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
    parser.add_argument("--only", default=",".join(DEFAULT), help="rows, with commas between them, or ablations")
    parser.add_argument("--svg", type=Path, help="where a chart of size, accuracy and time goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    asked = [row for name in arguments.only.split(",") for row in (ABLATIONS if name == "ablations" else [name])]
    if unknown := set(asked) - {LINEAR, *ROWS}:
        parser.error(f"--only: {', '.join(sorted(unknown))}: choose of {', '.join((LINEAR, *ROWS))}, ablations")
    if (needed := missing(arguments.data)) is not None:
        print(f"{needed}: not here; name the folder with --data")
        return 2
    bench = Bench(arguments.data, arguments.cache)
    teacher = bench.accuracy(bench.float_outputs)
    found: dict[str, list[Figures]] = {}
    for name in dict.fromkeys([LINEAR, *asked]):
        seeds = 1 if name == LINEAR or name in ABLATIONS else arguments.seeds
        found[name] = [measure(bench, name, seed) for seed in range(seeds)]
    goals = judge(bench, teacher, found)
    if arguments.svg is not None:
        write_atomically(arguments.svg, draw(bench, teacher, found))
    if arguments.json:
        rows = {name: [one.facts() for one in seeds] for name, seeds in found.items()}
        told = {"machine": machine(), "teacher": teacher, "rows": rows, "goals": [asdict(goal) for goal in goals]}
        print(json.dumps(told, indent=2))
    else:
        show(bench, teacher, found, goals)
    return 0 if all(goal.met for goal in goals) else 1


def measure(bench: Bench, name: str, seed: int) -> Figures:
    """Teach a row's student, export it and ask it; what was measured of the same file before is kept."""
    bench.say(f"{name}, seed {seed}")
    if name == LINEAR:
        product = fitted(bench)
        folder, file, options, seconds = product.folder, product.folder / linear.FILE, {}, product.facts["seconds"]
        student = None
    else:
        student = taught(bench, ROWS[name], seed)
        folder, facts = bench.export(student.folder, {"scheme": "int8-static", **ROWS[name].export})
        file, options, seconds = folder / str(facts["file"]), facts["runtime_options"], student.facts["seconds"]
    kept = bench.cache / "rows" / f"{file_sha256(file)[:16]}.json"
    if kept.is_file():
        return Figures(**json.loads(kept.read_text(encoding="utf-8")))
    session = onnxruntime.load(file, onnxruntime.joined({"threads": 1}, options))
    # Of fewer tokens, a student has ids of its own.
    reader = load_model(bench.teacher if student is None else student.folder)
    read = reader.encode([text for text, _ in bench.test], MAX_LENGTH)
    answers = np.stack([session.run(of_tokens([ids], 0).prompts[0]) for ids in read])
    names = np.array(bench.labels if student else product.facts["classes"])[answers.argmax(axis=1)]
    figures = Figures(
        float_accuracy=None if student is None else bench.accuracy(float_outputs(reader, read)),
        accuracy=float(np.mean(names == [label for _, label in bench.test])),
        bytes=sum(path.stat().st_size for path in folder.glob("model.onnx*")),
        p50_ms=time_texts(bench, reader, session),
        seconds=None if seconds is None else float(seconds),
        right=[bool(said == label) for said, (_, label) in zip(names, bench.test, strict=True)],
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps(asdict(figures)))
    return figures


def float_outputs(model: Model, read: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """A checkpoint's logits in float of texts that are read."""
    return outputs(TASKS[CLASSIFY].load(model.folder), of_tokens(read, find_pad_id(model)))


def time_texts(bench: Bench, reader: Model, session: onnxruntime.Session) -> float:
    """The median ms of a text, from words to logits: a tokenizer's ids and a mask of ones, as an app makes them."""
    tokenizer, times = reader.tokenizer(MAX_LENGTH), []
    for _ in range(ROUNDS):
        for text, _ in bench.test:
            begun = time.perf_counter()
            ids = np.array(tokenizer.encode(text).ids, np.int64)
            session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
            times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def taught(bench: Bench, row: Row, seed: int) -> Product:
    """The student of a row and a seed, and how long it took to teach it (wall seconds, the teacher's answers included)."""
    kind = "cut" if row.layers else "ngrams"
    options, losses = read_distill_options(row.table, "logits", "benchmark", kind)
    model = load_model(bench.teacher)
    small = parse(Student, {"layers": row.layers or None, **row.student}, "benchmark")
    influential = small.depth == "influence"
    blocks = choose_blocks(model.layers, row.layers, None, "benchmark") if row.layers and not influential else []
    inputs = DistillInputs(
        teacher=bench.content(bench.teacher),
        prompts=bench.splits(*(("train", "calibrate", "verify") if options.spliced else ("train",))),
        task=CLASSIFY,
        kept=blocks,
        options=options,
        losses=losses,
        out_of_scope=None,
        max_length=MAX_LENGTH,
        seed=seed,
        machine=conditions(options),
        ngrams=None if row.layers else Ngrams(),
        vocabulary=small.vocabulary,
        layers=row.layers if influential else None,
        sizes=choose_sizes(model, small, "benchmark"),
        importance=ranked(bench) if small.by_importance else None,
    )
    shown = Shown()

    def timed(out: Path, alone: ControlInputs | None = None) -> dict[str, object]:
        goes_on, begun = (out / "snapshot.json").is_file(), time.perf_counter()
        facts = distill(inputs, out, shown) if alone is None else control(alone, out, shown)
        return facts | {"seconds": None if goes_on else time.perf_counter() - begun}

    student = bench.workspace.once("distill", identity(inputs), timed)
    if not row.control:
        return student
    alone = ControlInputs(**{**vars(inputs), "losses": {"labels": 1.0}}, epochs=int(student.facts["epochs"]))
    return bench.workspace.once("control", identity(alone), lambda out: timed(out, alone))


def ranked(bench: Bench) -> Content:
    """How much each part of the teacher does on the train texts, measured once for all rows."""
    inputs = ImportanceInputs(
        teacher=bench.content(bench.teacher),
        prompts=bench.splits("train"),
        task=CLASSIFY,
        device="cpu",
        max_length=MAX_LENGTH,
        seed=0,
        machine=conditions(DistillOptions()),
    )
    product = bench.workspace.once("importance", identity(inputs), lambda out: rank(inputs, out))
    return Content(path=product.folder, digest=product.digest)


class Shown:
    """A line of progress every half a minute."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, total: int, note: str) -> None:
        """Show how far a training is."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 30
            print(f"    {done}/{total} {note}", file=sys.stderr, flush=True)


def fitted(bench: Bench) -> Product:
    """The linear model that reports draw as a line, and how long it took to fit it."""
    inputs = linear.LinearInputs(
        model=bench.content(bench.teacher),
        prompts=bench.splits("train", "calibrate"),
        task=CLASSIFY,
        out_of_scope=None,
        max_length=MAX_LENGTH,
    )

    def timed(out: Path) -> dict[str, object]:
        begun = time.perf_counter()
        facts = linear.fit(inputs, out)
        return facts | {"seconds": time.perf_counter() - begun}

    return bench.workspace.once("linear", identity(inputs), timed)


def judge(bench: Bench, teacher: float, found: Mapping[str, Sequence[Figures]]) -> list[Goal]:
    """The goals of the rows that were run, each by its worst seed."""
    goals = []
    for name, (kept, in_float, size) in KEPT.items():
        if not (ours := found.get(name)):
            continue
        goals.append(_at_least(f"{name}: share of the teacher's accuracy, int8", worst(ours) / teacher, kept))
        if in_float is not None:
            lowest = min(one.float_accuracy or 0.0 for one in ours)
            goals.append(_at_least(f"{name}: share of the teacher's accuracy, float", lowest / teacher, in_float))
        largest, most = max(one.bytes for one in ours), BYTES if size is None else size * bench.float_bytes
        goals.append(_at_most(f"{name}: bytes", largest, most))
        (line,) = found[LINEAR]
        bound = min(_gained(mine.right, line.right) for mine in ours)
        goals.append(Goal(goal=f"{name}: gain over linear, lower bound", measured=bound, limit=0.0, met=bound > 0))
    if ours := found.get("ngrams"):
        slowest = max(one.p50_ms for one in ours)
        goals.append(_at_most("ngrams: p50 ms, tokenization included", slowest, P50_MS))
        longest = max(float("inf") if one.seconds is None else one.seconds for one in ours)
        goals.append(_at_most("ngrams: seconds of teaching", longest, SECONDS))
    return goals


def worst(seeds: Sequence[Figures]) -> float:
    """The lowest accuracy in int8."""
    return min(one.accuracy for one in seeds)


def _at_least(goal: str, measured: float, limit: float) -> Goal:
    return Goal(goal=goal, measured=measured, limit=limit, met=measured >= limit)


def _at_most(goal: str, measured: float, limit: float) -> Goal:
    return Goal(goal=goal, measured=measured, limit=limit, met=measured <= limit)


def _gained(mine: Sequence[bool], theirs: Sequence[bool]) -> float:
    """The lower bound of how much more often one is right than the other."""
    here, there = np.array(mine), np.array(theirs)
    return -paired_bounds(int((there & ~here).sum()), int((here & ~there).sum()), len(here))[1]


def draw(bench: Bench, teacher: float, found: Mapping[str, Sequence[Figures]]) -> str:
    """Size, accuracy and time of every row but ablations in one SVG, the teacher's in float32 included."""
    models = [ModelFigures(role="teacher", name="teacher, float32", accuracy=teacher, bytes=bench.float_bytes)]
    for name, seeds in found.items():
        if name in ABLATIONS:
            continue
        role = LINEAR if name == LINEAR else "control" if name.endswith("-control") else "artifact"
        means = {key: statistics.mean(getattr(one, key) for one in seeds) for key in ("accuracy", "bytes", "p50_ms")}
        size = round(means["bytes"])
        models.append(
            ModelFigures(role=role, name=name, accuracy=means["accuracy"], bytes=size, p50=means["p50_ms"], threads=1)
        )
    style = (ROOT / "edgekit" / "report" / STYLE).read_text(encoding="utf-8")
    return (
        scatter(models, "p50 of a text", powers=True).replace(
            "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 324"><style>{style}</style><svg ', 1
        )
        + "</svg>\n"
    )


def show(bench: Bench, teacher: float, found: Mapping[str, Sequence[Figures]], goals: Sequence[Goal]) -> None:
    """Tables for people."""
    print(
        f"{machine()['cpu']}; teacher {teacher:.4f}, {bench.float_bytes:,} bytes in float32; {len(bench.test)} test rows\n"
    )
    print("student             seeds  int8 mean (worst)   float mean  of the teacher  bytes       p50 ms  taught in s")
    for name, seeds in found.items():
        mean = statistics.mean(one.accuracy for one in seeds)
        known = [one.float_accuracy for one in seeds if one.float_accuracy is not None]
        floats = f"{statistics.mean(known):.4f}" if known else "-"
        size, p50 = max(one.bytes for one in seeds), statistics.mean(one.p50_ms for one in seeds)
        took = [one.seconds for one in seeds if one.seconds is not None]
        print(
            f"{name:<19} {len(seeds):>5}  {mean:.4f} ({worst(seeds):.4f})     {floats:<10}  {mean / teacher:.4f}"
            f"          {size:>9,}   {p50:.3f}   {f'{max(took):.1f}' if took else '-'}"
        )
    print()
    for goal in goals:
        print(f"{'met   ' if goal.met else 'MISSED'} {goal.goal}: {goal.measured:.4g} (limit {goal.limit:g})")


if __name__ == "__main__":
    sys.exit(main())
