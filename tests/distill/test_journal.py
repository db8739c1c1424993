"""What a training tells of its steps: lines of JSON, and TensorBoard's files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.distill.journal import BOARD, FILE, Journal
from edgekit.distill.loop import Lesson, Run, train
from edgekit.distill.options import TrainingOptions
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.pipeline import read_settings
from edgekit.recipe import load_recipe
from tests.conftest import LABELS, make_checkpoint, make_data
from tests.steps import distill


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def test_a_line_says_what_a_step_did(tmp_path: Path) -> None:
    """Of w = 3 and the loss w^2 the first step has the loss 9 and the gradient 6; the rate is the schedule's."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 3.0)
    lesson = Lesson(
        lengths=[5, 5, 5],
        train=[0, 1],
        held=[2],
        parts=lambda _rows, _share: [module(torch.ones(1, 1)).square().sum()],
        judge=lambda _rows: torch.tensor(0.25),
        by_name=lambda: {"square": 1.5},
    )
    options = TrainingOptions(epochs=2, batch=1, warmup=0.0, learning_rate=0.5)
    train(module, lesson, options, Run(folder=tmp_path, identity="x"), width=8)
    told = lines(tmp_path)
    assert [line["step"] for line in told] == [1, 2, 3, 4]
    assert (told[0]["loss"], told[0]["norm"], told[0]["losses"]) == (9.0, 6.0, {"square": 1.5})
    assert [line["rate"] for line in told] == [0.5, 0.375, 0.25, 0.125]
    assert [line.get("score") for line in told] == [None, 0.25, None, 0.25]
    assert all(line["tokens_per_s"] > 0 for line in told)


def test_the_parts_of_a_loss_add_up(tmp_path: Path) -> None:
    """Also where a batch goes through in parts, and with a loss whose weight falls to nothing."""
    teacher, data = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")
    losses = {"logits": 0.5, "labels": {"start": 1.0, "end": 0.0}}
    options = {"epochs": 2, "batch": 4, "micro_batch": 2, "losses": losses}
    (tmp_path / "out").mkdir()
    given: dict[str, Any] = {"task": "text-classification", "layers": 1, "max_length": 32, "options": options}
    distill(teacher, data, out=tmp_path / "out", **given)
    told = lines(tmp_path / "out")
    assert {name for line in told for name in line["losses"]} == {"logits", "labels"}
    for line in told:
        assert sum(line["losses"].values()) == pytest.approx(line["loss"], abs=1e-5)
    assert told[0]["losses"]["labels"] > 3 * told[-1]["losses"]["labels"]


def test_a_journal_forgets_what_no_snapshot_knows(tmp_path: Path) -> None:
    first = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        first.tell(step, loss=float(step), score=None)
    first.close()
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    again = Journal(tmp_path, 2)
    again.tell(3, loss=0.5)
    again.sync()
    again.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 0.5}]
    Journal(tmp_path, 0).close()
    assert lines(tmp_path) == []
    (tmp_path / FILE).unlink()
    Journal(tmp_path, 7).close()


def test_tensorboard_reads_the_same(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step, count in ((0, 3), (2, 4)):
        journal = Journal(tmp_path, step, board=True)
        for number in range(step + 1, count + 1):
            journal.tell(number, loss=number / 8, losses={"logits": 0.5})
        journal.close()
    read = EventAccumulator(str(tmp_path / BOARD)).Reload()
    assert read.Tags()["scalars"] == ["loss", "losses/logits"]
    assert [(one.step, one.value) for one in read.Scalars("loss")] == [(step, step / 8) for step in (1, 2, 3, 4)]


def test_tensorboard_changes_no_model_and_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity(TrainingOptions(tensorboard=True)) == identity(TrainingOptions())
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'task = "text-classification"\n[teacher]\nsource = "t"\n[student]\nlayers = 1\n[data]\npath = "d"\n'
        "[distill]\ntensorboard = true\n"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EdgekitError, match=r"distill\.tensorboard: its writer is not installed; run: pip install"):
        read_settings(load_recipe(recipe))
