"""How many rows go through at once where memory is short: kept, done again, and planned on a CPU before the first step."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.distill import DistillInputs, loop
from edgekit.distill import distill as teach_student
from edgekit.distill.footprint import MARGIN, measure
from edgekit.distill.ranks import Ranks
from edgekit.distill.room import ROWS_AT_ONCE, Chosen, Room, is_full
from edgekit.distill.tap import Tap
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.progress import Progress, silent
from edgekit.workspace import file_sha256
from tests.conftest import LABELS, ROOT, child_environment, make_checkpoint, make_data
from tests.steps import distill_inputs

# Twelve train rows in batches of five: three steps an epoch.
OPTIONS: dict[str, Any] = {"epochs": 3, "batch": 5, "holdout": 0.0, "precision": "fp32", "device": "cpu"}
Student = Callable[..., DistillInputs]
# More than any machine has: torch then says what it says where memory is full.
ABSURD = 1 << 60


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """The inputs of a student with dropout, and what memory made its training do before."""
    folder = tmp_path_factory.mktemp("student")
    teacher, data = make_checkpoint(folder / "teacher", labels=LABELS), make_data(folder / "data")

    def inputs(plan: Mapping[str, list[int]] | None = None, **options: Any) -> DistillInputs:
        asked: dict[str, Any] = {"task": "text-classification", "layers": 1, "max_length": 32}
        made = distill_inputs(teacher, data, options=OPTIONS | options, **asked)
        return made if plan is None else replace(made, rows_at_once={"training": plan})

    return inputs


def teach(inputs: DistillInputs, out: Path, progress: Progress = silent) -> tuple[str, Any]:
    """What the weights are, and what the step says of its rows; the folder holds what it always does."""
    out.mkdir(exist_ok=True)
    facts = teach_student(inputs, out, progress)
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "training.jsonl"}
    plans: Any = facts.get(ROWS_AT_ONCE)
    return file_sha256(out / "model.safetensors"), plans and plans["training"]


def shorten(patch: pytest.MonkeyPatch, most: int, begin: int) -> None:
    """Have memory be full for more rows than `most` in the student's forward pass, from so many passes of it on."""
    call, passes = Tap.__call__, [0]

    def short(self: Tap, batch: Any) -> Any:
        signal = call(self, batch)
        if torch.is_grad_enabled() and self.module.training:
            passes[0] += 1
            if passes[0] > begin and len(batch.rows) > most:
                torch.empty(ABSURD, dtype=torch.uint8)
        return signal

    patch.setattr(Tap, "__call__", short)


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that does not say how much memory is free."""
    monkeypatch.setattr(loop, "free_memory", lambda: None)


@pytest.mark.usefixtures("unplanned")
def test_what_a_full_memory_made_a_training_do_is_done_again(
    student: Student, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the step on in which it was full, with the same random numbers: given the plan, a machine of more memory makes the
    same bytes, also where the training is stopped and goes on. Without a shortage there is no plan, and other bytes."""
    whole, plan = teach(student(), tmp_path / "whole")
    assert plan is None
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, most=2, begin=4)
        short, plan = teach(student(), tmp_path / "short")
    assert plan == {"4": [2]}
    assert "the memory of cpu is full; from now on 2 rows go through it at once" in caplog.text
    assert short != whole
    assert teach(student(plan), tmp_path / "again") == (short, plan)
    assert identity(student(plan)) == identity(student())

    class Stopped(BaseException):
        pass

    def stop(done: int, _total: int, note: str) -> None:
        if done == 6 and note.startswith("loss"):
            raise Stopped

    for seconds in (0.0, 1e9):
        # With snapshots, and from the beginning: the folder knows what happened in the run before.
        out = tmp_path / f"stopped-{seconds}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "SNAPSHOT_SECONDS", seconds)
            shorten(patch, most=2, begin=4)
            with pytest.raises(Stopped):
                teach(student(), out, stop)
        assert teach(student(), out) == (short, plan)


@pytest.mark.usefixtures("unplanned")
def test_a_full_memory_that_nothing_helps_is_told(student: Student, tmp_path: Path) -> None:
    for options, told in (
        ({}, "the memory of cpu is full, and no fewer rows can go through it at once; give a smaller batch"),
        (
            {"losses": {"contrastive": 1.0}},
            "full, and the loss contrastive compares all rows of a batch with each other",
        ),
    ):
        with pytest.MonkeyPatch.context() as patch:
            shorten(patch, most=0, begin=0)
            with pytest.raises(EdgekitError, match=told):
                teach(student(**options), tmp_path / "none")


def test_which_errors_say_that_memory_is_full() -> None:
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(ABSURD, dtype=torch.uint8)
    with pytest.raises(MemoryError) as python:
        bytearray(ABSURD)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2, 3) @ torch.ones(2, 3)
    full = [cpu.value, python.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]
    assert [is_full(one) for one in (*full, other.value)] == [True, True, True, False]


LIMITED = """
import json, resource, sys
from pathlib import Path
from edgekit.distill.footprint import Footprint
from tests.steps import distill
fit = Footprint.fit

def limit(self, room, rows, free, *, tell):
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    most = held + int(self.row * rows * 0.6)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    return fit(self, room, rows, free, tell=tell)

Footprint.fit = limit
teacher, data, out = map(Path, sys.argv[1:])
options = {"epochs": 1, "batch": 256, "holdout": 0.0, "precision": "fp32", "losses": {"labels": 1.0}}
facts = distill(teacher, data, task="text-classification", layers=2, options=options, max_length=64, out=out)
print(json.dumps(facts["rows_at_once"]), facts["steps"])
"""


def test_a_process_that_gets_no_more_memory_goes_on_with_fewer_rows(tmp_path: Path) -> None:
    """The real allocator under setrlimit(2): its limit lets less through than a batch needs."""
    make_checkpoint(tmp_path / "teacher", labels=LABELS)
    rows = [{"text": "jazz " * 60 + str(place), "label": LABELS[place % len(LABELS)]} for place in range(256)]
    for name in ("data", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Else glibc keeps the pieces of what was freed, which count and serve nothing large (mallopt(3)).
    environment = child_environment() | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", LIMITED, *(tmp_path / name for name in ("teacher", "data", "out"))]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout
    plan, steps = json.loads(told.rsplit(" ", 1)[0]), int(told.split()[-1])
    assert steps == 1
    assert plan in ({"training": {"0": [size]}} for size in (128, 64, 32))


def test_a_cpu_without_room_for_a_batch_takes_parts(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As many rows as fit, which is told in one line; the bytes are those of that micro_batch. With room for all, and where the
    system does not say, nothing changes, the random numbers included."""
    monkeypatch.setattr(loop, "free_memory", lambda: None)
    whole, _ = teach(student(), tmp_path / "whole")
    by_two, plan = teach(student(micro_batch=2), tmp_path / "two")
    assert plan is None
    monkeypatch.setattr(loop, "free_memory", lambda: 1 << 50)
    assert teach(student(), tmp_path / "room") == (whole, None)
    assert caplog.text == ""
    found = list[Any]()

    def note(*given: Any, **more: Any) -> Any:
        found.append(measure(*given, **more))
        return found[-1]

    monkeypatch.setattr(loop, "measure", note)
    monkeypatch.setattr(loop, "free_memory", lambda: 1000)
    teach(student(), tmp_path / "none")
    assert "1 may still be too many: free some" in caplog.text
    caplog.clear()
    monkeypatch.setattr(loop, "free_memory", lambda: found[0].of(3))
    assert teach(student(), tmp_path / "little") == (by_two, {"0": [2]})
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "5 rows at once take about" in caplog.text
    assert "2 go through at once" in caplog.text
    # Two that a lock file says are two with all the room of the world, and fewer where there is less.
    monkeypatch.setattr(loop, "free_memory", lambda: 1 << 50)
    assert teach(student({"0": [2]}), tmp_path / "locked") == (by_two, {"0": [2]})
    monkeypatch.setattr(loop, "free_memory", lambda: found[0].of(1))
    assert teach(student({"0": [2]}), tmp_path / "less")[1] == {"0": [1]}


def test_a_footprint_is_what_tensors_take() -> None:
    """Of a layer: its gradient, two moments, the best weights; of rows what their forward pass holds."""
    layer, asked = torch.nn.Linear(1000, 500), list[int]()

    def sample(rows: int) -> torch.Tensor:
        asked.append(rows)
        fixed = torch.zeros(2000)
        hidden = layer(torch.zeros(rows, 1000))
        return hidden.relu().sum() + fixed.sum()

    weights = 4 * (1000 * 500 + 500)
    random = torch.get_rng_state()
    found = measure(layer, sample, 8, begun=False, judged=True)
    assert measure(layer, sample, 3, begun=False, judged=True) == found
    # The rows, what the layer makes of them and what is left of that; and two sums.
    assert found.row == 4 * (1000 + 500 + 500)
    assert found.fixed == pytest.approx(4 * weights + 4 * 2000, abs=64)
    assert measure(layer, sample, 8, begun=False, judged=False).fixed == pytest.approx(3 * weights + 4 * 2000, abs=64)
    assert measure(layer, sample, 8, begun=True, judged=True).fixed == pytest.approx(weights + 4 * 2000, abs=64)
    asked.clear()
    measure(layer, sample, 3, begun=False, judged=False)
    assert asked == [1, 2], "never more rows than are to go through"
    assert found.of(10) == MARGIN * (found.fixed + 10 * found.row)
    assert torch.equal(torch.get_rng_state(), random)
    assert layer.weight.grad is None


def test_a_plan_counts_from_its_steps_and_for_each_process() -> None:
    room = Room(8)
    room.plan = {"3": [4, 2], "10": [1, 0]}
    for step, ranks, most in (
        (0, Ranks(), 8),
        (3, Ranks(), 2),
        (9, Ranks(index=0, count=2), 4),
        (9, Ranks(index=1, count=2), 2),
        (10, Ranks(index=1, count=2), None),
        (11, Ranks(), 1),
    ):
        room.begin(step, ranks)
        assert room.most == most, step
    room.settle(5, Ranks())
    assert room.plan == {"3": [4, 2], "5": [1]}, "what was to be later held for more memory"


def test_what_was_chosen_lies_in_the_folder_until_the_step_is_made(tmp_path: Path) -> None:
    chosen = Chosen(tmp_path, {"training": {"0": [4]}})
    chosen.keep(tmp_path / "tried" / "plain-0", {"2": [1]})
    again = Chosen(tmp_path, {"training": {"0": [9]}})
    assert again.plans == {"training": {"0": [4]}, "tried/plain-0": {"2": [1]}}
    assert again.is_last(tmp_path)
    assert not again.is_last(tmp_path / "tried" / "plain-0")
    assert again.settle() == {ROWS_AT_ONCE: again.plans}
    assert not list(tmp_path.iterdir())
    assert Chosen(tmp_path).settle() == {}
