"""A recipe of several teachers: found, checked before anything runs, part of what the student follows from, and told."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.cli.options import open_session
from edgekit.errors import EdgekitError
from edgekit.pipeline import check_recipe, distill, gather_prompts, read_settings
from edgekit.pipeline.origin import model_digest
from edgekit.pipeline.teacher import who_taught
from edgekit.recipe import load_recipe
from edgekit.workspace import open_product
from tests.conftest import LABELS, make_checkpoint, make_data

RECIPE = """
task = "text-classification"
[teacher]
source = "one"
weights = [1, 3]
[[teacher.others]]
source = "two"
[data]
path = "data"
max_length = 32
[student]
layers = 1
[distill]
epochs = 1
holdout = 0.0
"""


def test_all_teachers_count(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        make_checkpoint(tmp_path / name, labels=LABELS, seed=seed)
    make_data(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.toml")
    session = open_session(tmp_path / "cache", tmp_path / "dist")
    prompts = gather_prompts(recipe, session)
    checked = check_recipe(recipe, prompts, session)
    assert checked.teacher == tmp_path / "one"
    student = distill(checked.settings, tmp_path / "one", prompts, session)
    product = open_product(student, "distill")
    assert product.manifest["inputs"]["others"] == [model_digest(tmp_path / "two")]
    assert product.manifest["inputs"]["weights"] == [1, 3]
    assert product.facts["teachers"] == {"weights": [0.25, 0.75]}
    told = who_taught(recipe, student)
    assert (
        told
        == "the student was taught by the mean of 2 teachers: one (0.25), two (0.75); it is judged against the first"
    )
    assert distill(checked.settings, tmp_path / "one", prompts, session) == student
    alone = load_recipe(tmp_path / "recipe.toml", ("teacher={source='one'}",))
    single = distill(read_settings(alone), tmp_path / "one", prompts, session)
    assert single != student
    assert not {"others", "weights"} & open_product(single, "distill").manifest["inputs"].keys()
    assert who_taught(alone, single) is None
    make_checkpoint(tmp_path / "two", labels=[*LABELS[:2], "musik"], seed=1)
    with pytest.raises(EdgekitError, match=r"two: lacks the class 'music' \(did you mean musik\?\)"):
        check_recipe(recipe, prompts, session)
    with pytest.raises(EdgekitError, match=r"two: lacks the class 'music'"):
        distill(read_settings(recipe), tmp_path / "one", prompts, session)
    missing = load_recipe(tmp_path / "recipe.toml", ("teacher.others=[{source='three'}]",))
    with pytest.raises(
        EdgekitError, match=r"recipe.toml: teacher.others.0.source: no such folder: .*three; give a folder"
    ):
        check_recipe(missing, prompts, session)
    # Other names for classes hold for every teacher.
    mapped = load_recipe(tmp_path / "recipe.toml", ("data.labels={ musik = 'music' }",))
    check_recipe(mapped, gather_prompts(mapped, session), session)
