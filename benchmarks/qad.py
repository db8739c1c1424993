"""What does quantization-aware distillation win back of what rounding loses? A decoder of 46 M weights, read by llama.cpp.

Goals, on held-out Python, with KL(original || file) in nats a token:
- q4_0: trained on its grid (qad) <= 0.5 of plain q4_0, and <= 0.8 of as many tokens of plain distillation, then q4_0 (kd)
- q4_0: qad wins back >= 60 % of the perplexity that plain q4_0 loses
- q4_k: qad <= 0.7 of plain q4_k_s
- every file of qad holds the trained weights, 100 % of them, as gguf-py reads it
Beside them `ce`, as many tokens of the texts alone, then q4_0; `start`, where qad begins: rounding with feedback (GPTQ) on some
of the training text, with nothing trained; `scales`: the scales alone trained from there. All are taught by the same windows of
text in the same order, by the same optimizer, to the last step; plain, kd and ce are written without an importance matrix.
Training text are the Python files of the interpreter and its packages, but for those that share half of their long lines with
held-out text.

Rows and students are kept in --cache: what was stopped goes on. The model's folder has a SOURCE.txt that says what it has read.

Usage: python benchmarks/qad.py [--steps 160] [--rows plain,qad,...] [--learning-rate R] [--data ../shared/data] [--cache DIR]
       [--blocks 24] [--json]; exit code 1 where a goal that was measured is missed, 2 where data is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from rows import Row, Rows  # noqa: E402

from edgekit.distill.batches import passage_source  # noqa: E402
from edgekit.distill.courses import Course, Job, Teaches, teach  # noqa: E402
from edgekit.distill.files import KEPT, copy_files, save_model  # noqa: E402
from edgekit.distill.on_grid import OnGrid, choose_rate  # noqa: E402
from edgekit.distill.options import QadOptions, read_qad_options  # noqa: E402
from edgekit.distill.scales import Learned, round_on_texts  # noqa: E402
from edgekit.distill.students import Whole, load_module  # noqa: E402
from edgekit.formats import FORMATS, parse_options  # noqa: E402
from edgekit.formats.gguf import scheme_types  # noqa: E402
from edgekit.formats.gguf.convert import Quantization, convert  # noqa: E402
from edgekit.formats.gguf.metadata import describe_model  # noqa: E402
from edgekit.formats.gguf.tensors import plan  # noqa: E402
from edgekit.formats.gguf.tokenizer import vocabulary  # noqa: E402
from edgekit.grid import Grid, read_packed  # noqa: E402
from edgekit.inspect.on_grid import compare  # noqa: E402
from edgekit.model import load_model  # noqa: E402
from edgekit.runtimes import Generator, llamacpp, machine, scores  # noqa: E402
from edgekit.runtimes.machine import count_threads  # noqa: E402
from edgekit.tasks import TASKS  # noqa: E402
from edgekit.tasks.text_generation import Passage  # noqa: E402

Doubles = NDArray[np.float64]
SHARED = ROOT.parent / "shared" / "data"
MODEL, HELD = "code-llama-46m", "code-heldout/held.jsonl"
TASK = "text-generation"
# Tokens of a window, windows of a batch; held-out windows and their length; windows of one file at most.
LENGTH, BATCH = 256, 4
BLOCKS, BLOCK = 24, 512
STEPS = 160
WINDOWS = 4
RESAMPLINGS = 2000
# A line of fewer characters is in many files.
LONG = 30


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a row's file is made: its scheme, and what teaches the student before (None: nothing).

    train: what is trained on the scheme's grid, as QadOptions says, or "start" for nothing; None: it is taught in float. options:
    of the export, beside the scheme.
    """

    scheme: str
    teach: str | None = None
    train: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


ROWS: dict[str, Way] = {
    "original": Way(scheme="f32"),
    "plain": Way(scheme="q4_0"),
    "start": Way(scheme="q4_0", train="start"),
    "qad": Way(scheme="q4_0", teach="logits", train="scales"),
    "kd": Way(scheme="q4_0", teach="logits"),
    "ce": Way(scheme="q4_0", teach="labels"),
    "both": Way(scheme="q4_0", teach="logits", train="both"),
    "plain-q4_k": Way(scheme="q4_k_s"),
    "start-q4_k": Way(scheme="q4_k_s", train="start"),
    "qad-q4_k": Way(scheme="q4_k_s", teach="logits", train="scales"),
}
# A goal: a row's KL over another's, at most.
RATIOS = (("qad", "plain", 0.5), ("qad", "kd", 0.8), ("qad-q4_k", "plain-q4_k", 0.7))
RECOVERED = 0.6


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal, what was measured with its 95 % interval over held-out windows, and whether it is met."""

    goal: str
    measured: float
    interval: Sequence[float] | None
    limit: float
    met: bool

    def told(self) -> str:
        """A line for people."""
        ends = "" if self.interval is None else " ({:.3f} to {:.3f})".format(*self.interval)
        return f"{'met   ' if self.met else 'MISSED'} {self.goal}: {self.measured:.3f}{ends}, goal {self.limit}"


def run(kind: type[Bench], text: str, steps: int) -> int:
    """Teach, measure, show, and say by the exit code whether every goal that was measured is met.

    text: what --help says; steps: how many batches teach where nobody says.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED)
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / kind.name)
    parser.add_argument("--steps", type=int, default=steps, help=f"batches of {BATCH} windows of {LENGTH} tokens")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help=f"held-out windows of {BLOCK} tokens")
    parser.add_argument("--rows", default=",".join(kind.ways), help=f"which of {', '.join(kind.ways)}")
    parser.add_argument("--learning-rate", type=float, help="of all that are taught (default: qad's own)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    names = str(asked.rows).split(",")
    if unknown := sorted(set(names) - kind.ways.keys()):
        parser.error(f"{unknown[0]}: no such row")
    for needed in (asked.data / MODEL, asked.data / HELD):
        if not needed.exists():
            print(f"{needed}: not here; name the folder with --data", file=sys.stderr)
            return 2
    asked.cache.mkdir(parents=True, exist_ok=True)
    kept = Rows(asked.cache / "rows.jsonl")
    with tempfile.TemporaryDirectory(prefix="edgekit-qad-") as scratch:
        bench = kind(asked.data, asked.cache, Path(scratch), asked.steps, asked.blocks, asked.learning_rate)
        found = {name: kept.take(bench.key(name), partial(bench.row, name)) for name in names}
    goals = judge(found, kind.ratios)
    if asked.json:
        facts = {"machine": machine.describe(), "steps": asked.steps, "tokens": asked.steps * BATCH * LENGTH}
        print(json.dumps(facts | {"rows": found, "goals": [asdict(goal) for goal in goals]}, indent=2))
    else:
        show(found, goals)
    return 0 if all(goal.met for goal in goals) else 1


class Bench:
    """The model, the texts, and llama.cpp as the judge."""

    name = "qad"
    ways: Mapping[str, Way] = ROWS
    ratios: Sequence[tuple[str, str, float]] = RATIOS
    float_scheme = "f32"

    def __init__(self, data: Path, cache: Path, scratch: Path, steps: int, blocks: int, rate: float | None) -> None:
        self.folder, self.cache, self.scratch = data / MODEL, cache, scratch
        self.steps, self.count = steps, blocks
        self.model = load_model(self.folder)
        self.rate = rate
        lines = (data / HELD).read_text(encoding="utf-8").splitlines()
        self.held = sorted((json.loads(line)["text"] for line in lines), key=digest)
        self.options = {"threads": count_threads(), "kv_k": "f32", "kv_v": "f32", "context": BLOCK}

    def key(self, name: str) -> str:
        """What a row that is kept must agree with."""
        way = self.ways[name]
        taught = f"/{self.steps}x{BATCH}x{LENGTH}/{self.rate_of(way):g}" if way.teach else ""
        return f"{name}/{self.count}x{BLOCK}{taught}/{way.train or 'float'}"

    def rate_of(self, way: Way) -> float:
        """The learning rate of a row."""
        grid = self.grid(way.scheme) if way.train else None
        return self.rate or choose_rate(options_of(way), self.model.hidden, grid)

    def row(self, name: str) -> Row:
        """Teach a row's student where it has one, write its file, and measure that."""
        way, begun = self.ways[name], time.process_time()
        student = self.folder if way.teach is way.train is None else self.taught(way)
        seconds = time.process_time() - begun
        file = (
            self.original
            if way.scheme == self.float_scheme
            else self.write(student, way, self.scratch / f"{name}.gguf")
        )
        exact = compare(file, student)["equal"] if way.train else None
        row = {"bytes": file.stat().st_size, "cpu_seconds": round(seconds, 1), "exact": exact} | self.measure(file)
        say(f"{name}: KL {row['kl']:.5f}, perplexity {row['perplexity']:.4f}")
        return row

    def taught(self, way: Way) -> Path:
        """The folder of a student that learned from the training text beside the original, or alone, or was rounded on it."""
        grid = self.grid(way.scheme) if way.train else None
        name = f"{way.teach}-{way.train or 'float'}-{way.scheme if grid else ''}-{self.steps}-{self.rate_of(way):g}"
        out = self.cache / name
        if (out / "done").exists():
            return out
        out.mkdir(exist_ok=True)
        source = passage_source(self.windows, range(len(self.windows)), [])
        if way.train == "start":
            assert grid is not None
            module = load_module(TASKS[TASK], self.folder)
            start = round_on_texts(module, grid, source, weights=True)
            OnGrid(module, grid, Learned(module, grid, start, weights=True)).settle(out)
            save_model(module, out)
            copy_files(self.folder, out, KEPT[TASKS[TASK].OUTPUT])
            (out / "done").touch()
            return out
        begun = time.monotonic()

        def tell(done: int, total: int, note: str) -> None:
            if done % 16 == 0:
                say(f"{name}: {done}/{total} {note}, {time.monotonic() - begun:.0f} s")

        assert way.teach is not None
        teach(
            Course(
                job=Job(task=TASKS[TASK], max_length=LENGTH, out=out, progress=tell),
                student=Whole(folder=self.folder),
                source=source,
                losses={way.teach: 1.0},
                options=replace(options_of(way), learning_rate=self.rate_of(way)),
                begins=self.folder,
                teacher=Teaches(folder=self.folder) if way.teach == "logits" else None,
                grid=grid,
            )
        )
        (out / "done").touch()
        return out

    def grid(self, scheme: str) -> Grid:
        """What a scheme rounds the model's weights to."""
        _, options = parse_options({"format": "gguf", "scheme": scheme}, "tokens", "benchmark")
        return FORMATS["gguf"].grid(self.model, options, "tokens")

    @cached_property
    def windows(self) -> list[Passage]:
        """Windows of the training text, as many as the steps read."""
        count, found = self.steps * BATCH, list[Passage]()
        say(f"cutting {count} windows of {LENGTH} tokens")
        unwanted = {line for text in self.held for line in long_lines(text)}
        for path in python_files():
            text = path.read_text(encoding="utf-8", errors="replace")
            lines = long_lines(text)
            if not lines or 2 * sum(line in unwanted for line in lines) >= len(lines):
                continue
            ids = self.model.encode([text], WINDOWS * LENGTH)[0]
            cuts = range(0, len(ids) - LENGTH + 1, LENGTH)
            found += [Passage(ids=ids[cut : cut + LENGTH], start=1, prompt=len(found)) for cut in cuts]
            if len(found) >= count:
                return found[:count]
        raise SystemExit(f"only {len(found)} windows in the Python files here; ask for {len(found) // BATCH} steps")

    @cached_property
    def blocks(self) -> list[list[int]]:
        """The first window of some held-out files, as many as are asked for."""
        encoded = (self.model.encode([text], BLOCK)[0] for text in self.held)
        return [ids for ids in encoded if len(ids) == BLOCK][: self.count]

    @cached_property
    def original(self) -> Path:
        """The original as it is, in float32."""
        return self.write(self.folder, Way(scheme=self.float_scheme), self.scratch / "original.gguf")

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """The original's logits of the held-out windows in the same engine, on disk: float32 [blocks, BLOCK, vocabulary]."""
        decoder = self.open(self.original)
        shape = (len(self.blocks), BLOCK, decoder.vocabulary)
        kept = np.memmap(self.scratch / "reference.f32", np.float32, "w+", shape=shape)
        for index, ids in enumerate(self.blocks):
            decoder.clear()
            kept[index] = decoder.logits(np.array(ids), slice(None))
        decoder.close()
        return kept

    def open(self, file: Path) -> Generator:
        """A file in its engine."""
        return llamacpp.generator(file, self.options)

    def write(self, student: Path, way: Way, file: Path) -> Path:
        """A student as a GGUF file: with the codes that it was trained with, where those are the scheme's."""
        model = load_model(student)
        tensors = plan(model)
        metadata = describe_model(model, tensors=tensors, name="benchmark")
        if way.scheme == "f32":
            types: Mapping[str, str] = dict.fromkeys((tensor.name for tensor in tensors), "f32")
        else:
            types = scheme_types(metadata, tensors, way.scheme).types
        trained = read_packed(student)
        convert(model, file, Quantization(types=types, trained=trained), {**metadata, **vocabulary(model)})
        return file

    def measure(self, file: Path) -> dict[str, object]:
        """{kl, perplexity, top1, kl_blocks, nll_blocks} of a file beside the original, both in its engine."""
        reference = self.reference
        decoder = self.open(file)
        divergences, losses, same = list[float](), list[float](), list[float]()
        for ids, wanted in zip(self.blocks, reference, strict=True):
            decoder.clear()
            # The reference is the original's own answer: it need not be asked again.
            given = wanted if file == self.original else decoder.logits(np.array(ids), slice(None))
            divergences.append(float(scores.kl(wanted, given).mean()))
            losses.append(float(scores.nll(given[:-1], np.array(ids[1:])).mean()))
            same.append(float((given.argmax(-1) == wanted.argmax(-1)).mean()))
        decoder.close()
        return {
            "kl": float(np.mean(divergences)),
            "perplexity": math.exp(float(np.mean(losses))),
            "top1": float(np.mean(same)),
            "kl_blocks": divergences,
            "nll_blocks": losses,
        }


def options_of(way: Way) -> QadOptions:
    """How a row's student is taught; of one that nothing teaches, nothing hangs on it."""
    table: dict[str, object] = {"epochs": 1, "batch": BATCH}
    if way.teach and way.train:
        table["train"] = way.train
    return read_qad_options(table, "tokens", "benchmark")[0]


def python_files() -> list[Path]:
    """The interpreter's own Python files and those of its packages, in the order of the hashes of their names."""
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    found = {
        str(path.relative_to(folder)): path
        for folder in folders
        for path in folder.rglob("*.py")
        if 2_000 <= path.stat().st_size <= 100_000
    }
    return [found[name] for name in sorted(found, key=digest)]


def long_lines(text: str) -> list[str]:
    """The lines of a text that are its own."""
    return [line.strip() for line in text.splitlines() if len(line.strip()) >= LONG]


def digest(text: str) -> str:
    """An order that has nothing to do with what is in a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def judge(found: Mapping[str, Row], ratios: Sequence[tuple[str, str, float]] = RATIOS) -> list[Goal]:
    """The goals of the rows that are there."""
    goals = compare_rows(found, ratios)
    if {"original", "plain", "qad"} <= found.keys():
        losses = [blocks_of(found[name], "nll") for name in ("original", "plain", "qad")]

        def kept(original: float, plain: float, qad: float) -> float:
            return (math.exp(plain) - math.exp(qad)) / (math.exp(plain) - math.exp(original))

        goals.append(_goal("perplexity won back by qad", kept, losses, RECOVERED, least=True))
    return goals + on_grid(found)


def compare_rows(found: Mapping[str, Row], ratios: Sequence[tuple[str, str, float]]) -> list[Goal]:
    """The goals that a row's KL is so small a share of another's, of the rows that are there."""
    return [
        compare_blocks(f"KL of {name} / {base}", [blocks_of(found[one], "kl") for one in (name, base)], limit)
        for name, base, limit in ratios
        if name in found and base in found
    ]


def on_grid(found: Mapping[str, Row]) -> list[Goal]:
    """The goals that each trained row's file holds what was trained."""
    shares = {name: cast(float, row["exact"]) for name, row in found.items() if row["exact"] is not None}
    return [
        Goal(goal=f"{name}: on its grid", measured=share, interval=None, limit=1.0, met=share == 1.0)
        for name, share in shares.items()
    ]


def blocks_of(row: Row, what: str) -> Doubles:
    """A figure of each held-out window."""
    return np.array(row[f"{what}_blocks"], np.float64)


def compare_blocks(name: str, blocks: Sequence[Doubles], limit: float) -> Goal:
    """The goal that the mean of a figure is so small a share of another's, over the same windows or texts."""
    return _goal(name, lambda ours, theirs: ours / theirs, blocks, limit)


def _goal(
    name: str, statistic: Callable[..., float], blocks: Sequence[Doubles], limit: float, *, least: bool = False
) -> Goal:
    """A goal about means over windows; its interval by resampling them (bootstrap percentiles)."""
    random = np.random.default_rng(0)
    measured = statistic(*(float(block.mean()) for block in blocks))
    drawn = []
    for _ in range(RESAMPLINGS):
        chosen = random.integers(0, len(blocks[0]), len(blocks[0]))
        drawn.append(statistic(*(float(block[chosen].mean()) for block in blocks)))
    ends = [float(end) for end in np.quantile(drawn, (0.025, 0.975))]
    return Goal(
        goal=name,
        measured=measured,
        interval=ends,
        limit=limit,
        met=measured >= limit if least else measured <= limit,
    )


def show(found: Mapping[str, Row], goals: Sequence[Goal]) -> None:
    """The table for people."""
    print("row          bytes        KL        perplexity   same top-1   on its grid   CPU s of training")
    for name, row in found.items():
        exact = "" if row["exact"] is None else f"{row['exact']:.2%}"
        print(
            f"{name:<11} {row['bytes']:>11,} {row['kl']:>9.5f} {row['perplexity']:>11.4f} {row['top1']:>11.2%}"
            f" {exact:>13} {row['cpu_seconds']:>10}"
        )
    print()
    for goal in goals:
        print(goal.told())


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run(Bench, __doc__ or "", STEPS))
