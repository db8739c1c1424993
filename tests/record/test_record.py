"""record: whose outputs, in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.modalities.encoded import Encoded
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.prompts import PromptSet
from edgekit.record import original_rows
from edgekit.record.alone import measure_alone
from edgekit.record.original_rows import spread
from edgekit.record.rows import FILE
from edgekit.record.timing import shapes
from edgekit.tasks import TASKS, outputs
from edgekit.verify.as_original import check_original
from tests.conftest import LABELS, make_checkpoint, make_data
from tests.steps import record

OPTIONS = {"task": "text-classification", "max_length": 32}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed: a process that imports torch would take most of a test's time."""
    monkeypatch.setattr("edgekit.record.rows.measure_alone", lambda asked, *_: {folder: {} for folder in asked})


def read(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / FILE, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.usefixtures("unmeasured")
def test_rows_are_in_the_order_of_the_split(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    student = make_checkpoint(tmp_path / "student", labels=LABELS, seed=9)
    told: list[tuple[int, int, str]] = []
    facts = record(checkpoint, student, prompts, out=tmp_path, progress=lambda *now: told.append(now), **OPTIONS)
    assert list(facts.classes) == LABELS
    assert facts.rows == {"calibrate": 6, "verify": 12}
    arrays = read(tmp_path)
    for role, folder in {"teacher": checkpoint, "student": student}.items():
        for split in ("calibrate", "verify"):
            texts = [prompt.text for prompt in PromptSet(folder=prompts).split(split)]
            ids = load_model(folder).encode(texts, 32)
            alone = outputs(TASKS["text-classification"].load(folder), of_tokens(ids, 0), batch=1)
            np.testing.assert_allclose(arrays[f"{role}_{split}"], alone, atol=1e-6)
    counted = [(done, total, note.split()[-1]) for done, total, note in told if total]
    assert counted[-1][:2] == (36, 36)
    assert [note for _, _, note in counted] == sorted(note for _, _, note in counted)
    assert told[-1][1] == 0, "what is timed in another process has no count"


def test_what_float_costs_is_measured(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    student = make_checkpoint(tmp_path / "student", labels=LABELS, seed=9)
    models = record(checkpoint, student, prompts, out=tmp_path, **OPTIONS).models
    assert sorted(models) == ["student", "teacher"]
    for figures in models.values():
        assert 0 < figures.latency_ms.p50 <= figures.latency_ms.p95
        assert {(one.sequence, one.threads) for one in figures.at} >= {(16, 1), (32, 1)}
        assert all(0 < one.p50 <= one.p95 for one in figures.at)
        assert (figures.memory_mb or 0) > 50, "torch alone takes more"
        assert figures.bytes > 1000


def test_float_is_timed_at_the_shapes_of_artifacts() -> None:
    assert shapes(40, 2) == [(16, 1), (32, 1), (40, 1), (16, 2), (32, 2), (40, 2)]
    assert shapes(16, 6) == [(16, 1), (16, 2), (16, 4), (16, 6)]


def test_a_process_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.safetensors").write_bytes(b"")
    with pytest.raises(EdgekitError, match=r"half: measuring in torch ended with exit code 1: .*half"):
        measure_alone({tmp_path / "half": of_tokens([[1, 2]], 0)}, "text-classification", 8)


@pytest.mark.usefixtures("unmeasured")
def test_the_owners_answers_are_recorded_where_some_are_edgekits_own(
    checkpoint: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers as one text at a time, and no prompt more than COMPARED is answered twice."""
    monkeypatch.setattr(original_rows, "COMPARED", 4)
    ours: list[int] = []

    def counted(module: Any, encoded: Encoded, **more: Any) -> Any:
        ours.append(len(encoded))
        return outputs(module, encoded, **more)

    monkeypatch.setattr("edgekit.record.rows.outputs", counted)
    facts = record(checkpoint, checkpoint, prompts, out=tmp_path, **OPTIONS)
    assert ours == [6, 4]
    assert facts.original is not None
    told = facts.original["student"]
    assert (told.rows, told.ids_equal, told.answers_equal, told.compared) == (12, 12, 12, 4)
    texts = [prompt.text for prompt in PromptSet(folder=prompts).split("verify")]
    ids = load_model(checkpoint).encode(texts, 32)
    alone = outputs(TASKS["text-classification"].load(checkpoint), of_tokens(ids, 0), batch=1)
    np.testing.assert_allclose(read(tmp_path)["student_verify"], alone, atol=1e-5)
    check = check_original(facts.original, [], 12)
    assert check.verdict == "pass"
    assert "the same answers on 4 of them" in (check.detail or "")


@pytest.mark.usefixtures("unmeasured")
def test_edgekits_own_answers_are_recorded_where_one_differs(
    checkpoint: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(original_rows, "COMPARED", 4)
    monkeypatch.setattr(
        "edgekit.record.rows.outputs", lambda *given, **more: outputs(*given, **more) + np.float32([1, 0, 0])
    )
    original = record(checkpoint, checkpoint, prompts, out=tmp_path, **OPTIONS).original
    assert original is not None
    told = original["student"]
    assert (told.ids_equal, told.answers_equal, told.compared) == (12, 0, 12)
    assert check_original({"student": told}, [], 12).verdict == "fail"


def test_prompts_that_are_compared_are_of_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original_rows, "COMPARED", 3)
    lengths = [5, 1, 9, 2, 7, 3]
    assert [lengths[place] for place in spread(lengths)] == [9, 5, 1]
    assert sorted(spread([1, 2])) == [0, 1]


@pytest.mark.usefixtures("unmeasured")
def test_one_folder_is_run_once(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    record(checkpoint, checkpoint, prompts, out=tmp_path, progress=lambda *now: told.append(now), **OPTIONS)
    arrays = read(tmp_path)
    np.testing.assert_array_equal(arrays["student_verify"], arrays["teacher_verify"])
    answers = ["student_calibrate", "student_verify", "teacher_calibrate", "teacher_verify"]
    assert sorted(arrays) == [
        *(f"owner.{kind}.{name}" for kind in ("shapes", "values") for name in ("attention_mask", "input_ids")),
        *answers,
    ]
    assert [now[:2] for now in told if now[1]][-1] == (18, 18)


@pytest.mark.usefixtures("unmeasured")
def test_the_same_models_give_the_same_bytes(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
        record(checkpoint, checkpoint, prompts, out=place, **OPTIONS)
    assert (places[0] / FILE).read_bytes() == (places[1] / FILE).read_bytes()


def test_a_student_of_other_classes_is_refused(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    student = make_checkpoint(tmp_path / "student", labels=["x", "y"])
    with pytest.raises(EdgekitError, match="classes are not the teacher's"):
        record(checkpoint, student, prompts, out=tmp_path, **OPTIONS)
