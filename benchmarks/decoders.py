"""What does a teacher of 46 M weights add to a student of half its blocks, and what that the student writes itself? Python code.

Goals:
- perplexity on held-out windows, student beside its teacher (`kd`) over the same student without one (`control`), which read the
  same windows in the same order: the upper end of its 95 % interval < 1
- KL(student || teacher) in nats a token on what each student writes behind the first halves of held-out functions: `on-policy`
  over `kd`, from which it begins, and over `off-policy`, and `response` and `answers` over `kd`: each interval's upper end < 1
These go on from `kd` for as many steps, with the same functions and the same first halves. `off-policy` and `on-policy` learn by
reverse KL from what comes behind them, the data's tokens or the student's; `response` and `answers` from what the teacher writes
there, once for each function: `answers` by cross-entropy, which is all that an endpoint's answers allow (sequence-level
distillation, Kim and Rush, arXiv:1606.07947, sampled instead of searched), `response` by the Jensen-Shannon divergence from what
the teacher finds likely at each of these tokens, as a recipe's [answers] can be learned where the teacher is here. Beside them
the forward KL on what the *teacher* writes there, which a student that only says what is safe makes larger.
Intervals are of a bootstrap over windows or functions. What `response` learns by was chosen on 96 functions of the training text
that no row learns from, not on the held-out ones: own words and teacher's over those of `kd` were 0.93 and 0.97 by cross-entropy,
0.91 and 0.94 by forward KL, 0.85 and 0.99 by Jensen-Shannon, 0.84 and 1.05 by reverse KL, which makes the latter worse.

Training text are the Python files of the interpreter and its packages, without those of which half is held-out text (see
benchmarks/qad.py). Rows and students are kept in --cache: what was stopped goes on.

Usage: python benchmarks/decoders.py [--steps 32] [--more 16] [--rows kd,...] [--data ../shared/data] [--cache DIR] [--json]
Exit code 1 where a goal that was measured is missed, 2 where data is missing.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from qad import BATCH, HELD, LENGTH, MODEL, SHARED, TASK, digest, long_lines, python_files, say  # noqa: E402
from qad import Bench as Texts  # noqa: E402
from rows import Row, Rows  # noqa: E402

from edgekit.distill.batches import passage_source, score  # noqa: E402
from edgekit.distill.courses import Course, Job, Teaches, teach  # noqa: E402
from edgekit.distill.on_policy import continue_texts  # noqa: E402
from edgekit.distill.options import DistillOptions, OnPolicy, choose_blocks  # noqa: E402
from edgekit.distill.students import Cut, Whole, load_module  # noqa: E402
from edgekit.distill.tap import Tap  # noqa: E402
from edgekit.model import Model  # noqa: E402
from edgekit.runtimes import machine  # noqa: E402
from edgekit.tasks import TASKS  # noqa: E402
from edgekit.tasks.text_generation import Passage  # noqa: E402
from edgekit.typed_json import as_list  # noqa: E402

AFTER = ("off-policy", "on-policy", "response", "answers")
# What rows are taught by that go on from `kd`.
LOSSES = {"off-policy": "reverse_kl", "on-policy": "reverse_kl", "response": "jensen_shannon", "answers": "labels"}
ROWS = ("control", "kd", *AFTER)
STEPS, MORE, BLOCKS, FUNCTIONS = 32, 16, 16, 104
# Rates of the students that begin from blocks of the teacher, and of those that go on.
RATE, ON = 2e-4, 1e-4
# Tokens of a function, the share of them that is shown, and functions of a batch.
SHORTEST, LONGEST, SHOWN, TOGETHER = 48, 128, 0.5, 8
RESAMPLINGS = 2000
GOALS = (
    ("kd", "control", "nll"),
    ("on-policy", "kd", "own"),
    ("on-policy", "off-policy", "own"),
    ("response", "kd", "own"),
    ("answers", "kd", "own"),
)


def main() -> int:
    """Teach, measure, show, and say by the exit code whether every goal that was measured is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED)
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "decoders")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} windows of {LENGTH} tokens")
    parser.add_argument("--more", type=int, default=MORE, help=f"batches of {TOGETHER} functions after that")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which of {', '.join(ROWS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    names = str(asked.rows).split(",")
    if unknown := sorted(set(names) - set(ROWS)):
        parser.error(f"{unknown[0]}: no such row")
    for needed in (asked.data / MODEL, asked.data / HELD):
        if not needed.exists():
            print(f"{needed}: not here; name the folder with --data", file=sys.stderr)
            return 2
    asked.cache.mkdir(parents=True, exist_ok=True)
    kept = Rows(asked.cache / "rows.jsonl")
    with tempfile.TemporaryDirectory(prefix="edgekit-decoders-") as scratch:
        bench = Bench(asked.data, asked.cache, Path(scratch), asked.steps, asked.more)
        found = {name: kept.take(bench.key(name), partial(bench.row, name)) for name in names}
    goals = [judge(*goal, found) for goal in GOALS if {goal[0], goal[1]} <= found.keys()]
    if asked.json:
        facts = {"machine": machine.describe(), "steps": asked.steps, "more": asked.more}
        print(json.dumps(facts | {"rows": found, "goals": goals}, indent=2))
    else:
        show(found, goals)
    return 0 if all(goal["met"] for goal in goals) else 1


class Bench:
    """The teacher, the texts, and the students."""

    def __init__(self, data: Path, cache: Path, scratch: Path, steps: int, more: int) -> None:
        self.texts = Texts(data, cache, scratch, steps, BLOCKS, None)
        self.model, self.folder, self.cache = self.texts.model, self.texts.folder, cache
        self.steps, self.more = steps, more

    def key(self, name: str) -> str:
        """What a row that is kept must agree with."""
        return f"{self.lessons(name)}/{BLOCKS}/{FUNCTIONS}"

    def lessons(self, name: str) -> str:
        """What a row's student follows from."""
        after = f"/{self.more}x{TOGETHER}x{LONGEST}/{ON:g}/{LOSSES[name]}" if name in AFTER else ""
        return f"{name}/{self.steps}x{BATCH}x{LENGTH}/{RATE:g}{after}"

    def row(self, name: str) -> Row:
        """Teach a row's student, and measure it."""
        begun = time.process_time()
        student = self.taught(name)
        seconds = time.process_time() - begun
        row = {"cpu_seconds": round(seconds, 1), **self.measure(student)}
        say(f"{name}: perplexity {row['perplexity']:.4f}, own {row['own']:.4f}, teacher's {row['teachers']:.4f}")
        return row

    def taught(self, name: str) -> Path:
        """The folder of a row's student, which is kept once it is whole."""
        out = self.cache / self.lessons(name).replace("/", "-")
        if (out / "done").exists():
            return out
        course = self.goes_on(name, out) if name in AFTER else self.begins(name, out)
        out.mkdir(exist_ok=True)
        teach(course)
        (out / "done").touch()
        return out

    def begins(self, name: str, out: Path) -> Course:
        """Half of the teacher's blocks, taught by it or by the windows alone."""
        windows = self.texts.windows
        return Course(
            job=job(name, out),
            student=Cut(folder=self.folder, keep=choose_blocks(self.model.layers, 6, None, "benchmark")),
            source=passage_source(windows, range(len(windows)), []),
            losses={"labels": 1.0} if name == "control" else {"logits": 1.0},
            options=DistillOptions(epochs=1, batch=BATCH, temperature=1.0, learning_rate=RATE),
            begins=self.folder,
            teacher=Teaches(folder=self.folder),
        )

    def goes_on(self, name: str, out: Path) -> Course:
        """The student that its teacher taught, on what comes behind the first halves of functions."""
        begun, functions = self.taught("kd"), self.functions
        if name in ("response", "answers"):
            functions = write(self.teacher, functions, self.model.stops)
        written = OnPolicy(share=1.0, new_tokens=LONGEST) if name == "on-policy" else None
        return Course(
            job=job(name, out),
            student=Whole(folder=begun),
            source=passage_source(functions, range(len(functions)), []),
            losses={LOSSES[name]: 1.0},
            options=DistillOptions(epochs=1, batch=TOGETHER, temperature=1.0, learning_rate=ON, on_policy=written),
            begins=begun,
            teacher=Teaches(folder=self.folder),
        )

    @cached_property
    def functions(self) -> list[Passage]:
        """Functions of the training text, as many as the steps read."""
        unwanted = {line for text in self.texts.held for line in long_lines(text)}

        def texts() -> Iterator[str]:
            for path in python_files():
                text = path.read_text(encoding="utf-8", errors="replace")
                lines = long_lines(text)
                if lines and 2 * sum(line in unwanted for line in lines) < len(lines):
                    yield text

        return find_functions(self.model, texts(), self.more * TOGETHER)

    @cached_property
    def asked(self) -> list[Passage]:
        """Held-out functions."""
        return find_functions(self.model, self.texts.held, FUNCTIONS)

    @cached_property
    def teacher(self) -> Tap:
        """The teacher, as it is asked."""
        return Tap(load_module(TASKS[TASK], self.folder))

    @cached_property
    def written(self) -> list[Passage]:
        """What the teacher writes behind their first halves."""
        return write(self.teacher, self.asked, self.model.stops)

    def measure(self, student: Path) -> dict[str, object]:
        """{perplexity, nll_blocks: of held-out windows; own, own_blocks: KL(student || teacher) on what the student writes behind
        held-out functions; teachers, teachers_blocks: KL(teacher || student) on what the teacher does}."""
        mine, theirs = Tap(load_module(TASKS[TASK], student)), self.teacher
        losses = [surprise(mine, ids) for ids in self.texts.blocks]
        own = [divergence(mine, theirs, text) for text in write(mine, self.asked, self.model.stops)]
        back = [divergence(theirs, mine, text) for text in self.written]
        return {
            "perplexity": math.exp(float(np.mean(losses))),
            "own": float(np.mean(own)),
            "teachers": float(np.mean(back)),
            "nll_blocks": losses,
            "own_blocks": own,
            "teachers_blocks": back,
        }


def job(name: str, out: Path) -> Job:
    """What a course of a row is told."""

    def tell(done: int, total: int, note: str) -> None:
        if done % 8 == 0:
            say(f"{name}: {done}/{total} {note}")

    return Job(task=TASKS[TASK], max_length=LENGTH, out=out, progress=tell)


def find_functions(model: Model, texts: Iterable[str], count: int) -> list[Passage]:
    """The first functions of some Python files whose lengths suit, one of each file, their first halves as prompts."""
    found, tokenizer = list[Passage](), model.tokenizer(LONGEST + 1)
    for text in texts:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        parts = (ast.get_source_segment(text, node) for node in tree.body if isinstance(node, ast.FunctionDef))
        encoded = (list(tokenizer.encode(part).ids) for part in sorted(filter(None, parts), key=digest))
        if ids := next((ids for ids in encoded if SHORTEST <= len(ids) <= LONGEST), None):
            found.append(Passage(ids=ids, start=round(SHOWN * len(ids)), prompt=len(found)))
        if len(found) == count:
            return found
    raise SystemExit(f"only {len(found)} functions in the Python files here, {count} are needed")


def write(tap: Tap, functions: Sequence[Passage], stops: Sequence[int]) -> list[Passage]:
    """What a model writes behind the first halves, as many tokens as the functions have; the same draws for all models."""
    drawn, found = (1.0, torch.Generator().manual_seed(1)), list[Passage]()
    for begin in range(0, len(functions), TOGETHER):
        some = functions[begin : begin + TOGETHER]
        asked = [one.asked for one in some]
        said = continue_texts(tap, asked, [len(one.ids) - one.start for one in some], stops, drawn)
        found += [Passage(ids=ids + more, start=len(ids), prompt=0) for ids, more in zip(asked, said, strict=True)]
    return found


@torch.no_grad()
def divergence(speaker: Tap, other: Tap, text: Passage) -> float:
    """KL(speaker || other) in nats, mean over the tokens that the speaker wrote."""
    batch = score([text])
    assert batch.scored is not None
    p, q = (tap.logits(tap(batch).output[batch.scored]).log_softmax(-1) for tap in (speaker, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@torch.no_grad()
def surprise(tap: Tap, ids: list[int]) -> float:
    """Cross-entropy in nats, mean over a window's tokens but the first."""
    batch = score([Passage(ids=ids, start=1, prompt=0)])
    assert batch.scored is not None
    return float(torch.nn.functional.cross_entropy(tap.logits(tap(batch).output[batch.scored]), batch.targets))


def judge(name: str, base: str, what: str, found: Mapping[str, Row]) -> dict[str, object]:
    """A goal: a row's figure over another's, below 1 with 95 % of resampled windows or functions."""

    def ratio(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
        if what == "nll":
            return float(np.exp(ours.mean() - theirs.mean()))
        return float(ours.mean() / theirs.mean())

    ours, theirs = (np.array(found[row][f"{what}_blocks"], np.float64) for row in (name, base))
    random = np.random.default_rng(0)
    drawn = (random.integers(0, len(ours), len(ours)) for _ in range(RESAMPLINGS))
    low, high = np.quantile([ratio(ours[chosen], theirs[chosen]) for chosen in drawn], (0.025, 0.975))
    figure = "perplexity" if what == "nll" else "KL on its own words"
    return {
        "goal": f"{figure}, {name} over {base}",
        "measured": ratio(ours, theirs),
        "interval": [float(low), float(high)],
        "below": 1.0,
        "met": bool(high < 1.0),
    }


def show(found: Mapping[str, Row], goals: Sequence[Mapping[str, object]]) -> None:
    """The table for people."""
    print(f"{'row':<12}{'perplexity':>12}{'KL, own words':>16}{'KL, teachers':>15}{'CPU s of training':>20}")
    for name, row in found.items():
        print(
            f"{name:<12}{row['perplexity']:>12.4f}{row['own']:>16.4f}{row['teachers']:>15.4f}{row['cpu_seconds']:>20}"
        )
    print()
    for goal in goals:
        low, high = as_list(goal["interval"])
        print(
            f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['measured']:.3f} ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    sys.exit(main())
