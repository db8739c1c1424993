"""Does a train split that is larger than memory train in little of it? One decoder, files of two sizes, each in its own process.

Goals, of the largest private memory (RssAnon: what cannot be read from a file again) from the first look at the file on:
- from reading the file to the prompts' folder: a file ten times as large takes <= 5 % of the further bytes more
- from the prompts' folder through encoding, shuffling and some steps beside a live teacher: <= 5 % of the further bytes more
- with everything held in memory, as small files are: more than the further bytes, so that the two above tell something
Texts are random words, some 600 bytes each, one passage of about 200 tokens: all steps are alike, and the base has seen some. A
file beyond 16 MiB is one that is not held.

Usage: python benchmarks/streaming.py [--small 32] [--large 320] [--cache DIR] [--json]
Some 15 minutes of one core. Exit code 1 where a goal is missed. Rows are kept in --cache: what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from rows import Row, Rows  # noqa: E402

SHARE, STEPS = 0.05, 6
_DRAW = random.Random(1)
WORDS = ["".join(_DRAW.choices("abcdefghijklmnoprstuvwz", k=_DRAW.randint(2, 9))) for _ in range(4000)]
WORDS_EACH = 90
PHASES = ("gather", "train")
RECIPE = """\
task = "text-generation"

[teacher]
source = "teacher"

[student]
layers = 1

[data]
path = "data"
max_length = 256
"""


class _Enough(Exception):
    """The steps that were to be taken are."""


def main() -> int:
    """Measure both sizes, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=32, help="MB of the smaller file")
    parser.add_argument("--large", type=int, default=320, help="MB of the larger file")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "streaming")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "MB", "HELD"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(Path(asked.child[0]), int(asked.child[1]), int(asked.child[2]))))
        return 0
    asked.cache.mkdir(parents=True, exist_ok=True)
    rows = Rows(asked.cache / "rows.jsonl")
    runs = {
        "small": (asked.small, 0),
        "large": (asked.large, 0),
        "half held": (asked.small // 2, 1),
        "held": (asked.small, 1),
    }
    found = {name: rows.take(f"{name} {run}", partial(in_child, *run)) for name, run in runs.items()}
    goals = judge(found)
    if asked.json:
        print(json.dumps({"rows": found, "goals": goals}))
    else:
        show(found, goals)
    return 0 if all(goal["met"] for goal in goals) else 1


def in_child(megabytes: int, held: int) -> Row:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="edgekit-streaming-") as folder:
        command = [sys.executable, __file__, "--child", folder, str(megabytes), str(held)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    row: Row = json.loads(answer.stdout.splitlines()[-1])
    return row


def measure(folder: Path, megabytes: int, held: int) -> Row:
    """A file of so many MB becomes a folder of prompts, and some steps are learned from it: peaks above the base, in bytes."""
    from edgekit import stored
    from edgekit.prompts import SPLITS, gather
    from edgekit.recipe import load_recipe

    if held:
        stored.HELD = 1 << 60
    rows = write_data(folder / "data", megabytes << 20)
    make_teacher(folder / "teacher")
    (folder / "recipe.toml").write_text(RECIPE)
    row: dict[str, object] = {"bytes": (folder / "data" / "train.jsonl").stat().st_size, "rows": rows}
    train(folder, folder / "warm", few=True)
    with watch(row, "gather"):
        (folder / "prompts").mkdir()
        gather(load_recipe(folder / "recipe.toml"), SPLITS, folder / "prompts")
    shutil.rmtree(folder / "data")
    with watch(row, "train"):
        train(folder, folder / "student")
    return row


def write_data(folder: Path, size: int) -> int:
    """Splits of random words, train's of so many bytes; its rows."""
    folder.mkdir()
    draw, rows, written = random.Random(0), 0, 0
    for name, lines in (("calibrate", 16), ("verify", 256)):
        texts = (" ".join(draw.choices(WORDS, k=WORDS_EACH)) for _ in range(lines))
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    with (folder / "train.jsonl").open("w") as file:
        while written < size:
            written += file.write(f"{json.dumps({'text': ' '.join(draw.choices(WORDS, k=WORDS_EACH))})}\n")
            rows += 1
    return rows


def make_teacher(folder: Path) -> None:
    """A decoder of two small blocks, which nobody taught, and its tokenizer."""
    import torch

    from edgekit.distill.created import make_decoder, save_tokenizer, train_tokenizer
    from edgekit.distill.options import CreateOptions

    texts = [" ".join(WORDS)]
    options = CreateOptions(hidden=64, layers=2, heads=4, intermediate=128, vocabulary=2048, context=256)
    tokenizer = train_tokenizer(texts, options.vocabulary)
    torch.manual_seed(0)
    make_decoder(options, tokenizer.get_vocab_size()).save_pretrained(folder)
    save_tokenizer(tokenizer, options.context, folder)


def train(folder: Path, out: Path, *, few: bool = False) -> None:
    """Some steps of a student; few: on a small split, so that all code is loaded and the memory of steps is taken."""
    from edgekit.distill import DistillInputs, distill
    from edgekit.distill.machine import conditions
    from edgekit.distill.options import read_distill_options
    from edgekit.inputs import Content

    prompts = folder / "prompts"
    if few:
        prompts = folder / "few"
        prompts.mkdir()
        shutil.copy(folder / "data" / "verify.jsonl", prompts / "train.jsonl")
    options, losses = read_distill_options({"epochs": 1, "device": "cpu", "precision": "fp32"}, "tokens", "distill")
    out.mkdir()

    def tell(done: int, _total: int, note: str = "") -> None:
        if done >= STEPS and note.startswith("loss"):
            raise _Enough

    try:
        distill(
            DistillInputs(
                teacher=Content(path=folder / "teacher", digest=""),
                prompts=Content(path=prompts, digest=""),
                task="text-generation",
                kept=[0],
                options=options,
                losses=losses,
                out_of_scope=None,
                max_length=256,
                seed=0,
                machine=conditions(options),
            ),
            out,
            tell,
        )
    except _Enough:
        return


@contextmanager
def watch(row: dict[str, object], phase: str) -> Iterator[None]:
    """The most private memory of this process while something runs, above what it had before, and its seconds."""
    base, most, over, begun = private(), 0, threading.Event(), time.monotonic()

    def look() -> None:
        nonlocal most
        while not over.wait(0.01):
            most = max(most, private())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        row[phase] = max(most, private()) - base
        row[f"{phase}_s"] = round(time.monotonic() - begun, 1)


def private() -> int:
    """This process's private memory, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def judge(found: dict[str, Row]) -> list[dict[str, object]]:
    """Every goal, what was measured for it, and whether it is met."""
    goals: list[dict[str, object]] = []
    for more, less, held in (("large", "small", False), ("held", "half held", True)):
        further = float(str(found[more]["bytes"])) - float(str(found[less]["bytes"]))
        for phase in PHASES:
            share = (float(str(found[more][phase])) - float(str(found[less][phase]))) / further
            goals.append(
                {
                    "goal": f"{phase}: {'> 1' if held else f'<= {SHARE:.0%}'} of the further bytes{', all held' if held else ''}",
                    "share": round(share, 4),
                    "met": share > 1 if held else share <= SHARE,
                }
            )
    return goals


def show(found: dict[str, Row], goals: list[dict[str, object]]) -> None:
    """A line for each run and each goal."""
    print(f"{'run':10} {'file MB':>8} {'rows':>8} {'gather MB':>10} {'s':>7} {'train MB':>9} {'s':>7}")
    for name, row in found.items():
        size, gather, train = (float(str(row[key])) / (1 << 20) for key in ("bytes", *PHASES))
        print(
            f"{name:10} {size:8.1f} {row['rows']:>8} {gather:10.1f} {row['gather_s']:>7} {train:9.1f} {row['train_s']:>7}"
        )
    for goal in goals:
        print(f"{'met' if goal['met'] else 'MISSED'}: {goal['goal']}: {goal['share']:.2%}")


if __name__ == "__main__":
    sys.exit(main())
