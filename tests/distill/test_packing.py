"""Packing: several texts in a row, none of which sees another. Losses and gradients are those of a row for each text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from edgekit.distill.batches import pack_rows, passage_source, score
from edgekit.distill.journal import FILE as JOURNAL
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.students import load_module
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import TeacherInputs, kept, live
from edgekit.errors import EdgekitError
from edgekit.pipeline import read_settings
from edgekit.recipe import load_recipe
from edgekit.tasks import TASKS
from edgekit.tasks.text_generation import Passage
from tests.architectures.decoders import make_decoder
from tests.steps import distill

TASK = TASKS["text-generation"]
ROOM = 32
# A text that is longer than there is room for has a row of its own.
LENGTHS = (3, 17, 9, 2, 40, 5, 8, 8, 24, 11)


def texts(lengths: Sequence[int] = LENGTHS) -> list[Passage]:
    """Running texts, and answers to prompts."""
    rng = Random(3)
    return [
        Passage(ids=[rng.randrange(3, 200) for _ in range(length)], start=1 if place % 2 else length - 1, prompt=place)
        for place, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_each_text_once(seed: int) -> None:
    rng = Random(seed)
    lengths = [rng.randrange(1, 50) for _ in range(rng.randrange(1, 60))]
    places = pack_rows(lengths, ROOM)
    taken = sorted((row, first, first + length) for (row, first), length in zip(places, lengths, strict=True))
    for (row, _, end), (other, first, _) in pairwise(taken):
        assert other > row or first == end, "behind each other, without a gap"
    assert all(end <= ROOM or first == 0 for _, first, end in taken)
    rows = {row for row, _, _ in taken}
    assert rows == set(range(len(rows)))
    fewest = max(sum(min(length, ROOM) for length in lengths) / ROOM, 1)
    assert len(rows) <= 11 / 9 * (fewest + sum(length > ROOM / 2 for length in lengths)) + 1


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 6}),
        ("gemma2", {"sliding_window": 6}),
    ],
)
def test_losses_and_gradients_are_those_of_single_rows(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Beside a teacher that answers live or was asked before; and of labels, what transformers says of each text by itself."""
    make_decoder(family, tmp_path / "student", **changes)
    make_decoder(family, tmp_path / "teacher", seed=1, **changes)
    read, rows = texts(), list(range(len(LENGTHS)))
    student = load_module(TASK, tmp_path / "student")
    tap = Tap(student, needs=frozenset({"hidden"}), blocks=[0, 1])
    asked = Tap(load_module(TASK, tmp_path / "teacher"), needs=frozenset({"hidden"}), blocks=[0, 1])

    def found(room: int, kind: Any, weights: dict[str, float], *, per_sequence: bool) -> tuple[float, list[Any]]:
        source = passage_source(read, rows, [], room)
        teacher = kind(TeacherInputs(folder=tmp_path / "teacher", source=source, open=lambda: asked))
        student.zero_grad()
        lesson = make_lesson(tap, teacher, source, Teaching(weights=weights, per_sequence=per_sequence, micro_batch=6))
        total = 0.0
        for part in lesson.parts(rows, 0.0):
            part.backward()
            total += float(part.detach())
        return total, [weight.grad.clone() for weight in student.parameters() if weight.grad is not None]

    for kind, per_sequence in ((live, False), (kept, True)):
        weights = {"logits": 1.0, "labels": 0.5, "hidden": 1.0}
        whole, wanted = found(0, kind, weights, per_sequence=per_sequence)
        packed, given = found(ROOM, kind, weights, per_sequence=per_sequence)
        assert packed == pytest.approx(whole, abs=1e-5)
        for mine, theirs in zip(given, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    loss, _ = found(ROOM, live, {"labels": 1.0}, per_sequence=False)
    model, surprises = TASK.load(tmp_path / "student").model, list[torch.Tensor]()
    for passage in read:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([passage.ids])).logits[0, passage.start - 1 : -1]  # type: ignore[operator]
        said = torch.tensor(passage.ids[passage.start :])
        surprises += torch.nn.functional.cross_entropy(logits, said, reduction="none")
    assert loss == pytest.approx(float(torch.stack(surprises).mean()), abs=1e-5)


def test_a_packed_training_is_the_same_one_in_fewer_rows(tmp_path: Path) -> None:
    """Of many short texts and a few long ones."""
    make_decoder("llama", tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    rows = [
        {"text": f"what follows {place}", "label": "it is so " * (1 + 20 * (place % 16 == 0))} for place in range(48)
    ]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = {}
    for packing in (False, True):
        out = tmp_path / str(packing)
        out.mkdir()
        options = {"epochs": 2, "batch": 16, "holdout": 0.1, "packing": packing, "precision": "fp32"}
        distill(
            tmp_path / "teacher", tmp_path / "data", task=TASK.NAME, layers=1, max_length=128, options=options, out=out
        )
        lines[packing] = [json.loads(line) for line in (out / JOURNAL).read_text(encoding="utf-8").splitlines()]
    for packed, single in zip(lines[True], lines[False], strict=True):
        assert packed["loss"] == pytest.approx(single["loss"], rel=1e-4)
        assert packed.keys() == single.keys()
        if "score" in packed:
            assert packed["score"] == pytest.approx(single["score"], rel=1e-4)
    read = texts((4,) * 15 + (120,))
    assert score(read).tokens.numel() == 16 * 120
    assert score(read, room=128).tokens.shape == (2, 128)


def test_only_decoders_pack(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'task = "text-classification"\n[teacher]\nsource = "t"\n[student]\nlayers = 1\n[data]\npath = "d"\n'
        "[distill]\npacking = true\n"
    )
    with pytest.raises(EdgekitError, match=r"distill\.packing: for text-generation alone"):
        read_settings(load_recipe(recipe))
