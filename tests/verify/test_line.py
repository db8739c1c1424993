"""The line of the linear model in a report: its answers and the artifact's on the same prompts, and what is advised."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from edgekit.gate import Look
from edgekit.inputs import Content
from edgekit.prompts import Prompt
from edgekit.verify.line import draw_line
from edgekit.verify.run import Run
from edgekit.workspace import write_product
from tests.artifacts import LABELS, make_tokenizer
from tests.verify.verify_folders import NAMES, OUTSIDE, SAID, make_graph


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the line reads of VerifyInputs."""

    linear: Content | None
    task: str = "text-classification"
    target: str = "my-pi"
    hashed: bool = False
    look: Look = field(default_factory=Look)


@dataclass(frozen=True, kw_only=True)
class Device:
    REMOTE: bool = False


@dataclass(frozen=True, kw_only=True)
class Verify:
    """What the line reads of Run."""

    inputs: Asked
    device: Device = Device()


ROWS = [Prompt(text=SAID[kind], label=NAMES[kind]) for kind in SAID for _ in range(10)]
RIGHT = [str(row.label) for row in ROWS]


def given(folder: Path, *, flip: bool = False, classes: list[str] = LABELS) -> Asked:
    """A linear step's folder around a graph that answers every prompt rightly, or half of them, where two classes are swapped."""
    folder.mkdir()
    make_graph(folder / "model.onnx", flip=flip)
    make_tokenizer(folder / "tokenizer.json")
    facts = {"classes": classes, "settings": {"threshold": 0.6, "out_of_scope": OUTSIDE}, "pad_id": 0}
    write_product(folder, "linear", key="test", inputs={}, facts=facts)
    return Asked(linear=Content(path=folder, digest=""))


def run_of(inputs: Asked, *, remote: bool = False) -> Run:
    return cast("Run", Verify(inputs=inputs, device=Device(REMOTE=remote)))


def test_an_artifact_that_is_surely_better_gets_no_advice(tmp_path: Path) -> None:
    line = draw_line(run_of(given(tmp_path / "line", flip=True)), ROWS, RIGHT, 6)
    assert line is not None
    assert (line.accuracy, line.difference, line.prompts, line.note) == (0.5, 0.5, 40, None)
    least, most = line.interval
    assert least is not None
    assert most is not None
    assert 0.3 < least < 0.5 < most < 0.7
    assert line.bytes == (tmp_path / "line" / "model.onnx").stat().st_size
    assert line.p50_ms is not None
    assert line.p50_ms > 0.0


@pytest.mark.parametrize("wrong", [0, 1, 20])
def test_one_that_is_not_is_told_what_to_ship(tmp_path: Path, wrong: int) -> None:
    """As good, a little worse and much worse; not where it is a table of n-grams itself. No time of a device elsewhere."""
    inputs = given(tmp_path / "line")
    labels = ["music" if index < wrong else label for index, label in enumerate(RIGHT)]
    line = draw_line(run_of(inputs), ROWS, labels, 6)
    assert line is not None
    assert line.accuracy == 1.0
    assert line.difference == -wrong / 40
    assert line.note is not None
    assert "-t my-pi --student ngrams" in line.note
    own = draw_line(run_of(replace(inputs, hashed=True), remote=True), ROWS, labels, 6)
    assert own is not None
    assert (own.note, own.p50_ms, own.difference) == (None, None, line.difference)


def test_without_a_linear_model_or_labels_there_is_none(tmp_path: Path) -> None:
    inputs = given(tmp_path / "line")
    unlabelled = [replace(row, label=None) for row in ROWS]
    assert draw_line(run_of(inputs), unlabelled, RIGHT, 6) is None
    assert draw_line(run_of(replace(inputs, linear=None)), ROWS, RIGHT, 6) is None
    assert draw_line(run_of(given(tmp_path / "none", classes=[])), ROWS, RIGHT, 6) is None
