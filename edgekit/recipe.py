"""Recipe: what to make. A TOML file names the task, the teacher, the student, the data and the accuracy margins."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from edgekit.errors import EdgekitError
from edgekit.schema import parse, read_toml


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where the teacher comes from: a folder, a hub id ("org/name") or a package resource ("package:name/path").

    `finetune` is the raw table of `[teacher.finetune]`; where it is absent, the teacher is used as it is.
    """

    source: str
    revision: str | None = None
    finetune: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Student:
    """A student cut from the teacher: how many layers, or which ones (`keep`, indices into the teacher's layers)."""

    layers: int | None = None
    keep: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shares of one file's rows that go to the calibrate and verify splits; a row's text decides where it goes."""

    calibrate: float = 0.1
    verify: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Data:
    """The prompts: a folder with train / calibrate / verify files, one file to split, a `datasets` id, or a file per split.

    `out_of_scope` is the label of texts that belong to no class. `max_length` counts tokens, special tokens included.
    `near_duplicates` says what to do with texts of different splits that are nearly equal: refuse, or drop the text of the
    earlier split (verify keeps its texts).
    """

    path: str | None = None
    train: str | None = None
    calibrate: str | None = None
    verify: str | None = None
    text: str = "text"
    label: str | None = "label"
    labels: list[str] | None = None
    out_of_scope: str | None = None
    max_length: int = 128
    split: Split | None = None
    near_duplicates: Literal["refuse", "drop"] = "refuse"
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """How many prompts of the calibrate split to use (0: all) and how many go through the model at once."""

    prompts: int = 0
    batch: int = 16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to make. The tables `distill` and `accuracy` stay raw: the entries that they steer check them."""

    task: str
    teacher: Teacher
    data: Data
    seed: int = 0
    student: Student | None = None
    distill: dict[str, Any] = field(default_factory=dict)
    calibrate: Calibrate = Calibrate()
    accuracy: dict[str, Any] = field(default_factory=dict)
    license: str | None = None
    # Set by load_recipe, not by the file.
    name: str = ""
    folder: Path = Path()

    def locate(self, path: str) -> Path:
        """A path of the recipe, relative to the recipe's own folder."""
        return (self.folder / path).resolve()


_SET_BY_LOADER = ("name", "folder")


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe.toml; `overrides` are key=value pairs with dotted keys and TOML values (or bare words).

    Raises EdgekitError for a missing file, bad TOML, and unknown, missing or wrongly typed keys.
    """
    if path.is_dir():
        path = path / "recipe.toml"
    table = read_toml(path)
    for key in _SET_BY_LOADER:
        if key in table:
            raise EdgekitError(f"{path}: {key}: this key is set by edgekit; remove it")
    for override in overrides:
        _apply_override(table, override)
    name = path.resolve().parent.name if path.name == "recipe.toml" else path.stem
    recipe = parse(Recipe, table, str(path))
    import dataclasses

    return dataclasses.replace(recipe, name=name, folder=path.resolve().parent)


def default_recipe() -> Path:
    """recipe.toml of the current folder, else the packaged example."""
    here = Path("recipe.toml")
    return here if here.is_file() else packaged("examples/assistant/recipe.toml")


def packaged(relative: str) -> Path:
    """A file or folder that travels with edgekit: inside the installed package, or beside it in a source tree."""
    inside = Path(str(resources.files("edgekit"))) / "data" / relative
    return inside if inside.exists() else Path(__file__).resolve().parents[1] / relative


def _apply_override(table: dict[str, Any], override: str) -> None:
    import tomllib

    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise EdgekitError(f"--set {override}: expected key=value, such as --set distill.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise EdgekitError(f"--set {override}: {parent} is not a table")
        table = inner
    table[last] = value
