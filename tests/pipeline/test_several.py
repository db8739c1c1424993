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
from edgekit.workspace import Product, file_sha256, open_product
from tests.architectures.families import make_family
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
    assert told is not None
    assert "by the mean of 2 teachers: one (0.25), two (0.75); it is judged against the first" in told
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


def test_assistants_teach_in_a_chain(tmp_path: Path) -> None:
    """Each is a step, and the student is what distilling from the last of them alone makes."""
    teacher = make_family("bert", tmp_path / "one", LABELS)
    make_data(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    alone = ("teacher={source='one'}",)
    recipe = load_recipe(tmp_path / "recipe.toml", (*alone, "distill.assistants=[{layers=3}, {layers=2}]"))
    session = open_session(tmp_path / "cache", tmp_path / "dist")
    prompts = gather_prompts(recipe, session)
    checked = check_recipe(recipe, prompts, session)
    student = distill(checked.settings, teacher, prompts, session)
    made = {len(product.facts["keep"]): product for product in products(tmp_path)}
    assert sorted(made) == [1, 2, 3]
    assert made[1].folder == student
    assert [made[layers].manifest["inputs"]["teacher"] for layers in (3, 2, 1)] == [
        model_digest(teacher),
        made[3].digest,
        made[2].digest,
    ]
    assert made[1].facts["chain"] == [4, 3, 2, 1]
    told = who_taught(recipe, student)
    assert told is not None
    assert told.endswith("through assistants: 4 to 3 to 2 to 1 layers; it is judged against the first teacher")
    plain = read_settings(load_recipe(tmp_path / "recipe.toml", alone))
    other = open_session(tmp_path / "other", tmp_path / "dist")
    last = distill(plain, made[2].folder, prompts, other)
    assert file_sha256(last / "model.safetensors") == file_sha256(student / "model.safetensors")
    distill(checked.settings, teacher, prompts, session)
    assert len(products(tmp_path)) == 3
    deep = load_recipe(tmp_path / "recipe.toml", (*alone, "distill.assistants=[{layers=9}]"))
    with pytest.raises(EdgekitError, match=r"distill.assistants.0.layers: 9: the teacher has 4 layers"):
        check_recipe(deep, prompts, session)
    straight = distill(plain, teacher, prompts, session)
    assert straight != student
    assert "chain" not in open_product(straight, "distill").facts


def products(folder: Path) -> list[Product]:
    return [open_product(path, "distill") for path in sorted((folder / "cache" / "distill").iterdir())]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("student={keep=[0]}",), r"distill.assistants: they are between a teacher and a student of fewer layers"),
        (("student='ngrams'",), r"distill.assistants: they are between a teacher and a student of fewer layers"),
        (("distill.assistants=[{layers=1}]",), r"distill.assistants: \[1, 1\] layers, .* fewer than the one before"),
        (("distill.assistants=[{layers=2}, {layers=3}]",), r"distill.assistants: \[2, 3, 1\] layers"),
        (("distill.assistants=[{layer=2}]",), r"distill.assistants.0.layer: unknown key"),
        (("distill.assistants=[{layers=0}]",), r"distill.assistants.0.layers: "),
        (("distill.losses={labels=1}",), r"distill.assistants: no loss reads a teacher's answers"),
        (("distill.control=true",), r"distill.control: its student begins from an assistant"),
        (("qad={assistants=[{layers=2}]}",), r"qad.assistants: .* write them in \[distill\]"),
    ],
)
def test_assistants_that_cannot_be_are_told(changes: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    overrides = ("teacher={source='one'}", "distill.assistants=[{layers=2}]", *changes)
    with pytest.raises(EdgekitError, match=said):
        read_settings(load_recipe(tmp_path / "recipe.toml", overrides))
