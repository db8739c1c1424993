"""The linear model that is the line of a report: it learns, its graph answers what was fitted, and its files are the same again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.formats.onnx.hashed import Hashed, hashed_graph
from edgekit.hashing import rows_of
from edgekit.inputs import Content
from edgekit.linear import FILE, LinearInputs, fit, is_drawn
from edgekit.modalities import text
from edgekit.recipe import Data, Recipe, Teacher
from edgekit.runtimes import onnxruntime
from edgekit.tasks import text_classification
from tests.conftest import LABELS

OUTSIDE = "none"
THINGS = {
    "light_on": ["turn on the light", "light on in the hall", "on with the lamp"],
    "light_off": ["turn off the light", "light off in the hall", "off with the lamp"],
    "music": ["play some jazz", "music in the kitchen", "a song please"],
    OUTSIDE: ["what is the time", "how far is the moon", "tell me a story"],
}
PLACES = ["now", "at once", "for me", "tonight", "if you can", "again", "as before", "and be quick"]


def make_prompts(folder: Path, *, labelled: bool = True) -> Path:
    """Every text at every place: the last place calibrates, the one before it verifies."""
    folder.mkdir()
    splits = {"train": PLACES[:-2], "verify": PLACES[-2:-1], "calibrate": PLACES[-1:]}
    for name, places in splits.items():
        rows = [
            {"text": f"{thing} {place}", "label": label if labelled or name != "train" else None}
            for place in places
            for label, things in THINGS.items()
            for thing in things
        ]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def fitted(checkpoint: Path, prompts: Path, out: Path) -> dict[str, object]:
    out.mkdir()
    inputs = LinearInputs(
        model=Content(path=checkpoint, digest=""),
        prompts=Content(path=prompts, digest=""),
        task="text-classification",
        out_of_scope=OUTSIDE,
        max_length=16,
    )
    return fit(inputs, out)


def test_it_learns_the_labels_and_gives_the_same_bytes_again(checkpoint: Path, tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "prompts")
    facts, again = (fitted(checkpoint, prompts, tmp_path / name) for name in ("first", "second"))
    assert facts == again
    assert facts["classes"] == sorted(LABELS)
    files = [path.name for path in sorted((tmp_path / "first").iterdir())]
    assert files == [FILE, text.TOKENIZER]
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in files)
    rows = [json.loads(line) for line in (prompts / "verify.jsonl").read_text().splitlines()]
    encoded = text.read_shipped(tmp_path / "first", [row["text"] for row in rows], {}, int(str(facts["pad_id"])))
    logits = onnxruntime.outputs(tmp_path / "first" / FILE, encoded.prompts, options={"threads": 1})
    settings, classes = facts["settings"], facts["classes"]
    assert isinstance(settings, dict)
    assert isinstance(classes, list)
    told = text_classification.answer(logits, settings, classes)
    right = [label == row["label"] for label, row in zip(told, rows, strict=True)]
    assert sum(right) >= len(rows) - 1
    inside = [index for index, row in enumerate(rows) if row["label"] != OUTSIDE]
    assert all(classes[int(logits[index].argmax())] == rows[index]["label"] for index in inside)


def test_without_labels_there_is_no_line(checkpoint: Path, tmp_path: Path) -> None:
    facts = fitted(checkpoint, make_prompts(tmp_path / "prompts", labelled=False), tmp_path / "out")
    assert facts["classes"] == []
    assert not list((tmp_path / "out").iterdir())


GRAMS, SPELLING = ((0,), (0, 1), (0, 2)), ((0, 1), (0, 1, 2))


def answers(model: Hashed, ids: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What the graph must answer, from the rows of `rows_of`."""
    words = rows_of(np.array([ids]) + 1, GRAMS, len(model.codes)).ravel()
    letters = rows_of(model.spelled[list(ids)].astype(np.int64), SPELLING, len(model.codes)).ravel()
    rows = np.concatenate([words, letters])
    rows = rows[rows > 0]
    return np.asarray(model.codes[rows].astype(np.float64).sum(axis=0) * model.scales / np.sqrt(len(rows)))


def test_the_graph_adds_up_the_rows_of_each_text_whatever_is_beside_it(tmp_path: Path) -> None:
    """Alone, in a batch that is filled up behind or before it, and of ids of the largest vocabularies' size."""
    rng = np.random.default_rng(0)
    size = 300
    spelled = rng.integers(0, 3, (size, 5)).cumprod(axis=1).clip(max=1) * rng.integers(1, 256, (size, 5))
    model = Hashed(
        spelled=spelled.astype(np.uint8),
        grams=GRAMS,
        spelling=SPELLING,
        codes=rng.integers(-127, 128, (1024, 4)).astype(np.int8),
        scales=rng.uniform(0.01, 0.1, 4).astype(np.float32),
    )
    graph = hashed_graph(model)
    onnx.checker.check_model(graph, full_check=True)
    assert len(graph.graph.node) <= 26
    table = next(numpy_helper.to_array(one) for one in graph.graph.initializer if one.name == "table")
    assert not table[0].any()
    onnx.save(graph, str(tmp_path / FILE))
    texts = [[5], [7, 299, 12, 12], [0] * 9, rng.integers(0, size, 6).tolist()]
    alone = onnxruntime.outputs(tmp_path / FILE, text.of_tokens(texts, 0).prompts, options={"threads": 1})
    for found, ids in zip(alone, texts, strict=True):
        assert found == pytest.approx(answers(model, ids), rel=1e-5, abs=1e-4)
    session = onnxruntime.load(tmp_path / FILE, {"threads": 1})
    for ids, found in zip(texts, alone, strict=True):
        for before, behind in ((0, 3), (2, 0)):
            given = np.array([3] * before + ids + [3] * behind, np.int64)
            mask = np.array([0] * before + [1] * len(ids) + [0] * behind, np.int64)
            assert np.array_equal(session.run({"input_ids": given, "attention_mask": mask}), found)


@pytest.mark.parametrize(
    ("task", "rows", "labels", "drawn"),
    [
        ("text-classification", {"train": 9}, ["a", "b"], True),
        ("text-classification", {"train": 9}, ["a"], False),
        ("text-classification", {"calibrate": 9}, ["a", "b"], False),
        ("feature-extraction", {"train": 9}, ["a", "b"], False),
    ],
)
def test_where_a_report_has_the_line(task: str, rows: dict[str, int], labels: list[str], drawn: bool) -> None:
    recipe = Recipe(task=task, teacher=Teacher(source="x"), data=Data())
    assert is_drawn(recipe, {"rows": rows, "labels": labels}) is drawn
