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
# What people call their columns, most telling first.
TEXT_COLUMNS = ("text", "utterance", "sentence", "query", "question", "prompt", "content", "message", "title")
LABEL_COLUMNS = ("label", "intent", "category", "class", "target", "labels")


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


def write_recipe(
    out: Path,
    *,
    task: str,
    teacher: str,
    data: str,
    text: str | None,
    label: str | None,
    layers: int | None,
    finetune: bool,
) -> str:
    """Write a recipe for a user's own model and data, once it loads and its data can be read; returns its text.

    A single file is split by rule, a fifth to verify. Columns that are not named are guessed from the file's own names.
    Raises EdgekitError where a column cannot be guessed or the recipe does not load.
    """
    columns = _columns(Path(data))
    text = text or _guess("text", TEXT_COLUMNS, columns, data)
    if task == "text-classification":
        label = label or _guess("label", LABEL_COLUMNS, columns, data)
    folder = out.resolve().parent
    lines = [f"task = {_quote(task)}", "seed = 0", "", "[teacher]", f"source = {_quote(_relative(teacher, folder))}", ""]
    if finetune:
        lines += ["[teacher.finetune]", "epochs = 10", ""]
    if layers:
        lines += ["[student]", f"layers = {layers}", ""]
    lines += ["[data]", f"path = {_quote(_relative(data, folder))}", f"text = {_quote(text)}"]
    if task == "text-classification" and label:
        lines += [f"label = {_quote(label)}"]
    else:
        lines += ['label = ""']
    if Path(data).is_file():
        lines += ["split = { calibrate = 0.1, verify = 0.2 }"]
    content = "\n".join(lines) + "\n"
    scratch = out.with_name(f".{out.name}.partial.toml")
    try:
        scratch.write_text(content, encoding="utf-8", newline="\n")
        load_recipe(scratch)
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    return content


def _columns(path: Path) -> list[str]:
    """The column names of a table file, as far as its first line tells."""
    import csv
    import json

    if not path.is_file() or path.suffix == ".parquet":
        return []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        if path.suffix in {".jsonl", ".json"}:
            try:
                return list(json.loads(stream.readline()))
            except (json.JSONDecodeError, TypeError):
                return []
        return next(csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ","), [])


def _guess(key: str, usual: tuple[str, ...], columns: list[str], where: str) -> str:
    if not columns:
        return usual[0]
    for name in usual:
        for column in columns:
            if column.casefold() == name:
                return column
    raise EdgekitError(f"{where}: which column is the {key}? give --{key} (its columns: {', '.join(columns)})")


def _relative(place: str, folder: Path) -> str:
    """A local path as seen from the recipe's folder; anything else (a hub id, a package) stays as it is."""
    import os

    path = Path(place)
    if not path.exists():
        return place
    try:
        return Path(os.path.relpath(path.resolve(), folder)).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def _quote(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)


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
