"""Does `[student] fit = true` know how fast and how large a student will be before it is trained?

Sizes of each model, cut from it as students are and written as they ship, are timed in turns with the samples that predict
them, each time in a process of its own: a BERT MiniLM of 6 layers (BANKING77 intents) of 1 to 6 layers in both INT8 schemes, 32
tokens a call, and a Llama of 12 layers (code) of 2 to 12 in q8_0 and q4_0, a new token a call behind 256; of both six sizes are
as wide as the model, and three narrower, as `fit` proposes them: few neurons, and fewer channels too. One thread.

Goals, of each model and scheme, on this machine:
- the predicted p50 of every size within 25 % of the measured one
- rank correlation (Spearman) of predicted and measured p50 >= 0.9
- the predicted bytes of every size within 2 % of the file's

Times are those of the quickest of all calls, so that other programs on the machine count little. The largest and the
smallest ratio of times are shown: what a prediction misses is why fit leaves a tenth of a limit free
(`edgekit.pipeline.predicted.ROOM`).

Usage: python benchmarks/fit.py [--only ROW,...] [--rounds 8] [--data ../shared/data] [--cache DIR] [--json]
Each row is kept as soon as it is there: run it again until all are. Exit code 1 where a goal is missed, 2 where data is absent.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from banking77 import SHARED, machine  # noqa: E402

from edgekit.devices import open_device  # noqa: E402
from edgekit.distill.options import choose_blocks  # noqa: E402
from edgekit.pace import Pace, Sample, pace, read_pace  # noqa: E402
from edgekit.pipeline import Listener, Session, check_recipe, gather_prompts  # noqa: E402
from edgekit.pipeline.fit import Fitting  # noqa: E402
from edgekit.pipeline.plan import run_step  # noqa: E402
from edgekit.progress import Progress  # noqa: E402
from edgekit.recipe import load_recipe  # noqa: E402
from edgekit.report.fit import describe_student  # noqa: E402
from edgekit.target import load_target  # noqa: E402
from edgekit.workspace import Workspace  # noqa: E402

P50, RANK, BYTES = 0.25, 0.9, 0.02
TARGET = """\
title = "This machine"

[hardware]
arch = "{arch}"
cpu = "any"
cores = 1
features = []
memory_mb = 65536
sources = ["this benchmark: it states no speed, so that nothing is scaled"]

[export.{task}]
format = "{format}"
scheme = "auto"

[runtime.onnxruntime]
threads = 1

[runtime.llama-cpp]
threads = 1

[budget]
bytes = 10_000_000_000
sequence = 32
"""
RECIPE = """\
task = "{task}"

[teacher]
source = {teacher}

[student]
fit = true

[data]
train = "train.jsonl"
calibrate = "calibrate.jsonl"
verify = "verify.jsonl"
near_duplicates = "drop"
max_length = 64
"""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A teacher in the folder of data, what it does, and the sizes and schemes that are made of it."""

    folder: str
    task: str
    format: str
    layers: Sequence[int]
    narrow: Sequence[tuple[int, int]]
    """Of each narrower size its layers, and which of the widths that `fit` proposes."""
    schemes: Sequence[str]


ROWS: dict[str, Model] = {
    "bert": Model(
        folder="banking77-teacher",
        task="text-classification",
        format="onnx",
        layers=(1, 2, 3, 4, 5, 6),
        narrow=((2, 0), (6, 0), (6, 1)),
        schemes=("int8-static", "int8-dynamic"),
    ),
    "llama": Model(
        folder="code-llama-46m",
        task="text-generation",
        format="gguf",
        layers=(2, 4, 6, 8, 10, 12),
        narrow=((4, 0), (12, 0), (12, 1)),
        schemes=("q8_0", "q4_0"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size: what was predicted and what was measured, times in ms. widths: what is narrower than the model."""

    scheme: str
    layers: int
    widths: Mapping[str, int]
    predicted_ms: float
    measured_ms: float
    predicted_bytes: int
    bytes: int


def main() -> int:
    """Make, measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="rows, with commas between them")
    parser.add_argument("--rounds", type=int, default=8, help="processes that time each size")
    parser.add_argument("--data", type=Path, default=SHARED)
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "fit", help="where rows are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else [*ROWS]
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--only: {unknown[0]}: no such row; choose of {', '.join(ROWS)}")
    for name in names:
        if not (given.data / ROWS[name].folder / "config.json").is_file():
            print(f"{given.data / ROWS[name].folder}: missing", file=sys.stderr)
            return 2
    rows = {name: measure(ROWS[name], given.data, given.cache, given.rounds) for name in names}
    rows = {
        f"{name} {scheme}": [size for size in sizes if size.scheme == scheme]
        for name, sizes in rows.items()
        for scheme in ROWS[name].schemes
    }
    missed = [line for name, sizes in rows.items() for line in judge(name, sizes)]
    if given.json:
        told = {name: [asdict(size) for size in sizes] for name, sizes in rows.items()}
        print(json.dumps({"machine": machine(), "rows": told, "missed": missed}, indent=2))
    else:
        print("\n".join([*table(rows), "", *(missed or ["every goal is met"])]))
    return 1 if missed else 0


def measure(model: Model, data: Path, cache: Path, rounds: int) -> list[Size]:
    """A row's sizes, as `fit` predicts them of two samples, and as they are."""
    workspace = Workspace(cache)
    with tempfile.TemporaryDirectory(prefix="edgekit-fit-") as scratch:
        folder = Path(scratch)
        write_project(folder, model, data)
        session = Session(workspace=workspace, out=folder / "dist", listener=Told())
        recipe, target = load_recipe(folder / "recipe.toml"), load_target(str(folder / "here.toml"))
        prompts = gather_prompts(recipe, session)
        fitting = Fitting.of(check_recipe(recipe, prompts, session), target, prompts)
        asked = fitting.inputs(model.schemes)
        depth, first = fitting.whole.layers, len(asked.keeps)
        sizes = [(count, dict[str, int]()) for count in model.layers]
        sizes += [(count, fitting.widths[place]) for count, place in model.narrow]
        keeps = [choose_blocks(depth, count, None, "student") for count, _ in sizes]
        widths = [narrower for _, narrower in sizes]
        inputs = replace(asked, keeps=[*asked.keeps, *keeps], widths=[*asked.widths, *widths], rounds=rounds)
        product = run_step(session, inputs, partial(pace, device=open_device({"kind": "local"}, "device")))
    found = read_pace(product.folder)
    first *= len(model.schemes)
    samples, measured = found.samples[:first], found.samples[first:]
    return [size_of(fitting, replace(found, samples=samples), one) for one in measured]


def size_of(fitting: Fitting, samples: Pace, measured: Sample) -> Size:
    """A size's prediction beside what it is."""
    every = fitting.options({"layers": measured.layers, **measured.widths})
    option = next(one for one in every if one.scheme == measured.scheme)
    # What is measured has no layers that stay float.
    times = fitting.times(replace(option, cost=replace(option.cost, most=None)), samples, {})
    return Size(
        scheme=measured.scheme,
        layers=measured.layers,
        widths=dict(measured.widths),
        predicted_ms=times["p50_ms"],
        measured_ms=measured.times["p50_ms"],
        predicted_bytes=option.cost.file.value,
        bytes=measured.bytes,
    )


def write_project(folder: Path, model: Model, data: Path) -> None:
    """A recipe that leaves the student to the budget, its data, and a target."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(name := platform.machine().lower(), name)
    (folder / "here.toml").write_text(TARGET.format(arch=arch, task=model.task, format=model.format), encoding="utf-8")
    teacher = json.dumps(str((data / model.folder).resolve()))
    (folder / "recipe.toml").write_text(RECIPE.format(task=model.task, teacher=teacher), encoding="utf-8")
    for split, rows in (texts_of_intents if model is ROWS["bert"] else texts_of_code)(data).items():
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def texts_of_intents(data: Path) -> dict[str, list[dict[str, str]]]:
    """Some of the train rows for each split: nothing is trained or judged."""
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as stream:
        rows = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(stream)]
    return {"train": rows[::15], "calibrate": rows[5::15], "verify": rows[10::15]}


def texts_of_code(data: Path) -> dict[str, list[dict[str, str]]]:
    """Some functions for each split."""
    with (data / "code-heldout" / "held.jsonl").open(encoding="utf-8") as stream:
        lines = [line for row in stream for line in json.loads(row)["text"].splitlines() if line.strip()][:3000]
    pieces = [{"text": "\n".join(lines[begin : begin + 12])} for begin in range(0, len(lines), 12)]
    pieces = [piece for piece in pieces if len(piece["text"]) > 80]
    return {"train": pieces[::3], "calibrate": pieces[1::3], "verify": pieces[2::3]}


def judge(name: str, sizes: Sequence[Size]) -> list[str]:
    """The goals that a row misses."""
    missed = []
    for size in sizes:
        if abs(size.predicted_ms / size.measured_ms - 1) > P50:
            missed.append(
                f"{name}, {named(size)}: p50 {size.predicted_ms:.3g} ms predicted, {size.measured_ms:.3g} measured"
            )
        if abs(size.predicted_bytes / size.bytes - 1) > BYTES:
            missed.append(f"{name}, {named(size)}: {size.predicted_bytes:,} bytes predicted, {size.bytes:,} there")
    if rank_correlation(sizes) < RANK:
        missed.append(f"{name}: rank correlation {rank_correlation(sizes):.2f}, below {RANK}")
    return missed


def named(size: Size) -> str:
    """A size in words."""
    return describe_student({"layers": size.layers, **size.widths})


def rank_correlation(sizes: Sequence[Size]) -> float:
    """Spearman's, of predicted and measured times."""
    ranks = [np.argsort(np.argsort([getattr(size, key) for size in sizes])) for key in ("predicted_ms", "measured_ms")]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def table(rows: Mapping[str, Sequence[Size]]) -> list[str]:
    """All sizes, and of each row how far off its times are."""
    lines = [f"{'':<18}{'size':<42}{'predicted':>12}{'measured':>11}{'ratio':>7}{'bytes':>14}{'ratio':>8}"]
    for name, sizes in rows.items():
        for size in sizes:
            times = (
                f"{size.predicted_ms:>9.3f} ms{size.measured_ms:>8.3f} ms{size.predicted_ms / size.measured_ms:>7.2f}"
            )
            lines.append(
                f"{name:<18}{named(size):<42}{times}{size.bytes:>14,}{size.predicted_bytes / size.bytes:>8.3f}"
            )
        ratios = [size.predicted_ms / size.measured_ms for size in sizes]
        lines.append(
            f"{name:<18}times {min(ratios):.2f} to {max(ratios):.2f} of what is measured, rank correlation"
            f" {rank_correlation(sizes):.2f}"
        )
    return lines


class Told(Listener):
    """Shows how far a row is."""

    def begin(self, step: str, note: str = "", *, bundle: str = "") -> Progress:
        """What is said goes to standard error."""
        print(f"{step}: {note}", file=sys.stderr, flush=True)
        return lambda done, total, text: print(f"  {done}/{total} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
