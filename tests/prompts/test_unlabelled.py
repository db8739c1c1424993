"""Texts whose labels nobody knows: they join the train rows where no split has them, and the teacher teaches them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from edgekit.distill.losses import BRIER
from edgekit.distill.options import default_losses
from edgekit.errors import EdgekitError
from edgekit.prompts import SPLITS, PromptSet, gather
from edgekit.recipe import load_recipe
from tests.conftest import LABELS, make_data
from tests.steps import distill, finetune

NEW = ["is anybody at home today", "what about dinner", "the garden needs water again"]
# Of verify but for a word or a number's place, of train, empty, and twice.
LEFT_OUT = ["switch off every lamp in the upper landing", "Please turn the big kitchen light on!", " ", f"{NEW[1]}?"]
STUDENT = "[student]\nlayers = 1\n"


def project(folder: Path, texts: Sequence[str] = (), tables: str = STUDENT, task: str = "text-classification") -> Path:
    make_data(folder / "data")
    (folder / "more.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")
    path = folder / "recipe.toml"
    path.write_text(
        f'task = "{task}"\n[teacher]\nsource = "teacher"\n{tables}\n[data]\npath = "data"\nnear_duplicates = "drop"\n'
        'unlabelled = "more.jsonl"\n',
        encoding="utf-8",
    )
    return path


def test_texts_that_no_split_has_join_the_train_rows(tmp_path: Path) -> None:
    recipe, out = load_recipe(project(tmp_path, [*NEW, *LEFT_OUT])), tmp_path / "out"
    out.mkdir()
    facts = gather(recipe, SPLITS, out)
    assert facts["unlabelled"] == 3
    assert facts["rows"] == {"train": 15, "calibrate": 6, "verify": 12}
    assert facts["labels"] == LABELS
    train = PromptSet(folder=out).split("train")
    assert [(row.text, row.label) for row in train if row.label is None] == [(text, None) for text in NEW]
    assert facts["notes"] == [
        "train: 3 texts without a label, of which the student learns what the teacher says",
        "unlabelled: 4 rows left out (1 empty texts, 3 near duplicates); 3 stay",
    ]
    for name in ("calibrate", "verify"):
        assert all(row.label is not None for row in PromptSet(folder=out).split(name))


def test_a_split_that_nothing_trains_on_reads_none(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    assert "unlabelled" not in gather(load_recipe(project(tmp_path, NEW)), ("calibrate", "verify"), out)


@pytest.mark.parametrize(
    ("texts", "tables", "task", "said"),
    [
        (LEFT_OUT[:2], STUDENT, "text-classification", r"more.jsonl: no text stays that no split has"),
        ((), STUDENT, "text-classification", r"more.jsonl: empty; expected rows with texts"),
        (NEW, "", "text-classification", r"recipe.toml: data.unlabelled: teaches a student, and the recipe makes no"),
        (
            NEW,
            STUDENT,
            "feature-extraction",
            r"recipe.toml: data.unlabelled: for classifiers whose other texts have labels",
        ),
    ],
)
def test_what_cannot_work_is_told(texts: Sequence[str], tables: str, task: str, said: str, tmp_path: Path) -> None:
    path = project(tmp_path, texts, tables, task)
    (out := tmp_path / "out").mkdir()
    with pytest.raises(EdgekitError, match=said):
        gather(load_recipe(path), SPLITS, out)
    assert not list(out.iterdir())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = project(tmp_path, NEW)
    (tmp_path / "more.jsonl").unlink()
    (out := tmp_path / "out").mkdir()
    with pytest.raises(EdgekitError, match=r"recipe.toml: data.unlabelled: no such file: .*more.jsonl"):
        gather(load_recipe(path), SPLITS, out)


def test_the_teacher_learns_from_labels_alone_and_teaches_all_texts(checkpoint: Path, tmp_path: Path) -> None:
    recipe, prompts = load_recipe(project(tmp_path, NEW)), tmp_path / "prompts"
    prompts.mkdir()
    gather(recipe, SPLITS, prompts)
    common = {"task": "text-classification", "max_length": 32}
    options = {"epochs": 1, "holdout": 0.0}
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
    tuned = finetune(checkpoint, prompts, out=tmp_path / "teacher", options=options, **common)
    assert tuned["train_texts"] == 12
    losses = {"logits": default_losses("logits")["logits"], "labels": 0.5}
    taught = distill(
        tmp_path / "teacher",
        prompts,
        layers=1,
        out=tmp_path / "student",
        options=options | {"losses": losses},
        **common,
    )
    assert taught["train_texts"] == 15


def test_rows_without_a_label_judge_nothing() -> None:
    from edgekit.distill.divergences import LossOptions
    from edgekit.distill.signals import Batch, Signal

    given = torch.tensor([[0.0, 2.0], [1.0, -1.0], [0.5, 0.5]])
    targets = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])

    def score(rows: Sequence[int]) -> float:
        batch = Batch(rows=tuple(rows), tokens=targets[rows], mask=targets[rows], targets=targets[rows])
        signal = Signal(output=given[rows])
        return float(BRIER.compare(signal, signal, batch, LossOptions()))

    assert score([0, 1, 2]) == pytest.approx(score([0, 2]))
    assert score([1]) == 0.0
