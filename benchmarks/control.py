"""Does the control run tell a teacher that harms, and only such a one?

Of each seed other texts, other weights and other batches: a teacher is fine-tuned, a student is cut from it and taught, and the
same student is taught without it (`[distill] control`), all by edgekit's own verbs; both answer 300 texts that neither has seen.
Teachers: `right`, fine-tuned on the labels; `renamed`, where every label stands for the next one; `noise`, where each text has a
label that was drawn for it.

Goals, of the report's first lines:
- "the teacher made it worse" of `renamed` and of `noise` in 20 of 20 seeds each;
- never of `right` in more than one of 20 (each bound is one-sided at 5 %).

Usage: python benchmarks/control.py [--seeds 20] [--kinds renamed,noise,right] [--json]
Exit code 1 where a goal is missed. About 10 CPU seconds a seed and kind of teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from tiny_project import LABELS, make_project  # noqa: E402

from edgekit.distill import ControlInputs, DistillInputs, FinetuneInputs, control, distill, finetune  # noqa: E402
from edgekit.distill.finetuning import FinetuneOptions  # noqa: E402
from edgekit.distill.machine import conditions  # noqa: E402
from edgekit.distill.options import read_distill_options  # noqa: E402
from edgekit.evidence import Control  # noqa: E402
from edgekit.inputs import Content  # noqa: E402
from edgekit.prompts import Prompt, PromptSet  # noqa: E402
from edgekit.tasks import TASKS, outputs  # noqa: E402
from edgekit.verify.control import judge_right  # noqa: E402

TASK, MAX_LENGTH = "text-classification", 24
TEACHERS = ("renamed", "noise", "right")
TRAINED, JUDGED = 400, 375  # a fifth of them has no class and is left out
HARMED = "the teacher made it worse"


@dataclass(frozen=True, kw_only=True)
class Seed:
    """What a control run of a seed with a teacher of a kind told."""

    teacher: str
    seed: int
    found: Control

    @property
    def harmed(self) -> bool:
        """Whether the report says that the teacher made it worse."""
        return (self.found.note or "").startswith(HARMED)


def run_seed(folder: Path, teacher: str, seed: int) -> Seed:
    """Train in an empty folder, answer, and judge as the report does."""
    make_project(folder, train=TRAINED, calibrate=1, verify=JUDGED, seed=seed)
    rows = {split: read(folder / "data", split) for split in ("train", "verify")}
    said = relabel(rows["train"], teacher, random.Random(seed))
    own, taught = write(folder / "own", rows["train"]), write(folder / "taught", said)
    options, losses = read_distill_options({"epochs": 12, "learning_rate": 2e-3}, "logits", "distill")
    # Nothing held out: a teacher of noise would stop before it has learned any.
    tuning = FinetuneOptions(epochs=40 if teacher == "noise" else 15, learning_rate=2e-3, holdout=0.0)
    models = {name: folder / name for name in ("teacher", "student", "control")}
    for place in models.values():
        place.mkdir()
    finetune(
        FinetuneInputs(
            base=Content(path=folder / "base", digest=""),
            prompts=Content(path=taught, digest=""),
            task=TASK,
            options=tuning,
            out_of_scope=None,
            max_length=MAX_LENGTH,
            seed=seed,
            machine=conditions(tuning),
        ),
        models["teacher"],
    )
    inputs = DistillInputs(
        teacher=Content(path=models["teacher"], digest=""),
        prompts=Content(path=own, digest=""),
        kept=[0, 2],
        options=options,
        losses=losses,
        task=TASK,
        out_of_scope=None,
        max_length=MAX_LENGTH,
        seed=seed,
        machine=conditions(options),
    )
    facts = distill(inputs, models["student"])
    alone = ControlInputs(**{**vars(inputs), "losses": {"labels": 1.0}}, epochs=int(str(facts["epochs"])))
    assert control(alone, models["control"])["steps"] == facts["steps"]
    mine, beside = (right(models[name], rows["verify"]) for name in ("student", "control"))
    return Seed(teacher=teacher, seed=seed, found=judge_right(mine, beside, [None] * len(mine)))


def read(folder: Path, split: str) -> list[Prompt]:
    """A split's texts that have a class."""
    return [row for row in PromptSet(folder=folder).split(split) if row.label in LABELS]


def write(folder: Path, rows: Sequence[Prompt]) -> Path:
    """Rows as the train split of a folder."""
    folder.mkdir()
    lines = [f"{json.dumps({'text': row.text, 'label': row.label})}\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def relabel(rows: Sequence[Prompt], teacher: str, rng: random.Random) -> list[Prompt]:
    """The rows with the labels that a kind of teacher is fine-tuned on."""
    if teacher == "right":
        return list(rows)
    if teacher == "noise":
        return [Prompt(text=row.text, label=rng.choice(LABELS)) for row in rows]
    following = dict(zip(LABELS, (*LABELS[1:], LABELS[0]), strict=True))
    return [Prompt(text=row.text, label=following[str(row.label)]) for row in rows]


def right(folder: Path, rows: Sequence[Prompt]) -> list[bool]:
    """Of each text, whether a model gives its label."""
    task = TASKS[TASK]
    model = task.open_model(folder)
    answers = outputs(task.load(folder), task.encode(model, rows, MAX_LENGTH)).argmax(axis=1)
    return [model.labels[answer] == row.label for answer, row in zip(answers.tolist(), rows, strict=True)]


def judge(found: Mapping[str, Sequence[Seed]]) -> dict[str, bool]:
    """Whether each goal is met, in words with what was counted."""
    goals = {}
    for teacher, seeds in found.items():
        told, count = sum(one.harmed for one in seeds), len(seeds)
        most = max(1, round(0.05 * count))
        goal = f"at most {most}" if teacher == "right" else "all"
        goals[f"{teacher}: told as harmful in {told} of {count} seeds (goal: {goal})"] = (
            told <= most if teacher == "right" else told == count
        )
    return goals


def main() -> int:
    """Run every seed, print a line for each and the goals, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(TEACHERS), help="of teachers, with commas between them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    if unknown := set(kinds) - set(TEACHERS):
        parser.error(f"--kinds: {', '.join(sorted(unknown))}: choose of {', '.join(TEACHERS)}")
    found: dict[str, list[Seed]] = {kind: [] for kind in kinds}
    if not arguments.json:
        print("teacher   seed  student  control  gain, points  interval          told")
    for seed in range(arguments.seeds):
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                one = run_seed(Path(folder) / "seed", kind, seed)
            found[kind].append(one)
            if not arguments.json:
                least, most = (100 * (end or 0.0) for end in one.found.interval)
                print(
                    f"{kind:<9} {seed:>4}  {one.found.student:>7.1%}  {one.found.control:>7.1%}"
                    f"  {100 * one.found.difference:>+12.1f}  [{least:+6.1f}, {most:+6.1f}]  {one.found.note or ''}",
                    flush=True,
                )
    goals = judge(found)
    if arguments.json:
        rows = [asdict(one.found) | {"teacher": kind, "seed": one.seed} for kind in kinds for one in found[kind]]
        print(json.dumps({"seeds": rows, "goals": goals}, indent=2))
    else:
        for goal, met in goals.items():
            print(f"{'met   ' if met else 'MISSED'} {goal}")
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
