"""Where prompts come from and which split each goes to: a file per split, a folder, a hub's data set, or one file by rule."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import stored
from edgekit.duplicates import words
from edgekit.errors import EdgekitError, first_line
from edgekit.prompts.prompt import SPLITS, Prompt
from edgekit.prompts.rows import Reading, read_prompts
from edgekit.recipe import Recipe, Split
from edgekit.stored import choose
from edgekit.tables import KINDS, Row, Rows, Table, kind_of, read_table

if TYPE_CHECKING:
    import datasets

# What data sets on a hub call the splits.
HUB_SPLITS = {"train": "train", "calibrate": "validation", "verify": "test"}
# What people call the files of the splits.
SPLIT_FILES = {
    "train": ("train", "training"),
    "calibrate": ("calibrate", "calibration", "validation", "valid", "val", "dev"),
    "verify": ("verify", "test", "testing"),
}


def sources(recipe: Recipe, splits: Sequence[str]) -> dict[str, Path | str]:
    """Where each needed split comes from: a file per split, or "*" for one source that is split by rule.

    A `datasets` id ("org/name", "org/name@revision") stays a string. A folder without a file for calibrate gives it a share of
    its train file, which both then name. Raises EdgekitError naming the missing key or file.
    """
    data = recipe.data
    if own := _own_files(recipe, splits):
        files = {name: _existing(recipe, own, name) for name in own}
        return {**sources(recipe, [name for name in splits if name not in own]), **files}
    if "recover" in splits:
        return sources(recipe, _with_train(splits))
    named = {name: getattr(data, name) for name in SPLITS if getattr(data, name)}
    if named and data.path:
        raise EdgekitError(f"{recipe.path}: data: give either path or a file per split, not both")
    if named:
        return {name: _existing(recipe, named, name) for name in splits}
    if not data.path:
        raise EdgekitError(f"{recipe.path}: data.path: missing key; name a folder, a file or a datasets id")
    place = recipe.locate(data.path)
    if place.is_dir():
        return {name: path for name, path in folder_files(place, splits).items() if path is not None}
    if place.is_file():
        return {"*": place}
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", data.path) and not data.path.startswith("."):
        return {"*": data.path}
    raise EdgekitError(f"{recipe.path}: data.path: no such file or folder: {place}")


def _own_files(recipe: Recipe, splits: Sequence[str]) -> dict[str, str]:
    """The splits that are files of their own, beside the three."""
    named = {"final": recipe.data.final, "recover": recipe.data.recover}
    return {name: file for name, file in named.items() if name in splits and isinstance(file, str)}


def _with_train(splits: Sequence[str]) -> list[str]:
    """The three splits that are read where a share of train's rows is held out."""
    return [name for name in SPLITS if name in {"train", *splits}]


def folder_files(folder: Path, splits: Sequence[str] = SPLITS) -> dict[str, Path]:
    """A folder's file for each split, by the names that people give them; train's for calibrate where that has none.

    Raises EdgekitError where a split has no file, or two.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and kind_of(path)[0]]
    stems = {path: path.name.split(".")[0].casefold() for path in files}
    found = {name: [path for path in files if stems[path] in SPLIT_FILES[name]] for name in SPLITS}
    if not found["calibrate"]:
        found["calibrate"] = found["train"]
    for name in splits:
        if not found[name]:
            there = f" (there: {', '.join(path.name for path in files[:5])})" if files else ""
            raise EdgekitError(
                f"{folder}: no {name} split in it{there}; expected {name}.csv, or {', '.join(SPLIT_FILES[name][1:])}, with one"
                f" of {', '.join(KINDS)}"
            )
        if len(found[name]) > 1:
            told = " and ".join(path.name for path in found[name][:2])
            raise EdgekitError(f"{folder}: {told} are both its {name} split; move one away, or name it as data.{name}")
    return {name: found[name][0] for name in splits}


def _existing(recipe: Recipe, named: Mapping[str, str], name: str) -> Path:
    if name not in named:
        raise EdgekitError(f"{recipe.path}: data.{name}: missing key; this recipe needs a {name} split")
    path = recipe.locate(named[name])
    if not path.is_file():
        raise EdgekitError(f"{recipe.path}: data.{name}: no such file: {path}")
    return path


def read_splits(recipe: Recipe, splits: Sequence[str], folder: Path | None = None) -> dict[str, Reading]:
    """The rows of each needed split as prompts; folder: see `read_prompts`.

    Raises EdgekitError as `sources`, `read_table` and `read_prompts` do."""
    if own := _own_files(recipe, splits):
        places = {name: _existing(recipe, own, name) for name in own}
        read_own = {
            name: read_prompts(_table(recipe, places[name]), recipe.data, file, folder) for name, file in own.items()
        }
        return {**read_splits(recipe, [name for name in splits if name not in own], folder), **read_own}
    if "recover" in splits:
        return _hold_out(read_splits(recipe, _with_train(splits), folder), recipe, splits)
    where, data = sources(recipe, splits), recipe.data
    if isinstance(where.get("*"), str):
        return _read_hub(str(where["*"]), recipe, splits, folder)
    read: dict[Path, Reading] = {}
    for path in map(Path, where.values()):
        if path not in read:
            read[path] = read_prompts(_table(recipe, path), data, str(path), folder)
    if "*" not in where:
        parts = {name: read[Path(where[name])] for name in splits}
        carved = data.path is not None and "calibrate" in splits and _from_train(recipe)
        return _carve(parts, recipe, splits) if carved else parts
    rule = data.split
    if rule is None:
        raise EdgekitError(
            f"{recipe.path}: data.split: missing key; one file needs shares, such as split = {{ calibrate = 0.1, verify = 0.2 }}"
        )
    whole = read[Path(where["*"])]
    parts = _divide(whole, recipe, splits, calibrate=rule.calibrate, verify=rule.verify)
    return {name: parts[name] for name in splits}


def _table(recipe: Recipe, path: Path) -> Table:
    return read_table(path, delimiter=recipe.data.delimiter, encoding=recipe.data.encoding)


def _from_train(recipe: Recipe) -> bool:
    """Whether calibrate is a share of a folder's train file."""
    found = folder_files(recipe.locate(str(recipe.data.path)), ("calibrate",))
    return found["calibrate"].name.split(".")[0].casefold() in SPLIT_FILES["train"]


def _carve(parts: dict[str, Reading], recipe: Recipe, splits: Sequence[str]) -> dict[str, Reading]:
    """Calibrate as a share of what is train's rows."""
    share = (recipe.data.split or Split()).calibrate
    divided = _divide(parts["calibrate"], recipe, ("train", "calibrate"), calibrate=share)
    carved = parts | {"train": divided["train"], "calibrate": divided["calibrate"]}
    return {name: carved[name] for name in splits}


def _divide(
    whole: Reading, recipe: Recipe, splits: Sequence[str], *, calibrate: float, verify: float = 0.0
) -> dict[str, Reading]:
    """Send each row to the split that the hash of its group, or else of its words, names.

    So a text stays in its split when others are added, a group is in one split, and so are texts that differ by their numbers
    alone, if their labels agree. A label that a split would not have gets its rows that are nearest to that split's share.
    """
    rows = whole.prompts
    sides = _Sides(rows=rows, recipe=recipe, verify=verify, calibrate=calibrate)
    moved = _give_every_label(sides) if recipe.data.label else {}
    parts = {name: array("q") for name in SPLITS}
    for index, unit in enumerate(sides.units()):
        parts[moved.get(unit) or sides.home(unit)].append(index)
    empty = [name for name in splits if not parts[name]]
    if empty and 2 * (units := len(set(map(hash, sides.units())))) < len(rows):
        raise EdgekitError(
            f"{recipe.path}: data: its {len(rows)} rows are {units} texts that differ by more than numbers, case,"
            f" punctuation and order, or groups, and none falls to {empty[0]}; add other texts, or name a file for each split"
        )
    # What was left out or converted before belongs to no split yet; it is told once.
    readings = {name: Reading(prompts=choose(rows, part)) for name, part in parts.items()}
    first = next(name for name in SPLITS if name in splits)
    return readings | {first: replace(whole, prompts=readings[first].prompts)}


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """What decides which split each row of one file goes to: shares of verify and calibrate, the rest is train's."""

    rows: Sequence[Prompt]
    recipe: Recipe
    verify: float
    calibrate: float

    def units(self) -> Iterator[str]:
        """The unit of each row, in the order of rows."""
        return (_unit(row, self.recipe.task) for row in self.rows)

    def place(self, unit: str) -> float:
        """Where a unit falls, from 0 to 1."""
        return _hash(self.recipe.seed, unit)

    def home(self, unit: str) -> str:
        """The split that a unit falls to."""
        place = self.place(unit)
        return "verify" if place < self.verify else "calibrate" if place < self.verify + self.calibrate else "train"

    def middles(self) -> dict[str, float]:
        """The middle of each split's share; of train too where nobody needs it: the others have the same rows in any case."""
        both, verify = self.verify + self.calibrate, self.verify
        middles = {"train": (1 + both) / 2, "calibrate": verify + self.calibrate / 2, "verify": verify / 2}
        return {name: middles[name] for name in (SPLITS if verify else ("train", "calibrate"))}


def _hold_out(parts: Mapping[str, Reading], recipe: Recipe, splits: Sequence[str]) -> dict[str, Reading]:
    """A share of train's rows as the recovery split, by the hash of what decides a row's split; no label loses its last row."""
    whole, share = parts["train"], recipe.data.recover
    assert isinstance(share, float)
    rows, units = whole.prompts, defaultdict[bytes, list[int]](list)
    for index, row in enumerate(rows):
        # The hash that orders units, and one that tells apart those where it is the same.
        drawn = hashlib.sha256(f"{recipe.seed}:recover {_unit(row, recipe.task)}".encode()).digest()
        units[drawn[:16]].append(index)
    left = Counter(row.label for row in rows)
    kept, held = list[int](), list[int]()
    for _, those in sorted(units.items()):
        taken = Counter(rows[index].label for index in those)
        fits = len(held) + len(those) <= share * len(rows)
        if fits and all(left[label] > count for label, count in taken.items()):
            left -= taken
            held += those
        else:
            kept += those
    train = replace(whole, prompts=choose(rows, sorted(kept)))
    made = {**parts, "train": train, "recover": Reading(prompts=choose(rows, sorted(held)))}
    return {name: made[name] for name in splits}


def _unit(row: Prompt, task: str) -> str:
    """What decides a row's split: its group, or its words, with numbers only where they may be what is asked for."""
    if row.group is not None:
        return f"group {row.group}"
    key = " ".join(sorted(words(row.text)))
    if not any(letter.isdigit() for letter in row.text):
        return key
    if row.label is None and task == "text-generation":
        return f"{key} {row.text}"
    return key if row.label is None else f"{key} as {row.label}"


def _hash(seed: int, unit: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{unit}".encode()).digest()[:8], "big") / 2**64


def _give_every_label(sides: _Sides) -> dict[str, str]:
    """Units that move into a split that lacks a label of theirs, from one that has another unit of it, and where to.

    Held in memory are units of labels that some split lacks.
    """
    middles, there = sides.middles(), defaultdict[str, set[str]](set)
    for row, unit in zip(sides.rows, sides.units(), strict=True):
        there[str(row.label)].add(sides.home(unit))
    lacking = {label for label, homes in there.items() if not middles.keys() <= homes}
    having, labels = defaultdict[str, dict[str, None]](dict), defaultdict[str, set[str | None]](set)
    for row, unit in zip(sides.rows, sides.units(), strict=True) if lacking else ():
        if str(row.label) in lacking:
            having[str(row.label)][unit] = None
    units = {unit for those in having.values() for unit in those}
    for row, unit in zip(sides.rows, sides.units(), strict=True) if lacking else ():
        if unit in units:
            labels[unit].add(row.label)
    moved = dict[str, str]()
    for _, those in sorted(having.items()):
        for name in [name for name in middles if name not in {moved.get(unit) or sides.home(unit) for unit in those}]:
            home = {unit: moved.get(unit) or sides.home(unit) for unit in those}
            counts = Counter(home.values())
            spare = [unit for unit in those if counts[home[unit]] > 1 or home[unit] not in middles]
            # A unit of several labels stays: it may be another's only one.
            spare = [unit for unit in spare if len(labels[unit]) == 1]
            if spare:
                moved[min(spare, key=lambda unit: (abs(sides.place(unit) - middles[name]), unit))] = name
    return moved


def _read_hub(source: str, recipe: Recipe, splits: Sequence[str], folder: Path | None = None) -> dict[str, Reading]:
    """The splits of a data set on a hub; where it has no validation split, calibrate is a share of its train split."""
    import datasets

    where = f"{recipe.path}: data.path: {source}"
    name, _, revision = source.partition("@")
    datasets.disable_progress_bars()
    try:
        there = datasets.get_dataset_split_names(name, revision=revision or None)
        carved = "calibrate" in splits and HUB_SPLITS["calibrate"] not in there
        needed = {*splits, "train"} - {"calibrate"} if carved else set(splits)
        for split in (split for split in SPLITS if split in needed and HUB_SPLITS[split] not in there):
            raise EdgekitError(
                f"{where}: has no {HUB_SPLITS[split]} split (has: {', '.join(there)}); save its rows as files, and name them"
                " in data.train, data.calibrate and data.verify"
            )
        tables = {
            split: datasets.load_dataset(name, split=HUB_SPLITS[split], revision=revision or None) for split in needed
        }
    except (OSError, ValueError) as failed:
        raise EdgekitError(f"{where}: cannot be loaded with datasets: {first_line(failed)}") from failed
    parts = {
        split: read_prompts(_hub_table(table), recipe.data, f"{source} ({HUB_SPLITS[split]})", folder)
        for split, table in tables.items()
    }
    return _carve(parts | {"calibrate": parts["train"]}, recipe, splits) if carved else parts


def _hub_table(table: datasets.Dataset) -> Table:
    classes = {
        column: list(feature.names) for column, feature in table.features.items() if getattr(feature, "names", None)
    }
    # It lies in files that are mapped into memory.
    held = table.to_list() if table.data.nbytes <= stored.HELD else table
    rows = Rows(lambda: (Row(number=number, values=row) for number, row in enumerate(held, start=1)))
    return Table(columns=table.column_names, rows=rows if held is table else list(rows), classes=classes)
