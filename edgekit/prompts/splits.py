"""Where prompts come from and which split each goes to: a file per split, a folder, a hub's data set, or one file by rule."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.duplicates import words
from edgekit.errors import EdgekitError, first_line
from edgekit.prompts.prompt import SPLITS, Prompt
from edgekit.prompts.rows import Reading, read_prompts
from edgekit.recipe import Recipe, Split
from edgekit.tables import KINDS, Row, Table, kind_of, read_table

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


def read_splits(recipe: Recipe, splits: Sequence[str]) -> dict[str, Reading]:
    """The rows of each needed split as prompts. Raises EdgekitError as `sources`, `read_table` and `read_prompts` do."""
    if own := _own_files(recipe, splits):
        places = {name: _existing(recipe, own, name) for name in own}
        read_own = {name: read_prompts(_table(recipe, places[name]), recipe.data, file) for name, file in own.items()}
        return {**read_splits(recipe, [name for name in splits if name not in own]), **read_own}
    if "recover" in splits:
        return _hold_out(read_splits(recipe, _with_train(splits)), recipe, splits)
    where, data = sources(recipe, splits), recipe.data
    if isinstance(where.get("*"), str):
        return _read_hub(str(where["*"]), recipe, splits)
    read: dict[Path, Reading] = {}
    for path in map(Path, where.values()):
        if path not in read:
            read[path] = read_prompts(_table(recipe, path), data, str(path))
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
    units: dict[str, list[Prompt]] = defaultdict(list)
    for row in whole.prompts:
        units[_unit(row, recipe.task)].append(row)
    hashes = {unit: _hash(recipe.seed, unit) for unit in units}
    home = {
        unit: "verify" if place < verify else "calibrate" if place < verify + calibrate else "train"
        for unit, place in hashes.items()
    }
    if recipe.data.label:
        middles = {"train": (1 + verify + calibrate) / 2, "calibrate": verify + calibrate / 2, "verify": verify / 2}
        # Train too where nobody needs it: the others have the same rows in any case.
        own = SPLITS if verify else ("train", "calibrate")
        _give_every_label(home, units, hashes, {name: middles[name] for name in own})
    parts: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    for unit, rows in units.items():
        parts[home[unit]] += rows
    empty = [name for name in splits if not parts[name]]
    if empty and 2 * len(units) < len(whole.prompts):
        raise EdgekitError(
            f"{recipe.path}: data: its {len(whole.prompts)} rows are {len(units)} texts that differ by more than numbers, case,"
            f" punctuation and order, or groups, and none falls to {empty[0]}; add other texts, or name a file for each split"
        )
    parts = {name: sorted(rows, key=lambda row: row.row) for name, rows in parts.items()}
    # What was left out or converted before belongs to no split yet; it is told once.
    readings = {name: Reading(prompts=rows) for name, rows in parts.items()}
    first = next(name for name in SPLITS if name in splits)
    return readings | {first: replace(whole, prompts=parts[first])}


def _hold_out(parts: Mapping[str, Reading], recipe: Recipe, splits: Sequence[str]) -> dict[str, Reading]:
    """A share of train's rows as the recovery split, by the hash of what decides a row's split; no label loses its last row."""
    whole, share = parts["train"], recipe.data.recover
    assert isinstance(share, float)
    units: dict[str, list[Prompt]] = defaultdict(list)
    for row in whole.prompts:
        units[_unit(row, recipe.task)].append(row)
    left = Counter(row.label for row in whole.prompts)
    held: list[Prompt] = []
    for unit, rows in sorted(units.items(), key=lambda pair: (_hash(recipe.seed, f"recover {pair[0]}"), pair[0])):
        taken = Counter(row.label for row in rows)
        fits = len(held) + len(rows) <= share * len(whole.prompts)
        if fits and all(left[label] > count for label, count in taken.items()):
            left -= taken
            held += units.pop(unit)
    kept = sorted((row for rows in units.values() for row in rows), key=lambda row: row.row)
    held.sort(key=lambda row: row.row)
    made = {**parts, "train": replace(whole, prompts=kept), "recover": Reading(prompts=held)}
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


def _give_every_label(
    home: dict[str, str],
    units: Mapping[str, Sequence[Prompt]],
    hashes: Mapping[str, float],
    middles: Mapping[str, float],
) -> None:
    """Move units into splits that lack a label of theirs, from splits that have another unit of it."""
    having: dict[str, list[str]] = defaultdict(list)
    for unit, rows in units.items():
        for label in {str(row.label) for row in rows}:
            having[label].append(unit)
    for _, those in sorted(having.items()):
        for name in [name for name in middles if name not in {home[unit] for unit in those}]:
            counts = Counter(home[unit] for unit in those)
            spare = [unit for unit in those if counts[home[unit]] > 1 or home[unit] not in middles]
            # A unit of several labels stays: it may be another's only one.
            spare = [unit for unit in spare if len({row.label for row in units[unit]}) == 1]
            if spare:
                home[min(spare, key=lambda unit: (abs(hashes[unit] - middles[name]), unit))] = name


def _read_hub(source: str, recipe: Recipe, splits: Sequence[str]) -> dict[str, Reading]:
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
        split: read_prompts(_hub_table(table), recipe.data, f"{source} ({HUB_SPLITS[split]})")
        for split, table in tables.items()
    }
    return _carve(parts | {"calibrate": parts["train"]}, recipe, splits) if carved else parts


def _hub_table(table: datasets.Dataset) -> Table:
    classes = {
        column: list(feature.names) for column, feature in table.features.items() if getattr(feature, "names", None)
    }
    rows = [Row(number=number, values=row) for number, row in enumerate(table.to_list(), start=1)]
    return Table(columns=table.column_names, rows=rows, classes=classes)
