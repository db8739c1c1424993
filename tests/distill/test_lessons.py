"""What is taught: targets, the teacher's signal, the folders that finetune and distill leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from edgekit.distill.batches import TrainSplit, make_targets, passage_source, read_texts
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.loop import Lesson
from edgekit.distill.students import match_blocks
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import TEACHERS, TeacherInputs
from edgekit.errors import EdgekitError
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.tasks import TASKS, outputs
from edgekit.tasks.text_generation import Passage
from tests.architectures.families import make_family
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint, make_data
from tests.steps import distill, finetune

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.jsonl"]


def write_train(folder: Path, rows: list[dict[str, str | None]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def test_an_out_of_scope_text_wants_every_class_alike() -> None:
    rows = [Prompt(text="a", label="x"), Prompt(text="b", label="oos"), Prompt(text="c")]
    assert make_targets(rows, ["x", "y"], "oos", "here").tolist() == [[1, 0], [0.5, 0.5], [0, 0]]


def test_an_out_of_scope_label_that_is_a_class_wants_that_class() -> None:
    """A teacher may have learned the label for "none of them" as a class of its own."""
    rows = [Prompt(text="a", label="x"), Prompt(text="b", label="oos")]
    assert make_targets(rows, ["x", "oos"], "oos", "here").tolist() == [[1, 0], [0, 1]]


def test_a_label_that_is_no_class_is_named() -> None:
    with pytest.raises(EdgekitError, match=r"^here: the label 'musik' .*did you mean music"):
        make_targets([Prompt(text="a", label="musik")], LABELS, None, "here")


def test_matched_blocks_end_with_the_last() -> None:
    assert match_blocks(6, [0, 2, 5]) == [0, 2, 5]
    assert match_blocks(6, [0, 1, 2]) == [0, 1, 5]
    assert match_blocks(4, [1]) == [3]


def test_the_teacher_says_the_same_from_memory_and_live(checkpoint: Path) -> None:
    task, model = TASKS["text-classification"], load_model(checkpoint)
    texts = ["jazz", "please turn the hall light on", "some jazz on the attic speaker"]
    split = TrainSplit(
        texts=[Prompt(text=text) for text in texts], model=model, task=task, max_length=32, holdout=0.0, classes=LABELS
    )
    source = read_texts(split)
    tap = Tap(task.load(checkpoint), needs=frozenset({"hidden", "projections"}), blocks=[0, 1])
    inputs = TeacherInputs(folder=checkpoint, source=source, open=lambda: tap)
    rows, lengths = [2, 0, 1], [source.lengths[row] for row in (2, 0, 1)]
    batch = source.batch(rows)
    known, live = (teacher.ask(batch) for teacher in (kind(inputs) for kind in TEACHERS.values()) if teacher)
    assert len(known.hidden) == 2
    assert len(known.projections) == 3
    torch.testing.assert_close(known.output, live.output)
    for a, b in zip(known.hidden, live.hidden, strict=True):
        assert a.shape == b.shape
        for row, length in enumerate(lengths):
            torch.testing.assert_close(a[row, :length], b[row, :length])
    for a, b in zip(known.projections, live.projections, strict=True):
        assert a.shape == b.shape
        for row, length in enumerate(lengths):
            torch.testing.assert_close(a[row, :, :length], b[row, :, :length])


def test_finetune_learns_the_labels_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    base, data, out = make_family("bert", tmp_path / "base"), tmp_path / "data", tmp_path / "out"
    rows: list[dict[str, str | None]] = [
        {"text": pattern.format(subject), "label": label} for subject in SUBJECTS for label, pattern in PATTERNS.items()
    ]
    write_train(data, [*rows, {"text": "jazz in the cellar", "label": "oos"}, {"text": "unlabelled", "label": None}])
    out.mkdir()
    told: list[tuple[int, int, str]] = []
    facts = finetune(
        base,
        data,
        task="text-classification",
        options={"epochs": 20, "batch": 8, "learning_rate": 3e-3, "holdout": 0.0},
        max_length=32,
        out=out,
        out_of_scope="oos",
        progress=lambda *now: told.append(now),
    )
    assert facts["classes"] == LABELS
    # 31 with a label, and 3 of the texts that say nothing: a tenth.
    assert facts["train_texts"] == 34
    assert sorted(path.name for path in out.iterdir()) == FILES
    model = load_model(out)
    assert model.labels == LABELS
    assert str(tmp_path) not in json.dumps(model.config)
    task = TASKS["text-classification"]
    answers = task.answer(
        outputs(task.load(out), of_tokens(model.encode([str(row["text"]) for row in rows], 32), 0)), {}, LABELS
    )
    assert np.mean([answer == row["label"] for answer, row in zip(answers, rows, strict=True)]) > 0.9
    assert told[-1][:2] == (100, 100)
    assert told[-1][2].startswith("loss ")
    phases = [note for _, total, note in told if not total]
    assert phases == ["reading the texts", f"loading {base.name}"], "what comes before the first step is told"
    assert told[2] == (0, 100, "batches of 8")


def test_a_classifier_can_be_fine_tuned_to_other_labels(checkpoint: Path, tmp_path: Path) -> None:
    rows: list[dict[str, str | None]] = [
        {"text": f"jazz {word}", "label": word} for word in ("hall", "attic", "study", "porch")
    ]
    (tmp_path / "out").mkdir()
    data = write_train(tmp_path / "data", rows)
    options = {"epochs": 1}
    facts = finetune(checkpoint, data, task="text-classification", options=options, max_length=32, out=tmp_path / "out")
    assert facts["classes"] == ["attic", "hall", "porch", "study"]
    assert load_model(tmp_path / "out").labels == facts["classes"]


def test_fine_tuning_needs_two_labels(checkpoint: Path, tmp_path: Path) -> None:
    data = write_train(tmp_path / "data", [{"text": "jazz", "label": "music"}, {"text": "x", "label": "oos"}])
    with pytest.raises(EdgekitError, match=r"1 label\(s\); fine-tuning needs at least two"):
        finetune(
            checkpoint, data, task="text-classification", options={}, max_length=32, out=tmp_path, out_of_scope="oos"
        )


def test_a_student_comes_near_its_teacher(tmp_path: Path) -> None:
    """Without one label: what the student learns comes from the teacher alone."""
    teacher = make_family("bert", tmp_path / "teacher", LABELS)
    rows: list[dict[str, str | None]] = [
        {"text": pattern.format(subject), "label": None} for subject in SUBJECTS for pattern in PATTERNS.values()
    ]
    data = write_train(tmp_path / "data", rows)
    texts = [str(row["text"]) for row in rows]

    def distance(layers: int, epochs: int, name: str) -> float:
        out = tmp_path / name
        out.mkdir()
        options = {"epochs": epochs, "batch": 8, "learning_rate": 3e-3, "holdout": 0.0}
        distill(teacher, data, task="text-classification", layers=layers, options=options, max_length=32, out=out)
        task = TASKS["text-classification"]
        said, wanted = (
            outputs(task.load(one), of_tokens(load_model(one).encode(texts, 32), 0)) for one in (out, teacher)
        )
        return float(np.abs(said - wanted).mean())

    assert distance(1, 25, "long") < 0.5 * distance(1, 1, "short")


def test_an_embedding_student_keeps_pooling_and_size(tmp_path: Path) -> None:
    teacher, out = make_checkpoint(tmp_path / "teacher"), tmp_path / "out"
    (teacher / "1_Pooling").mkdir()
    (teacher / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        {"type": "sentence_transformers.models.Normalize", "path": ""},
    ]
    (teacher / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    out.mkdir()
    data = make_data(tmp_path / "data")
    facts = distill(teacher, data, task="feature-extraction", layers=1, options={"epochs": 3}, max_length=32, out=out)
    assert set(facts["losses"]) == {"attention_relation", "embedding", "hidden"}
    assert (out / "modules.json").read_bytes() == (teacher / "modules.json").read_bytes()
    task = TASKS["feature-extraction"]
    ids = load_model(out).encode(["jazz", "some jazz"], 32)
    np.testing.assert_allclose(np.linalg.norm(outputs(task.load(out), of_tokens(ids, 0)), axis=1), 1.0, atol=1e-6)


def test_labels_that_the_teacher_does_not_have_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = write_train(tmp_path / "data", [{"text": "jazz", "label": "polka"}])
    with pytest.raises(EdgekitError, match="'polka' is not one of its classes"):
        distill(checkpoint, data, task="text-classification", layers=1, options={}, max_length=32, out=tmp_path)


def test_a_lesson_halves_what_goes_through_at_once_where_rows_are_not_compared() -> None:
    source = passage_source([Passage(ids=[1, 2], start=1, prompt=0)], [0], [])

    def make(name: str, micro_batch: int | None = None) -> Lesson:
        return make_lesson(cast(Any, None), None, source, Teaching(weights={name: 1.0}, micro_batch=micro_batch))

    room = make("labels").room
    assert [room.halve(8, "cpu") for _ in range(3)] == [4, 2, 1]
    assert make("labels", 6).room.halve(8, "cpu") == 3
    assert make("labels").room.halve(3, "cpu") == 1, "an epoch's last batch has fewer rows"
    with pytest.raises(EdgekitError, match="the memory of cpu is full, and no fewer rows can go through it at once"):
        room.halve(8, "cpu")
    with pytest.raises(
        EdgekitError, match=r"cuda is full, and the loss embedding_distance compares all .* device = .cpu"
    ):
        make("embedding_distance").room.halve(8, "cuda")
