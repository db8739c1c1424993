"""The control run: the same student without its teacher, from the same weights and by the same batches, killed and continued."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from control import HARMED, TEACHERS, Seed, judge, run_seed

from edgekit.distill import courses, read_training
from edgekit.distill.journal import FILE as JOURNAL
from edgekit.distill.options import Ngrams
from edgekit.errors import EdgekitError
from edgekit.evidence import Control
from edgekit.inputs import identity
from edgekit.recipe import read_table_of
from edgekit.workspace import file_sha256
from tests import warm
from tests.architectures.decoders import make_decoder
from tests.conftest import child_environment, make_data
from tests.steps import control, distill

ASKED: dict[str, Any] = {
    "task": "text-classification", "options": {"epochs": 4, "batch": 3, "holdout": 0.2, "patience": 1}, "max_length": 32, "seed": 7,
}  # fmt: skip


@pytest.mark.parametrize("table", [{"layers": 2}, {"ngrams": Ngrams(buckets=2048, width=8)}], ids=["cut", "ngrams"])
def test_it_begins_as_the_student_does_and_sees_the_same_batches(
    table: Mapping[str, Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For exactly as many steps at the same rates, although the held-out rows would have stopped it; it asks no teacher."""
    seen: dict[str, list[Sequence[int]]] = {}
    begun: dict[str, dict[str, torch.Tensor]] = {}
    plain = courses.train

    def train(module: Any, lesson: Any, options: Any, run: Any, *, width: int) -> Any:
        begun[run.folder.name] = {name: weight.clone() for name, weight in module.state_dict().items()}

        def parts(rows: list[int], share: float) -> Any:
            seen.setdefault(run.folder.name, []).append([*rows, int(1000 * share)])
            return lesson.parts(rows, share)

        return plain(module, replace(lesson, parts=parts), options, run, width=width)

    monkeypatch.setattr(courses, "train", train)
    prompts = make_data(tmp_path / "data")
    (tmp_path / "student").mkdir()
    taught = distill(checkpoint, prompts, out=tmp_path / "student", **ASKED, **table)
    for name, epochs in {"whole": 4, "half": 2}.items():
        (tmp_path / name).mkdir()
        facts = control(checkpoint, prompts, epochs=epochs, out=tmp_path / name, **ASKED, **table)
        assert (facts["epochs"], facts["losses"]) == (epochs, {"labels": 1.0})
        assert 1 <= facts["best_epoch"] <= epochs
        common = min(len(seen["student"]), len(seen[name]))
        assert seen[name][:common] == seen["student"][:common]
        assert begun[name].keys() == begun["student"].keys()
        assert all(torch.equal(begun[name][key], begun["student"][key]) for key in begun[name])
    assert len(seen["whole"]) == 2 * len(seen["half"])
    assert taught["learning_rate"] == facts["learning_rate"]
    assert file_sha256(tmp_path / "student" / "model.safetensors") != file_sha256(
        tmp_path / "whole" / "model.safetensors"
    )


def test_a_decoder_learns_the_next_tokens_alone(tmp_path: Path) -> None:
    """As if its teacher were not there: the same bytes as of a student whose only loss is labels, after the same epoch."""
    teacher = make_decoder("llama", tmp_path / "teacher")
    rows = [{"text": f"question {index}", "label": f" answer {index % 3}"} for index in range(24)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    options = {"epochs": 2, "batch": 8, "holdout": 0.0, "losses": {"labels": 1.0, "logits": 1.0}}
    asked: dict[str, Any] = {"task": "text-generation", "max_length": 32, "layers": 1}
    for name in ("control", "alone", "taught"):
        (tmp_path / name).mkdir()
    facts = control(teacher, tmp_path, epochs=2, out=tmp_path / "control", options=options, **asked)
    assert (facts["epochs"], facts["losses"]) == (2, {"labels": 1.0})
    distill(teacher, tmp_path, out=tmp_path / "taught", options=options, **asked)
    distill(teacher, tmp_path, out=tmp_path / "alone", options=options | {"losses": {"labels": 1.0}}, **asked)
    made = {name: file_sha256(tmp_path / name / "model.safetensors") for name in ("control", "alone", "taught")}
    assert made["control"] == made["alone"] != made["taught"]


SCRIPT = """
import json, sys
from pathlib import Path
from edgekit.distill import loop
from tests.steps import control
loop.SNAPSHOT_SECONDS = 0
teacher, prompts, out = map(Path, sys.argv[1:4])
asked = json.loads(sys.argv[4])
control(teacher, prompts, epochs=3, layers=2, out=out, progress=lambda done, *_: print(done, flush=True), **asked)
"""


def test_a_killed_control_is_continued_to_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    prompts = make_data(tmp_path / "data")

    def start(name: str) -> Any:
        (tmp_path / name).mkdir(exist_ok=True)
        command = ["-c", SCRIPT, checkpoint, prompts, tmp_path / name, json.dumps(ASKED)]
        return warm.start(command, tmp_path, child_environment())

    broken = start("broken")
    for line in broken.stdout:
        if int(line) == 3:
            break
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    assert (tmp_path / "broken" / "snapshot.json").is_file()
    again = [int(line) for line in start("broken").communicate()[0].split()]
    assert next(step for step in again if step) > 1
    start("whole").communicate()
    folders = [[path for path in (tmp_path / name).iterdir() if path.name != JOURNAL] for name in ("broken", "whole")]
    left = [{path.name: file_sha256(path) for path in paths} for paths in folders]
    assert left[0] == left[1]
    assert "model.safetensors" in left[0]


def test_a_planted_bad_teacher_is_told(tmp_path: Path) -> None:
    """One seed of `benchmarks/control.py`, whose goals hold where each is told and the right one is not."""
    found = run_seed(tmp_path / "seed", "renamed", 0)
    assert found.harmed
    assert found.found.control > 0.9 > found.found.student
    fine = Seed(teacher="right", seed=0, found=replace(found.found, note=None))
    assert all(judge({"renamed": [found], "right": [fine]}).values())
    assert not any(judge({"renamed": [fine], "right": [found, found]}).values())
    assert TEACHERS[0] == found.teacher
    assert isinstance(found.found, Control)
    assert found.found.note is not None
    assert found.found.note.startswith(HARMED)


def recipe(task: str = "text-classification", **tables: Any) -> Any:
    made = {"task": task, "teacher": {"source": "x"}, "student": {"layers": 2}, "data": {"path": "data"}}
    return read_table_of({**made, **tables}, Path("recipe.toml"))


def test_the_student_follows_from_the_same_with_a_control() -> None:
    with_it, without = (read_training(recipe(distill=table), "r") for table in ({"control": True}, {}))
    assert (with_it.control, without.control) == (True, False)
    assert identity(with_it.distill) == identity(without.distill)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"task": "feature-extraction"}, r"r: distill\.control: without a teacher nothing teaches .* no labels"),
        ({"losses": {"labels": 1.0}}, r"distill\.control: its losses read no teacher: .* its own control"),
        ({"student": None}, r"distill\.control: the recipe makes no \[student\]"),
        ({"qad": {"control": True}}, r"r: qad\.control: .* in \[distill\]"),
        ({"control": "yes"}, r"distill\.control: "),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_where_there_can_be_none(tables: dict[str, Any], said: str) -> None:
    distill_ = {"control": tables.pop("control", True)} | (
        {"losses": tables.pop("losses")} if "losses" in tables else {}
    )
    asked: Callable[..., Any] = recipe
    made = asked(**{"distill": distill_} | {key: value for key, value in tables.items() if key != "student"})
    with pytest.raises(EdgekitError, match=said):
        read_training(replace(made, student=None) if "student" in tables else made, "r")
