"""Several teachers as one: the mean of probabilities, their weights, and teachers that do not go together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgekit.distill import distill as run_distill
from edgekit.distill import read_training, teachers
from edgekit.distill.divergences import LossOptions
from edgekit.distill.ensemble import Member, best_weights, join, mix
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.losses import LOSSES, compare_logits
from edgekit.distill.several import check_teachers
from edgekit.distill.teachers import Teacher
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.recipe import read_table_of
from edgekit.tasks import TASKS, outputs
from edgekit.workspace import file_sha256
from tests import steps
from tests.architectures.decoders import make_decoder
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint, make_data
from tests.distill.test_teaching import ROWS, Model, texts, tokens

TASK = "text-classification"
OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "batch": 4,
    "learning_rate": 3e-3,
    "holdout": 0.3,
    "losses": {"logits": 1.0, "hidden": 0.1},
}
TEXTS = [pattern.format(subject) for pattern in PATTERNS.values() for subject in SUBJECTS[:4]]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_mean_is_of_probabilities_at_the_loss_s_temperature(temperature: float) -> None:
    """Its softmax is the weighted mean, and KL to it has the weighted mean of the gradients of KL to each."""
    each, weights = draw(1, 5, 3, 7), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    one = mix(each, weights, temperature)
    mean = ((each / temperature).softmax(-1) * weights[:, None]).sum(1)
    torch.testing.assert_close((one / temperature).softmax(-1), mean)
    given, targets, options = draw(2, 5, 7), torch.zeros(5, dtype=torch.int64), LossOptions(temperature=temperature)
    alone = [compare_logits(LOSSES["logits"], given, each[:, k], targets, options)[1] for k in range(3)]
    found = compare_logits(LOSSES["logits"], given, one, targets, options)[1]
    torch.testing.assert_close(found, sum(w * g for w, g in zip(weights, alone, strict=True)))
    only = mix(each, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), temperature)
    torch.testing.assert_close((only / temperature).softmax(-1), (each[:, 1] / temperature).softmax(-1))


def test_the_best_weights_are_those_of_a_fine_grid() -> None:
    """And a teacher that is worse everywhere gets none."""
    logs = draw(3, 60, 2).sigmoid().log()
    found = best_weights(logs)
    shares = torch.linspace(0, 1, 2001, dtype=torch.float64)
    grid = -torch.stack([(logs.exp() @ torch.stack([w, 1 - w])).log().mean() for w in shares])
    assert float(found.sum()) == pytest.approx(1.0)
    assert -float((logs.exp() @ found).log().mean()) <= float(grid.min()) + 2e-6
    assert float(found[0]) == pytest.approx(float(shares[grid.argmin()]), abs=2e-2)
    assert 0.1 < float(found[0]) < 0.9
    worse = torch.stack([logs[:, 0], logs[:, 0] - 1.0], dim=1)
    assert float(best_weights(worse)[0]) > 0.999


@pytest.mark.parametrize("classes", [None, 3])
def test_a_lesson_of_two_teachers_is_the_mean_of_two_lessons(classes: int | None) -> None:
    """Of a decoder and a classifier, in micro-batches too: the teachers have other widths inside than each other's."""
    options = LossOptions(temperature=2.0)
    teaching = Teaching(weights={"logits": 1.0}, options=lambda _share: options, micro_batch=3)
    source = tokens(ROWS) if classes is None else texts(ROWS)

    def teacher(seed: int, words: int = 30) -> Teacher:
        model = Model(seed, classes=classes, words=words)
        return Teacher(ask=model, logits=lambda states: (states @ model.weight.T).detach())

    def learn(wanted: Teacher) -> list[Tensor]:
        student = Model(1, classes=classes)
        lesson = make_lesson(cast(Any, student), wanted, source, teaching)
        for part in lesson.parts(list(lesson.train), 0.0):
            part.backward()  # type: ignore[no-untyped-call]
        return student.gradients()

    both = learn(join([Member(teacher=teacher(2)), Member(teacher=teacher(3))], [0.25, 0.75]))
    alone = zip(learn(teacher(2)), learn(teacher(3)), strict=True)
    torch.testing.assert_close(both, [0.25 * one + 0.75 * other for one, other in alone])
    if classes is None:
        # The second pads its vocabulary: what is shared counts.
        learn(join([Member(teacher=teacher(2)), Member(teacher=teacher(3, words=32))], [0.25, 0.75]))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of random weights that is sure of what it says."""
    folder = make_checkpoint(tmp_path_factory.mktemp("first"), labels=LABELS)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 60
    # Larger than positions and types: what it says hangs on the words.
    weights["bert.embeddings.word_embeddings.weight"] *= 50
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def twin(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with its classes in another order and its tokens under other ids: it says the same of every text."""
    folder = tmp_path_factory.mktemp("twin")
    shutil.copytree(first, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][[2, 0, 1]].contiguous()
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    size, special = len(vocabulary), 4
    moved = [*range(special), *range(size - 1, special - 1, -1)]
    tokenizer["model"]["vocab"] = {token: moved[place] for token, place in vocabulary.items()}
    embedding = "bert.embeddings.word_embeddings.weight"
    weights[embedding] = weights[embedding][moved].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    rename(folder, [LABELS[2], LABELS[0], LABELS[1]])
    return folder


def rename(folder: Path, labels: Sequence[str]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": dict(enumerate(labels)), "label2id": {name: place for place, name in enumerate(labels)}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def teach(out: Path, teacher: Path, data: Path, others: Sequence[Path] = (), weights: Any = (), **more: Any) -> Any:
    """A student of one layer; returns the step's facts and what it answers."""
    out.mkdir()
    asked = {"task": TASK, "max_length": 32, "layers": 1, "options": OPTIONS, **more}
    inputs = steps.distill_inputs(teacher, data, **asked)
    inputs = replace(inputs, others=tuple(steps.content(other) for other in others), weights=weights)
    facts = run_distill(inputs, out)
    if asked["task"] != TASK:
        return facts, load_file(out / "model.safetensors")
    return facts, outputs(TASKS[TASK].load(out), of_tokens(load_model(out).encode(TEXTS, 32), 0))


def test_each_reads_texts_and_classes_in_its_own_way(
    first: Path, twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data")
    facts, alone = teach(tmp_path / "alone", first, data)
    assert "teachers" not in facts
    facts, both = teach(tmp_path / "both", first, data, [twin], (1.0, 3.0))
    assert facts["teachers"] == {"weights": [0.25, 0.75]}
    np.testing.assert_allclose(both, alone, atol=1e-3)
    # In another order the classes would have other numbers; what is read by the first one's tokens teaches otherwise.
    assert np.abs(alone - alone[:, [1, 2, 0]]).max() > 0.3
    monkeypatch.setattr(Member, "ask", lambda member, batch: replace(member, source=None).teacher.ask(batch))
    monkeypatch.setattr(teachers, "TEACHERS", {"live": teachers.live})
    _, misread = teach(tmp_path / "misread", first, data, [twin], (1.0, 3.0))
    assert np.abs(misread - alone).max() > 0.01


def test_held_out_rows_choose_the_weights(first: Path, tmp_path: Path) -> None:
    """One teacher is right, the other says the contrary: the first gets nearly all, and a second run makes the same bytes."""
    data = make_data(tmp_path / "data")
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    model = load_model(first)
    said = outputs(TASKS[TASK].load(first), of_tokens(model.encode([row["text"] for row in rows], 32), 0))
    for row, answer in zip(rows, said.argmax(1).tolist(), strict=True):
        row["label"] = LABELS[answer]
    (data / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    wrong = tmp_path / "wrong"
    shutil.copytree(first, wrong)
    rename(wrong, [LABELS[1], LABELS[2], LABELS[0]])
    facts, _ = teach(tmp_path / "one", first, data, [wrong], "validation")
    again, _ = teach(tmp_path / "two", first, data, [wrong], "validation")
    assert facts == again
    assert file_sha256(tmp_path / "one" / "model.safetensors") == file_sha256(tmp_path / "two" / "model.safetensors")
    assert facts["teachers"]["weights"][0] > 0.9
    right, bad, mean = facts["teachers"]["log_loss"]
    assert mean <= right + 1e-5 < bad
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    (unlabelled / "train.jsonl").write_text("".join(f'{{"text": "{row["text"]}"}}\n' for row in rows), encoding="utf-8")
    with pytest.raises(
        EdgekitError, match=r'^teacher.weights: "validation" chooses by held-out .*give labels, a larger'
    ):
        teach(tmp_path / "none", first, unlabelled, [wrong], "validation")


def test_decoders_teach_together(tmp_path: Path) -> None:
    """A weight of 0 is a teacher that is not there; the held-out tokens choose between two."""
    first, other = (make_decoder("llama", tmp_path / f"teacher{seed}", seed=seed) for seed in (0, 1))
    rows = [{"text": f"question {index}", "label": f" answer {index % 3}"} for index in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    asked = {"task": "text-generation", "options": OPTIONS | {"epochs": 1, "losses": {"logits": 1.0}}}
    _, alone = teach(tmp_path / "alone", first, tmp_path, **asked)
    _, same = teach(tmp_path / "same", first, tmp_path, [other], (1.0, 0.0), **asked)
    facts, both = teach(tmp_path / "both", first, tmp_path, [other], "validation", **asked)
    assert max(float((alone[key] - same[key]).abs().max()) for key in alone) < 1e-4
    assert max(float((alone[key] - both[key]).abs().max()) for key in alone) > 1e-3
    losses = facts["teachers"]["log_loss"]
    assert losses[2] <= min(losses[:2]) + 1e-5


def test_teachers_that_do_not_go_together_are_refused(first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(first, other)
    rename(other, [LABELS[0], LABELS[1], "musik"])
    with pytest.raises(
        EdgekitError, match=r"lacks the class 'music' \(did you mean musik\?\): teachers of one student"
    ):
        check_teachers(first, [other], TASK)
    with pytest.raises(EdgekitError, match=r"has a class of its own, 'musik'"):
        check_teachers(first, [other], TASK, LABELS[:2])
    one, two = make_decoder("llama", tmp_path / "one"), make_decoder("llama", tmp_path / "two", pattern=r"\w+")
    check_teachers(one, [one], "text-generation")
    with pytest.raises(EdgekitError, match=r"two: has another vocabulary than .*one: .*give a teacher with the same"):
        check_teachers(one, [two], "text-generation")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"teacher": {"weights": [1, 1]}}, r"r.toml: teacher.weights: one teacher needs none"),
        (
            {"teacher": {"others": [{"source": "b"}], "weights": [1]}},
            r"teacher.weights: \[1.*give one for each of the 2",
        ),
        (
            {"teacher": {"others": [{"source": "b"}], "weights": [0, 0]}},
            r"teacher.weights: \[0.*one at least is above 0",
        ),
        ({"teacher": {"others": [{"source": "b"}], "weights": "best"}}, r"teacher.weights"),
        ({"teacher": {"others": [{"source": "b", "weight": 1}]}}, r"teacher.others.0.weight: unknown key"),
        ({"teacher": {"others": [{}]}}, r"teacher.others.0.source: missing key"),
        (
            {"teacher": {"others": [{"source": "b"}]}, "student": None},
            r"teacher.others: .* makes no \[student\]; add one",
        ),
        ({"task": "feature-extraction"}, r"r: teacher.others: .* probabilities, which feature-extraction has none"),
        ({"qad": {}}, r"r: teacher.others: \[qad\] learns from one teacher"),
        ({"task": "text-generation", "distill": {"signals": "recorded"}}, r"teacher.others: one teacher is recorded"),
        ({"distill": {"losses": {"labels": 1, "hidden": 1}}}, r"teacher.others: no loss compares logits"),
        ({"distill": {"losses": {"logit_squares": 1}}}, r"distill.losses.logit_squares: the mean of several"),
        ({"distill": {"augment": {"typo": 0.1}}}, r"distill.augment.answers: several teachers"),
        ({"distill": {"confidence": 1}}, r"distill.confidence: weighs what one teacher says"),
        (
            {"teacher": {"others": [{"source": "b"}], "weights": "validation"}, "distill": {"holdout": 0}},
            r'teacher.weights: "validation" chooses by the train rows that distill.holdout keeps aside',
        ),
    ],
    ids=json.dumps,
)
def test_recipes_that_cannot_work_are_told(tables: dict[str, Any], said: str) -> None:
    made: dict[str, Any] = {
        "task": TASK,
        "teacher": {"others": [{"source": "b"}]},
        "student": {"layers": 2},
        "data": {"path": "data"},
    }
    made |= tables
    made["teacher"] = {"source": "a", **made["teacher"]}
    table = {key: value for key, value in made.items() if value is not None}
    with pytest.raises(EdgekitError, match=said):
        read_training(read_table_of(table, Path("r.toml")), "r")


def test_one_teacher_is_known_by_what_it_was(checkpoint: Path, tmp_path: Path) -> None:
    """What a recipe of one teacher follows from has no word of several, nor of TAID."""
    inputs = steps.distill_inputs(checkpoint, tmp_path, task=TASK, layers=1, options={}, max_length=32)
    known = identity(inputs)
    assert not {"others", "weights"} & known.keys()
    assert "taid" not in cast(dict[str, object], known["options"])
    assert {"others", "weights"} <= identity(
        replace(inputs, others=(steps.content(tmp_path),), weights=(1.0, 1.0))
    ).keys()
