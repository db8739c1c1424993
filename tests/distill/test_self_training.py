"""Self-training: what is sure enough, of how many, whether it is kept, and runs that are stopped; of tiny classifiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.distill import few_labels, loop, read_finetune_options, self_training
from edgekit.distill.finetuning import FinetuneOptions, PseudoLabels, describe, passes
from edgekit.distill.self_training import choose, find_threshold
from edgekit.errors import EdgekitError
from edgekit.inputs import identity
from edgekit.prompts import PromptSet
from edgekit.recipe import load_recipe
from edgekit.workspace import file_sha256
from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint, make_data
from tests.distill.test_few_labels import Killed
from tests.distill.test_few_labels import train as fine_tune

CLASSIFY = "text-classification"
TEXTS = [
    pattern.format(f"{one} {two}") for one in SUBJECTS[:3] for two in SUBJECTS[3:6] for pattern in PATTERNS.values()
]


def test_the_threshold_is_the_lowest_that_is_right_often_enough() -> None:
    confidence = np.array([0.5, 0.9, 0.8, 0.7, 0.6, 0.7], np.float32)
    right = np.array([False, True, True, True, True, False])
    # By falling confidence: 1/1, 2/2, then two of 0.7 of which one is right (3/4), 4/5, 4/6.
    assert find_threshold(confidence, right, 0.9) == pytest.approx(0.8)
    assert find_threshold(confidence, right, 0.8) == pytest.approx(0.6)
    assert find_threshold(confidence, right, 0.6) == pytest.approx(0.5)
    assert find_threshold(confidence, ~right | (confidence < 0.65), 0.9) is None
    assert find_threshold(confidence[:1], right[:1], 0.9) is None


def test_no_class_has_more_than_the_median_class() -> None:
    said = [(0, 0.95), (0, 0.99), (0, 0.9), (0, 0.91), (1, 0.97), (1, 0.92), (2, 0.93), (2, 0.5)]
    probabilities = np.full((len(said), 4), 0.0, np.float32)
    for row, (best, confidence) in enumerate(said):
        probabilities[row] = (1 - confidence) / 3
        probabilities[row, best] = confidence
    assert choose(probabilities, "abcd", 0.9) == {1: "a", 0: "a", 4: "b", 5: "b", 6: "c"}
    assert choose(probabilities, "abcd", 0.999) == {}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "base")


def prepare(folder: Path) -> Path:
    """The tiny data, with texts whose labels are not told behind the train rows."""
    make_data(folder)
    with (folder / "train.jsonl").open("a", encoding="utf-8") as stream:
        stream.writelines(f"{json.dumps({'text': text, 'label': None})}\n" for text in TEXTS)
    return folder


def train(base: Path, data: Path, out: Path, stop: int | None = None, **more: Any) -> dict[str, Any]:
    """Fine-tune into `out`; killed at the step of this number, counted over all trainings of the run."""
    options = {"epochs": 30, "batch": 6, "holdout": 0.0, "learning_rate": 3e-3, "warmup": 0.0} | more
    return fine_tune(base, data, out, stop, **options)


def test_a_stopped_run_ends_in_the_same_bytes_and_texts_without_labels_teach(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part that is held out is read by no training of it; nine tenths of the labels that it learns from are right."""
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    data = prepare(tmp_path / "data")
    taught: list[dict[str, str]] = []
    trained = few_labels.train_on

    def watch(given: Any, source: Any, job: Any, first: Any) -> Any:
        taught.append({given.texts[row].text: given.texts[row].label for row in source.train})
        return trained(given, source, job, first)

    monkeypatch.setattr(few_labels, "train_on", watch)
    facts = train(base, data, tmp_path / "whole", pseudo_labels=True)
    told, last = facts["pseudo_labels"], taught[-1]
    assert told["kept"]
    assert told["of"] == len(TEXTS)
    assert 0 < told["texts"] == len(last) - 12
    assert [len(part) for part in taught[:3]] == [8, 8, 8]
    right = {
        pattern.format(f"{one} {two}"): label
        for one in SUBJECTS[:3]
        for two in SUBJECTS[3:6]
        for label, pattern in PATTERNS.items()
    }
    assert sum(last[text] == label for text, label in right.items() if text in last) >= 0.9 * told["texts"]
    wanted = file_sha256(tmp_path / "whole" / "model.safetensors")
    for stop in (130,):
        with pytest.raises(Killed):
            train(base, data, tmp_path / "stopped", stop, pseudo_labels=True)
    assert train(base, data, tmp_path / "stopped", pseudo_labels=True) == facts
    assert file_sha256(tmp_path / "stopped" / "model.safetensors") == wanted
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    train(base, data, tmp_path / "plain")
    assert file_sha256(tmp_path / "plain" / "model.safetensors") != wanted
    assert "pseudo" not in {path.name for path in (tmp_path / "whole").iterdir()}


def test_they_are_kept_where_held_out_rows_say_so(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are planted, what is tried of which rows and the choice are not."""
    data = prepare(tmp_path / "data")
    rows = [row for row in PromptSet(folder=data).split("train") if row.label is not None]
    wanted = np.eye(3, dtype=np.float32)[[LABELS.index(str(row.label)) for row in rows]]
    others = np.eye(3, dtype=np.float32)[[index % 3 for index in range(len(TEXTS))]] * 0.88 + 0.04
    tried: list[tuple[str, tuple[int, ...], int]] = []
    sure = {"plain": 0.8, "with": 0.9}

    def planted(learner: Any, name: str, kept: Any, labels: Any) -> Any:
        tried.append((name, tuple(kept), len(labels)))
        share = sure["with"] if labels else sure["plain"]
        return np.concatenate([wanted * share + (1 - share) / 3, others])

    monkeypatch.setattr(self_training._Learner, "answers", planted)
    monkeypatch.setattr(few_labels, "train_on", lambda _given, source, *_: ([0.0], {"rows": len(source.train)}))
    for with_them, kept in ((0.9, True), (0.7, False), (0.8, False)):
        sure["with"] = with_them
        tried.clear()
        found = train(base, data, tmp_path / f"{with_them}", pseudo_labels="auto")
        told = found["pseudo_labels"]
        assert told["kept"] == kept
        assert found["rows"] == 12 + (len(TEXTS) if kept else 0)
        scores = [float(((wanted * (1 - one) - (1 - one) / 3) ** 2).sum(1).mean()) for one in (0.8, with_them)]
        assert [told["tried"][name] for name in ("plain", "pseudo")] == pytest.approx(scores, abs=1e-5)
        parts = [part for name, part, _ in tried if name.startswith("plain")]
        assert sorted(row for part in parts for row in set(range(12)) - set(part)) == list(range(12))
        assert [part for name, part, count in tried if name.startswith("0-") and count] == parts
    sure["plain"] = 0.0
    found = train(base, data, tmp_path / "unsure", pseudo_labels={"when": "auto", "precision": 1.0})
    assert found["pseudo_labels"] == {"kept": False, "threshold": None, "texts": 0, "of": len(TEXTS)}
    assert "of held-out train rows too few" in next(describe(found))


def test_what_is_told_of_it() -> None:
    told = {"kept": True, "threshold": 0.812, "texts": 30, "of": 90, "tried": {"plain": 0.31, "pseudo": 0.25}}
    assert next(describe({"pseudo_labels": told})) == (
        "the teacher learned from 30 of 90 texts without a label, of whose class it is 81% sure or more: on train rows that were"
        " held out in turn the Brier score is 0.250 with them, 0.310 without"
    )
    assert next(describe({"pseudo_labels": told | {"kept": False}})).startswith(
        "the teacher learned from none of 90 texts without a label: on"
    )


def test_without_it_nothing_changes_and_what_cannot_be_is_told(project: Path) -> None:
    assert "pseudo_labels" not in identity(FinetuneOptions())
    assert passes(FinetuneOptions(pseudo_labels=PseudoLabels())) == 4 * 10
    assert passes(FinetuneOptions(pseudo_labels=PseudoLabels(when="auto"))) == 6 * 10
    for asked, message in (
        ({"pseudo_labels": "maybe"}, r"pseudo_labels: 'maybe': give true, \"auto\" or a table"),
        ({"pseudo_labels": {"precision": 1.5}}, r"pseudo_labels.precision: .*1"),
        ({"pseudo_labels": True, "processes": 2}, r"processes: pseudo_labels trains several classifiers in turn"),
    ):
        with pytest.raises(EdgekitError, match=message):
            read_finetune_options(CLASSIFY, asked, "r: teacher.finetune")
    with pytest.raises(EdgekitError, match="pseudo_labels: for text-classification alone"):
        read_finetune_options("text-generation", {"pseudo_labels": True}, "r: teacher.finetune")
    from edgekit.pipeline import read_settings

    text = project.read_text(encoding="utf-8").replace(
        'source = "teacher"\n', 'source = "teacher"\nfinetune = {pseudo_labels = true}\n'
    )
    project.write_text(text, encoding="utf-8")
    with pytest.raises(
        EdgekitError, match=r"pseudo_labels: the recipe has no texts without labels; name .*data.unlabelled"
    ):
        read_settings(load_recipe(project, []))
