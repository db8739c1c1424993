"""What does quantization-aware distillation win back on an encoder? The BANKING77 teacher, read by onnxruntime.

Goals, over the 3,080 test texts, with KL(float teacher || artifact) in nats a text:
- w4: trained on its grid <= 0.5 of w4 by nearest codes (`feedback = false`)
- w4-feedback: the plain export, rounded with feedback (GPTQ) on the calibrate texts, <= 0.5 of that
- int8-dynamic: trained on its grid <= 0.7 of plain int8-dynamic
- int8-static: trained on its grid <= 0.7 of plain int8-static
- every artifact that was trained holds the trained weights, 100 % of them, as onnxruntime reads it
w4 trains scales and weights each for itself, int8 the weights, whose scales keep sums of two codes in range, and int8-static the
ranges of inputs too. The texts that teach and calibrate are train rows; labels teach nothing.

Rows and products are kept in --cache: what was stopped goes on.

Usage: python benchmarks/qad_encoder.py [--texts 9203] [--rows int8,int8-qad,...] [--data ../shared/data] [--cache DIR] [--json]
Exit code 1 where a goal that was measured is missed, 2 where data is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from banking77 import CLASSIFY, MAX_LENGTH, SHARED, Bench, asked_by_tokens, machine, missing  # noqa: E402
from qad import Goal, Way, compare_rows, on_grid  # noqa: E402
from rows import Row, Rows  # noqa: E402

from edgekit.distill.machine import conditions  # noqa: E402
from edgekit.distill.options import read_qad_options  # noqa: E402
from edgekit.formats import library_versions, parse_options  # noqa: E402
from edgekit.inputs import Content, identity  # noqa: E402
from edgekit.inspect.on_grid import compare  # noqa: E402
from edgekit.qad import QadInputs, qad  # noqa: E402
from edgekit.runtimes import onnxruntime, scores  # noqa: E402
from edgekit.workspace import file_sha256  # noqa: E402

ROWS = {
    "int8": Way(scheme="int8-dynamic"),
    "int8-qad": Way(scheme="int8-dynamic", train="weights"),
    "static": Way(scheme="int8-static"),
    "static-qad": Way(scheme="int8-static", train="weights"),
    "w4": Way(scheme="w4", options={"feedback": False}),
    "w4-feedback": Way(scheme="w4"),
    "w4-scales": Way(scheme="w4", train="scales"),
    "w4-qad": Way(scheme="w4", train="both"),
}
# A goal: a row's KL over another's, at most.
RATIOS = (("w4-qad", "w4", 0.5), ("w4-feedback", "w4", 0.5), ("int8-qad", "int8", 0.7), ("static-qad", "static", 0.7))


def main() -> int:
    """Train, measure, show, and say by the exit code whether every goal that was measured is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="a folder with banking77 and banking77-teacher")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "edgekit" / "qad-encoder", help="where products are kept")
    parser.add_argument("--texts", type=int, default=9203, help="train texts that teach, once")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which of {', '.join(ROWS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    names = str(asked.rows).split(",")
    if unknown := sorted(set(names) - ROWS.keys()):
        parser.error(f"{unknown[0]}: no such row")
    if (needed := missing(asked.data)) is not None:
        print(f"{needed}: not here; name the folder with --data", file=sys.stderr)
        return 2
    bench = Bench(asked.data, asked.cache)
    kept = Rows(asked.cache / "rows.jsonl")
    found = {name: kept.take(f"{name}/{asked.texts}", partial(measure, bench, name, asked.texts)) for name in names}
    goals = judge(found)
    if asked.json:
        told = {"machine": machine(), "texts": asked.texts, "rows": found, "goals": [asdict(goal) for goal in goals]}
        print(json.dumps(told, indent=2))
    else:
        show(found, goals)
    return 0 if all(goal.met for goal in goals) else 1


def measure(bench: Bench, name: str, texts: int) -> Row:
    """A row: its artifact beside the float teacher, on every test text."""
    way, begun = ROWS[name], time.process_time()
    bench.say(name)
    student = bench.teacher if way.train is None else taught(bench, way.scheme, way.train, texts)
    spent = time.process_time() - begun
    folder, facts = bench.export(student, {"scheme": way.scheme, **way.options})
    file = folder / str(facts["file"])
    session = onnxruntime.load(file, onnxruntime.joined({"threads": 1}, facts["runtime_options"]))
    ask = asked_by_tokens(session)
    answers = np.stack([ask(ids) for ids in bench.test_ids])
    divergences = scores.kl(bench.float_outputs, answers)
    return {
        "bytes": facts["bytes"],
        "cpu_seconds": round(spent, 1),
        "exact": compare(file, student)["equal"] if way.train else None,
        "kl": float(divergences.mean()),
        "same_label": float((answers.argmax(-1) == bench.float_outputs.argmax(-1)).mean()),
        "accuracy": bench.accuracy(answers),
        "kl_blocks": [round(float(value), 7) for value in divergences],
    }


def taught(bench: Bench, scheme: str, train: str, texts: int) -> Path:
    """The teacher's own weights, taught by its answers on a scheme's grid."""
    split = bench.cache / f"data-{texts}"
    split.mkdir(exist_ok=True)
    lines = (bench.prompts / "train.jsonl").read_text(encoding="utf-8").splitlines()[:texts]
    (split / "train.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    options, losses = read_qad_options({"epochs": 1, "train": train}, "logits", "benchmark")
    format_, export = parse_options({"scheme": scheme}, "logits", "benchmark")
    inputs = QadInputs(
        teacher=bench.content(bench.teacher),
        student=bench.content(bench.teacher),
        prompts=Content(path=split, digest=file_sha256(split / "train.jsonl")),
        task=CLASSIFY,
        format=format_.NAME,
        export=export,
        options=options,
        losses=losses,
        out_of_scope=None,
        max_length=MAX_LENGTH,
        seed=0,
        machine=conditions(options),
        libraries=library_versions(format_),
    )
    return bench.workspace.once("qad", identity(inputs), lambda out: qad(inputs, out)).folder


def judge(found: Mapping[str, Row]) -> list[Goal]:
    """The goals of the rows that are there."""
    return compare_rows(found, RATIOS) + on_grid(found)


def show(found: Mapping[str, Row], goals: Sequence[Goal]) -> None:
    """The table for people."""
    print("row          bytes          KL   same label   accuracy   on its grid   CPU s of training")
    for name, row in found.items():
        exact = "" if row["exact"] is None else f"{row['exact']:.2%}"
        print(
            f"{name:<10} {row['bytes']:>11,} {row['kl']:>10.6f} {row['same_label']:>10.2%} {row['accuracy']:>11.2%}"
            f" {exact:>12} {row['cpu_seconds']:>10}"
        )
    print()
    for goal in goals:
        print(goal.told())


if __name__ == "__main__":
    sys.exit(main())
