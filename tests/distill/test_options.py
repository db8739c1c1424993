"""What a recipe may say about training, and which layers a student keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgekit.distill import read_training
from edgekit.distill.options import choose_blocks, read_distill_options
from edgekit.errors import EdgekitError
from edgekit.recipe import Data, Recipe, Teacher


@pytest.mark.parametrize(
    ("depth", "layers", "kept"),
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),
        (6, 3, [0, 2, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (6, 1, [0]),
        (4, 2, [0, 3]),
        (12, 3, [0, 5, 11]),
    ],
)
def test_layers_are_evenly_spaced_from_first_to_last(depth: int, layers: int, kept: list[int]) -> None:
    assert choose_blocks(depth, layers, None, "student") == kept


def test_keep_overrides_the_rule() -> None:
    assert choose_blocks(6, None, [1, 4], "student") == [1, 4]


@pytest.mark.parametrize(
    ("layers", "keep", "message"),
    [
        (None, None, r"^student\.layers: missing"),
        (7, None, r"^student\.layers: 7: the teacher has 6"),
        (0, None, r"^student\.layers: 0"),
        (3, [0, 1], r"not both"),
        (None, [], r"^student\.keep"),
        (None, [3, 1], r"rising"),
        (None, [0, 6], r"0 to 5"),
        (None, [-1, 2], r"0 to 5"),
    ],
)
def test_impossible_layers_are_refused(layers: int | None, keep: list[int] | None, message: str) -> None:
    with pytest.raises(EdgekitError, match=message):
        choose_blocks(6, layers, keep, "student")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epoch": 3}, r"distill.epoch: unknown key \(did you mean epochs\?\)"),
        ({"epochs": "many"}, r"distill.epochs"),
        ({"epochs": 0}, r"distill.epochs"),
        ({"temperature": 0}, r"distill.temperature"),
        ({"losses": {"logit": 1.0}}, r"distill.losses.logit: unknown loss \(did you mean logits\?\)"),
        ({"losses": {"embedding": 1.0}}, r"distill.losses.embedding: does not apply"),
        ({"losses": {"logits": -1.0}}, r"distill.losses.logits"),
        ({"losses": {"logits": 0.0}}, r"distill.losses: every weight is zero"),
    ],
)
def test_a_table_that_cannot_work_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(EdgekitError, match=message):
        read_distill_options(table, "logits", "recipe.toml: distill")


def test_a_run_without_a_teacher_is_a_table_away() -> None:
    _, weights = read_distill_options({"losses": {"labels": 1}}, "logits", "distill")
    assert weights == {"labels": 1.0}


def test_fine_tuning_is_for_classifiers() -> None:
    recipe = Recipe(task="feature-extraction", teacher=Teacher(source=".", finetune={}), data=Data())
    with pytest.raises(EdgekitError, match=r"recipe.toml: teacher.finetune: .*text-classification"):
        read_training(recipe, "recipe.toml")


def test_checking_options_needs_no_torch() -> None:
    code = (
        "import sys; from edgekit.distill import read_training; from edgekit.recipe import Data, Recipe, Teacher;"
        "read_training(Recipe(task='text-classification', teacher=Teacher(source='.', finetune={}), data=Data()), 'r');"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
