"""The loop: schedule, batches, early stop, and runs that are killed and continued."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.distill import loop
from edgekit.distill.journal import FILE as JOURNAL
from edgekit.distill.loop import Lesson, Run, epoch_batches, ramp, train
from edgekit.distill.machine import choose_precision, conditions
from edgekit.distill.options import TrainingOptions
from edgekit.distill.room import Room
from edgekit.distill.snapshot import FILE, Snapshot, drop_snapshot, read_snapshot, write_snapshot
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.runtimes import machine
from edgekit.runtimes.machine import count_threads
from edgekit.workspace import file_sha256
from tests import warm
from tests.conftest import LABELS, child_environment, make_checkpoint, make_data
from tests.steps import distill, finetune

OPTIONS = {"epochs": 4, "batch": 3, "holdout": 0.2}
FILES = ["config.json", "model.safetensors", "tokenizer.json", "training.jsonl"]


def told(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's journal, without what the clock says."""
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


def lesson(rows: int) -> Lesson:
    return Lesson(
        lengths=[(row * 7) % 23 for row in range(rows)],
        train=list(range(rows)),
        held=[],
        parts=lambda _rows, _share: [torch.zeros(())],
        judge=lambda _rows: torch.zeros(()),
    )


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [ramp(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) <= 1.0
    assert rates.index(max(rates)) in {9, 10}
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90)
    assert [ramp(step, 2, 0.0) for step in range(2)] == [1.0, 0.5]


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 1000])
def test_an_epoch_sees_every_row_once_in_length_buckets(rows: int) -> None:
    batches = list(epoch_batches(lesson(rows), 32, seed=5, epoch=2))
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert len(batches) == -(-rows // 32)
    assert batches == list(epoch_batches(lesson(rows), 32, seed=5, epoch=2))
    if rows == 1000:
        assert batches != list(epoch_batches(lesson(rows), 32, seed=5, epoch=3))
        spread = [max(row * 7 % 23 for row in batch) - min(row * 7 % 23 for row in batch) for batch in batches]
        assert sorted(spread)[len(spread) // 2] <= 3


def test_early_stop_takes_the_best_epoch_back(tmp_path: Path) -> None:
    """The held-out score falls for two epochs, then rises: training ends `patience` epochs later with the second's weights."""
    module = torch.nn.Linear(1, 1)
    scores = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    weights: list[float] = []

    def judge(_rows: list[int]) -> torch.Tensor:
        weights.append(float(module.weight.detach()))
        return torch.tensor(next(scores))

    taught = Lesson(
        lengths=[1, 1],
        train=[0],
        held=[1],
        parts=lambda _rows, _share: [module(torch.ones(1, 1)).square().sum()],
        judge=judge,
    )
    options = TrainingOptions(epochs=6, patience=2)
    outcome = train(module, taught, options, Run(folder=tmp_path, identity="x"), width=384)
    assert outcome.scores == [3.0, 1.0, 2.0, 2.0]
    assert outcome.best_epoch == 2
    assert float(module.weight.detach()) == weights[1]
    assert not module.training


@pytest.mark.parametrize(("after", "best"), [([3.0, 2.5], 0), ([3.0, 1.0], 2)])
def test_weights_that_no_epoch_betters_stay(after: list[float], best: int, tmp_path: Path) -> None:
    """The state before the first step is judged too where a run asks for it: it wins unless an epoch is lower."""
    module = torch.nn.Linear(1, 1)
    begun = float(module.weight.detach())
    scores = iter([2.5, *after])
    taught = Lesson(
        lengths=[1, 1],
        train=[0],
        held=[1],
        parts=lambda _rows, _share: [module(torch.ones(1, 1)).square().sum()],
        judge=lambda _rows: torch.tensor(next(scores)),
    )
    run = Run(folder=tmp_path, identity="x", keeps_start=True)
    outcome = train(module, taught, TrainingOptions(epochs=2, patience=2), run, width=384)
    assert (outcome.start, outcome.scores, outcome.best_epoch) == (2.5, after, best)
    assert (float(module.weight.detach()) == begun) == (best == 0)


@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_a_step_without_numbers_ends_a_training(of: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a whole epoch what was best is kept; before one there is nothing to keep. No weight is ever NaN."""

    def broken_in(step: int) -> tuple[torch.nn.Module, Lesson]:
        module, seen = torch.nn.Linear(1, 1), [0]

        def parts(_rows: list[int], _share: float) -> list[torch.Tensor]:
            seen[0] += 1
            loss = module(torch.ones(1, 1)).square().sum()
            if seen[0] != step:
                return [loss]
            # sqrt(0) has the value 0, and an infinite derivative.
            return [loss * float("nan") if of == "loss" else (loss * 0).sqrt()]

        judge = lambda _rows: module.weight.detach().square().sum()  # noqa: E731
        return module, Lesson(lengths=[1] * 3, train=[0, 1], held=[2], parts=parts, judge=judge)

    options = TrainingOptions(epochs=3, batch=1)
    module, taught = broken_in(4)
    outcome = train(module, taught, options, Run(folder=tmp_path, identity="late"), width=8)
    assert (outcome.steps, outcome.epochs, outcome.best_epoch, len(outcome.scores)) == (3, 1, 1, 1)
    assert str(outcome.stopped).endswith("in step 4")
    assert all(bool(weight.isfinite().all()) for weight in module.parameters())
    assert "what was best before is kept; use a lower learning_rate" in caplog.text
    module, taught = broken_in(2)
    with pytest.raises(
        EdgekitError, match=r"in step 2, before one epoch was over; use a lower learning_rate \(it was "
    ):
        train(module, taught, options, Run(folder=tmp_path, identity="early"), width=8)
    assert all(bool(weight.isfinite().all()) for weight in module.parameters())


def test_a_full_memory_makes_batches_go_through_in_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The device's memory takes two rows at once: the weights are those of a device that takes all."""

    def trained(room: int, folder: Path, batch: int = 6) -> tuple[torch.Tensor, list[int]]:
        torch.manual_seed(0)
        module, sizes, space = torch.nn.Linear(3, 1), list[int](), Room(batch)
        data = torch.randn(12, 3)

        def parts(rows: list[int], _share: float) -> Iterator[torch.Tensor]:
            assert space.most is not None
            for start in range(0, len(rows), space.most):
                part = rows[start : start + space.most]
                if len(part) > room:
                    # What was done of the batch before must not count.
                    yield module(data[part[:1]]).square().sum()
                    raise torch.OutOfMemoryError("CUDA out of memory")
                sizes.append(len(part))
                yield module(data[part]).square().sum() / len(rows)

        taught = Lesson(
            lengths=[1] * 12,
            train=list(range(12)),
            held=[],
            parts=parts,
            judge=lambda _rows: torch.zeros(()),
            room=space,
        )
        folder.mkdir()
        train(module, taught, TrainingOptions(epochs=1, batch=batch), Run(folder=folder, identity="full"), width=8)
        return module.weight.detach(), sizes

    whole, _ = trained(6, tmp_path / "whole")
    caplog.clear()
    cut, sizes = trained(2, tmp_path / "cut")
    assert (max(sizes), len(caplog.records)) == (1, 2), "halved twice: to 3, then to 1"
    torch.testing.assert_close(cut, whole)
    with pytest.raises(EdgekitError, match=r"the memory of cpu is full, and no fewer rows .* give a smaller batch"):
        trained(0, tmp_path / "none")


def test_precision_and_threads_fit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("fp32") == "fp32"
    for flags, wanted in (
        ({"avx2", "avx512f"}, "fp32"),
        ({"avx512_bf16"}, "bf16"),
        ({"amx_bf16"}, "bf16"),
        ({"bf16"}, "bf16"),
    ):
        monkeypatch.setattr(machine, "describe", lambda flags=flags: {"features": sorted(flags), "cores": 2})
        assert choose_precision("auto") == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert count_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert count_threads() >= 1
    assert conditions(TrainingOptions(precision="bf16", device="cpu")) == {
        "device": "cpu",
        "threads": count_threads(),
        "precision": "bf16",
    }


def test_both_precisions_train_in_one_process(tmp_path: Path) -> None:
    teacher, data = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")
    for precision in ("fp32", "bf16", "fp32"):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        options = {"epochs": 2, "precision": precision}
        facts = distill(teacher, data, task="text-classification", layers=1, max_length=32, options=options, out=out)
        assert facts["precision"] == precision
        assert sorted(path.name for path in out.iterdir()) == FILES
        assert {info.dtype for info in load_model(out).tensors.values()} == {"F32"}


def test_a_snapshot_of_another_run_is_not_continued(tmp_path: Path) -> None:
    state = {"run": "a", "step": 3, "scores": [], "best_epoch": 0, "start": None, "memory": {}}
    write_snapshot(tmp_path, Snapshot(state=state, tensors={"x": torch.ones(2)}))
    write_snapshot(tmp_path, Snapshot(state=state | {"step": 4}, tensors={"x": torch.zeros(2)}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot-000000004.safetensors", FILE]
    read = read_snapshot(tmp_path, "a")
    assert read is not None
    assert read.state["step"] == 4
    assert read_snapshot(tmp_path, "b") is None
    for left in (".snapshot-000000009.safetensors.partial", ".tmpWCbgad"):
        (tmp_path / left).touch()
    drop_snapshot(tmp_path)
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """Stands for a kill at a step's end."""


@pytest.mark.parametrize("verb", ["finetune", "distill", "taid"])
def test_a_run_stopped_at_any_step_ends_in_the_same_bytes(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    teacher, data = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")

    def run(out: Path, stop: int | None = None) -> None:
        def progress(done: int, _total: int, _note: str) -> None:
            if done == stop:
                raise Killed

        out.mkdir(exist_ok=True)
        if verb == "finetune":
            finetune(
                teacher, data, task="text-classification", options=OPTIONS, max_length=32, out=out, progress=progress
            )
        else:
            distill(
                teacher,
                data,
                task="text-classification",
                layers=1,
                options=OPTIONS if verb == "distill" else OPTIONS | {"taid": {"adaptive": 0.5}},
                max_length=32,
                out=out,
                progress=progress,
            )

    run(tmp_path / "whole")
    wanted = file_sha256(tmp_path / "whole" / "model.safetensors")
    for stops in ([1], [2, 3], [4, 5, 6], [7], [12]) if verb != "taid" else ([2, 7],):
        out = tmp_path / "-".join(map(str, stops))
        for stop in stops:
            with pytest.raises(Killed):
                run(out, stop)
        run(out)
        assert file_sha256(out / "model.safetensors") == wanted, f"stopped at {stops}"
        assert told(out) == told(tmp_path / "whole")
        assert sorted(path.name for path in out.iterdir()) == FILES


SCRIPT = """
import json, sys
from pathlib import Path
from edgekit.distill import loop
from tests.steps import finetune
loop.SNAPSHOT_SECONDS = 0.0
teacher, data, out = map(Path, sys.argv[1:4])
finetune(teacher, data, task="text-classification", options=json.loads(sys.argv[4]), max_length=32, out=out,
         progress=lambda done, total, note: note.startswith("loss") and print(done, flush=True))
"""


def test_a_killed_process_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at three seeded moments, in steps and in the writing of snapshots."""
    teacher, data = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")

    def start(out: Path, begin: Callable[..., Any] = warm.start) -> Any:
        out.mkdir(exist_ok=True)
        command = ["-c", SCRIPT, teacher, data, out, json.dumps(OPTIONS | {"epochs": 16})]
        return begin(command, tmp_path, child_environment())

    whole = start(tmp_path / "whole", warm.alone)
    assert whole.communicate()[0].split()[-1] == "64" or whole.returncode == 0
    rng = random.Random(4)
    first = 0
    for _ in range(3):
        running = start(tmp_path / "killed")
        assert running.stdout is not None
        last = first + rng.randint(1, 6)
        for line in running.stdout:
            if int(line) >= last:
                break
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=rng.random() * 0.01)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        state = tmp_path / "killed" / FILE
        first = json.loads(state.read_text(encoding="utf-8"))["step"]
        assert first >= last - 1
    final = start(tmp_path / "killed")
    steps = [int(line) for line in final.communicate()[0].split()]
    assert steps[0] == first + 1
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert file_sha256(tmp_path / "killed" / name) == file_sha256(tmp_path / "whole" / name)
    assert len(list((tmp_path / "killed").iterdir())) == len(FILES)
    assert [line["step"] for line in told(tmp_path / "killed")] == list(range(1, steps[-1] + 1))
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
