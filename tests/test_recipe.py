"""Recipes: what a file may say, what --set changes, and what `init` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.recipe import find_recipes, load_recipe, packaged

GOOD = """task = "text-classification"
seed = 7

[teacher]
source = "models/teacher"

[student]
layers = 3

[data]
path = "data"
max_length = 64
split = { calibrate = 0.1, verify = 0.2 }

[distill]
epochs = 12
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "my project" / "recipe.toml"
    place.parent.mkdir()
    place.write_text(GOOD, encoding="utf-8")
    return place


def test_good_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe == load_recipe(path.parent)
    assert (recipe.task, recipe.seed, recipe.name, recipe.path) == ("text-classification", 7, "my project", path)
    assert recipe.student is not None
    assert recipe.student.layers == 3
    assert recipe.distill == {"epochs": 12}
    assert recipe.locate("data") == path.parent / "data"
    assert recipe.locate("~/data") == Path.home() / "data"
    other = path.with_name("small.toml")
    other.write_text(GOOD)
    assert load_recipe(other).name == "small"


def test_overrides(path: Path) -> None:
    recipe = load_recipe(
        path,
        (
            "distill.epochs=3",
            "seed = 1",
            "teacher.source=./other folder",
            'data.label="x=y"',
            "teacher.finetune.epochs=2",
        ),
    )
    assert recipe.distill == {"epochs": 3}
    assert (recipe.seed, recipe.teacher.source, recipe.data.label) == (1, "./other folder", "x=y")
    assert recipe.teacher.finetune == {"epochs": 2}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "--set seed: expected key=value"),
        ("=1", "expected key=value"),
        ("sed=1", "recipe.toml: sed: unknown key (did you mean seed?)"),
        ("seed=abc", "recipe.toml: seed: should be a valid integer, got 'abc'"),
        ("seed.x=1", "--set seed.x=1: seed is not a table"),
        ("student.layer=1", "recipe.toml: student.layer: unknown key (did you mean layers?)"),
        ("data.max_length=2", "data.max_length: should be greater than or equal to 3, got 2"),
        ("seed=-1", "seed: should be greater than or equal to 0, got -1"),
        ("student.layers=0", "student.layers: should be greater than or equal to 1, got 0"),
        ("student.keep=[0]", "student: give either layers, such as 3, or keep, such as [0, 2, 5]"),
        ("student={}", "student: give either layers"),
        ("student={heads=4, depth='influence'}", "student.depth: picks so many layers as `layers` says"),
        ('student={kind="ngrams", hidden=64}', "student.hidden: a student of n-grams has no layers; remove this key"),
        ('student={kind="ngrams", depth="influence"}', "student.depth: a student of n-grams has no layers"),
        ("student.positions=32", "student.positions: 32: texts have up to 64 tokens (data.max_length); give as many"),
        ("student.depth=odd", "student.depth: should be 'even' or 'influence', got 'odd'"),
        ("student=ngram", "student.kind: should be 'cut' or 'ngrams', got 'ngram'"),
        ('student={kind="ngrams", layers=3}', "student: a student of n-grams has no layers; remove layers and keep"),
        ("student.vocabulary=0", "student.vocabulary: should be greater than or equal to 1, got 0"),
        (
            'student={kind="ngrams", vocabulary=9}',
            "student.vocabulary: a student of n-grams keeps its teacher's tokens",
        ),
        ("student.buckets=4096", "student.buckets: for kind = 'ngrams' alone; remove it"),
        ("data.split.verify=0.95", "data.split: calibrate and verify take all rows"),
        ("data.split.verify=0", "data.split.verify: should be greater than 0, got 0"),
        ("data.near_duplicates=ignore", "data.near_duplicates: should be 'refuse' or 'drop', got 'ignore'"),
        ("calibrate.batch=0", "calibrate.batch: should be greater than or equal to 1, got 0"),
        ("name=x", "recipe.toml: name: this key is set by edgekit; remove it"),
        ("path=x", "recipe.toml: path: this key is set by edgekit; remove it"),
        ("teacher=x", "recipe.toml: teacher: expected a table, got 'x'"),
        ("distill=x", "recipe.toml: distill: "),
    ],
)
def test_bad_key(path: Path, override: str, said: str) -> None:
    with pytest.raises(EdgekitError) as told:
        load_recipe(path, (override,))
    assert said in told.value.message
    assert "\n" not in told.value.message


CREATED = """task = "text-generation"
[teacher.create]
hidden = 64
[data]
path = "data"
"""


def test_a_teacher_that_is_created(path: Path) -> None:
    path.write_text(CREATED)
    recipe = load_recipe(path)
    assert recipe.teacher.source is None
    assert recipe.teacher.create == {"hidden": 64}
    for override, said in {
        "teacher.source=org/name": "teacher: give either source, a model that is there, or a [teacher.create] table",
        "teacher.finetune.epochs=1": "a created model is trained already; remove [teacher.finetune]",
        "teacher={}": "teacher: give either source",
    }.items():
        with pytest.raises(EdgekitError, match=re.escape(said)):
            load_recipe(path, (override,))


def test_generation_has_no_labels_unless_it_is_told(path: Path) -> None:
    path.write_text(CREATED)
    assert load_recipe(path).data.label is None
    assert load_recipe(path, ("data.label=kind",)).data.label == "kind"
    path.write_text(GOOD)
    assert load_recipe(path).data.label == "label"


def test_what_only_generation_has(path: Path) -> None:
    for key in ("answer", "choices", "messages"):
        with pytest.raises(EdgekitError, match=rf"recipe\.toml: data\.{key}: for text-generation only"):
            load_recipe(path, (f"data.{key}=column",))
    path.write_text(CREATED)
    assert load_recipe(path, ("data.answer=a", "data.choices=b")).data.answer == "a"
    with pytest.raises(EdgekitError, match=r"data\.answer: a conversation ends with its wanted answer"):
        load_recipe(path, ("data.answer=a", "data.messages=b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "task: missing key"),
        ('task = "x"', "teacher: missing key"),
        ('task = "x"\n[teacher]\nsource = "a"', "data: missing key"),
        ('task = "x', "not valid TOML"),
    ],
)
def test_incomplete_file(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(EdgekitError) as told:
        load_recipe(path)
    assert told.value.message.startswith(f"{path}: ")
    assert said in told.value.message


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"recipe\.toml: no such file"):
        load_recipe(tmp_path)


def test_recipes_are_found_by_what_they_hold(tmp_path: Path) -> None:
    for name, content in {
        "mine.toml": 'task = "x"', "pyproject.toml": "[project]", "broken.toml": "task =", "deep/recipe.toml": 'task = "x"',
        "deep/other.toml": 'task = "x"', "latin.toml": "task = 'é'",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    assert [path.relative_to(tmp_path).as_posix() for path in find_recipes(tmp_path)] == [
        "deep/recipe.toml",
        "mine.toml",
    ]


@pytest.mark.parametrize(
    "recipe",
    [*sorted(packaged("examples").rglob("recipe.toml")), packaged("examples/assistant/small.toml")],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_examples_load(recipe: Path) -> None:
    assert load_recipe(recipe).license


@pytest.mark.parametrize("version", ["1.2.0", "0.0.1", "10.20.30", "999999999.0.0"])
def test_a_bundle_may_have_a_version(tmp_path: Path, version: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'task = "text-classification"\n[teacher]\nsource = "t"\n[data]\npath = "d"\n[bundle]\nversion = "{version}"\n'
    )
    loaded = load_recipe(recipe)
    assert loaded.bundle is not None
    assert loaded.bundle.version == version


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bundle.version=1.2", "bundle.version: should be a valid string"),
        ('bundle.version="1.2"', "bundle.version: '1.2': not a version; write three numbers, such as 1.2.0"),
        ('bundle.version="1.02.0"', "not a version"),
        ('bundle.version="1.2.0-rc.1"', "not a version"),
        ('bundle.version="1.2.0\\n"', "not a version"),
        ('bundle.version="1.2.\u0663"', "not a version"),
        ('bundle.version="1234567890.0.0"', "not a version"),
        (
            'bundle={version="1.2.0", compatible_with="1.3.0"}',
            "bundle.compatible_with: 1.3.0: newer than version 1.2.0",
        ),
        ('bundle={compatible_with="1.0.0"}', "bundle.version: missing"),
    ],
)
def test_a_version_that_is_none(tmp_path: Path, override: str, message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('task = "text-classification"\n[teacher]\nsource = "t"\n[data]\npath = "d"\n')
    with pytest.raises(EdgekitError) as raised:
        load_recipe(recipe, (override,))
    assert message in raised.value.message
