"""The control run in a report: what both students answer, the bounds of the difference, and what is advised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edgekit import gate
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError
from edgekit.evidence import Control, FloatModel, Quantiles
from edgekit.gate import Look
from edgekit.inputs import Content
from edgekit.prompts import Prompt
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.reference import OwnersAnswers, Reference, Sequences, read_reference
from edgekit.verify.control import compare_rows, compare_tokens, model_of
from edgekit.verify.recorded import read_recorded
from edgekit.verify.rows import answers_of
from edgekit.verify.run import Run, VerifyInputs
from edgekit.workspace import Product, write_product

CLASSES = ["no", "yes"]
ROWS = [Prompt(text=f"text {index}", label=CLASSES[index % 2]) for index in range(60)]
COST = FloatModel(
    bytes=4000, latency_ms=Quantiles(p50=1.0, p95=2.0), at=(), memory_mb=100.0, threads=1, busy=0.0
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is read of VerifyInputs."""

    control: Content | None
    taught: Content | None = None
    task: str = "text-classification"
    out_of_scope: str | None = None
    rejection: Rejection = AS_CALIBRATED
    look: Look = field(default_factory=Look)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """What is read of Run."""

    inputs: Asked
    recorded: Product
    classes: tuple[str, ...] = tuple(CLASSES)

    @property
    def artifact(self) -> Artifact:
        return cast("Artifact", self)

    def split(self, _name: str) -> list[Prompt]:
        return ROWS


def rows_record(folder: Path, wrong: int) -> Product:
    """A record whose student is wrong about the first so many verify prompts."""
    folder.mkdir()
    logits = np.array([[3.0, 0.0] if row.label == "no" else [0.0, 3.0] for row in ROWS], np.float32)
    logits[:wrong] = logits[:wrong, ::-1]
    np.savez(folder / "reference.npz", student_calibrate=logits, student_verify=logits)
    told = Reference(
        output="logits",
        classes=tuple(CLASSES),
        rows={},
        max_length=8,
        models={"student": COST},
        warnings=(),
        original={},
    )
    return write_product(folder, "record", key="test", inputs={}, facts=told.facts())


def run_of(recorded: Product, control: Product | None, taught: Product | None = None, **more: Any) -> Run:
    given = {name: product and Content(path=product.folder, digest="") for name, product in
             {"control": control, "taught": taught}.items()}  # fmt: skip
    return cast("Run", Verify(inputs=Asked(**cast("Mapping[str, Any]", given), **more), recorded=recorded))


def found(folder: Path, mine: int, alone: int, taught: int | None = None) -> Control:
    """The comparison of students that are wrong about so many prompts."""
    first, second = rows_record(folder / "mine", mine), rows_record(folder / "alone", alone)
    run = run_of(first, second, None if taught is None else rows_record(folder / "taught", taught))
    student = answers_of(run, first.folder, "student", [row.text for row in ROWS])
    beside = compare_rows(run, ROWS, student)
    assert beside is not None
    return beside


@pytest.mark.parametrize(
    ("mine", "alone", "says"),
    [
        (0, 20, None),
        (20, 0, "the teacher made it worse: by "),
        (3, 3, "not proven to add anything"),
        (1, 3, "not proven"),
    ],
)
def test_what_the_teacher_added_has_the_bounds_of_paired_answers(
    mine: int, alone: int, says: str | None, tmp_path: Path
) -> None:
    beside = found(tmp_path, mine, alone)
    assert (beside.metric, beside.prompts) == ("accuracy", 60)
    assert [beside.student, beside.control] == pytest.approx([1 - mine / 60, 1 - alone / 60])
    assert beside.difference == pytest.approx((alone - mine) / 60)
    lost, won = max(mine - alone, 0), max(alone - mine, 0)
    least, most = gate.paired_bounds(lost, won, 60, Look().alpha)
    assert beside.interval == (-most, -least)
    assert says in beside.note if says and beside.note else beside.note is None


def test_where_a_later_step_trains_the_student_its_own_record_counts(tmp_path: Path) -> None:
    assert found(tmp_path, 30, 10, taught=0).difference == pytest.approx(10 / 60)


def test_without_a_control_run_or_labels_there_is_nothing(tmp_path: Path) -> None:
    record = rows_record(tmp_path / "mine", 0)
    student = answers_of(run_of(record, record), record.folder, "student", [row.text for row in ROWS])
    assert compare_rows(run_of(record, None), ROWS, student) is None
    assert compare_rows(run_of(record, record), [replace(row, label=None) for row in ROWS], student) is None
    inputs = [cast("VerifyInputs", run_of(record, one).inputs) for one in (record, None)]
    assert [model_of(one) for one in inputs] == [{"control": COST}, {}]


def token_record(folder: Path, surprise: float, passages: int = 200, seed: int = 1) -> Product:
    """A decoder's record of passages of five tokens, four of them scored, each with about this surprise."""
    folder.mkdir()
    drawn = np.random.default_rng(seed).uniform(-0.2, 0.2, 4 * passages)
    arrays = {
        "ids": np.arange(5 * passages), "offsets": np.arange(0, 5 * passages + 1, 5), "starts": np.ones(passages, np.int64),
        "prompts": np.arange(passages), "student_nll": (surprise + drawn).astype(np.float32),
    }  # fmt: skip
    np.savez(folder / "reference.npz", **cast("Mapping[str, Any]", arrays))
    (folder / "answers.json").write_text("{}", encoding="utf-8")
    equal = OwnersAnswers(rows=1, ids_equal=1, answers=1, answers_equal=1, difference=None)
    sequences = Sequences(
        passages=passages, tokens=4 * passages, left_out=0, choices=0, shared_vocabulary=True, max_new=1, stop=(0,),
        as_original=equal,
    )  # fmt: skip
    told = Reference(
        output="tokens", classes=(), rows={}, max_length=8, models={"student": COST}, warnings=(), sequences=sequences
    )
    return write_product(folder, "record", key="test", inputs={}, facts=told.facts())


@pytest.mark.parametrize(("alone", "says"), [(2.5, None), (1.5, "worse: by 0.4"), (2.0, "not proven to add anything")])
def test_of_a_decoder_it_is_the_surprise_of_a_token(alone: float, says: str | None, tmp_path: Path) -> None:
    mine, other = token_record(tmp_path / "mine", 2.0), token_record(tmp_path / "alone", alone, seed=2)
    recorded = read_recorded(mine, read_reference(mine))
    prompts = [Prompt(text=str(index)) for index in range(200)]
    beside = compare_tokens(run_of(mine, other, task="text-generation"), recorded, prompts)
    assert beside is not None
    assert (beside.metric, beside.prompts) == ("nats", 200)
    least, most = beside.interval
    assert least is not None
    assert most is not None
    assert least < beside.difference < most
    assert beside.difference == pytest.approx(alone - 2.0, abs=0.02)
    assert beside.control - beside.student == pytest.approx(beside.difference, abs=1e-6)
    assert says in beside.note if says and beside.note else beside.note is None
    assert compare_tokens(run_of(mine, None), recorded, prompts) is None


def test_few_passages_prove_nothing_and_others_are_refused(tmp_path: Path) -> None:
    mine, other = token_record(tmp_path / "mine", 2.0, 30), token_record(tmp_path / "alone", 5.0, 30)
    recorded, prompts = read_recorded(mine, read_reference(mine)), [Prompt(text=str(index)) for index in range(30)]
    beside = compare_tokens(run_of(mine, other), recorded, prompts)
    assert beside is not None
    assert beside.interval == (None, None)
    assert "not proven" in str(beside.note)
    longer = token_record(tmp_path / "longer", 2.0, 31)
    with pytest.raises(EdgekitError, match="the record of other passages"):
        compare_tokens(run_of(mine, longer), recorded, prompts)
