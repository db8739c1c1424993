"""PromptSet: texts with labels in three disjoint splits. Whatever the user's data is, it becomes one folder of JSON lines."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.duplicates import near_pairs, words
from edgekit.errors import EdgekitError, first_line
from edgekit.recipe import Data, Recipe, Split
from edgekit.schema import nearest, read_text

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "calibrate", "verify")
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# What data sets on a hub call the splits.
HUB_SPLITS = {"train": "train", "calibrate": "validation", "verify": "test"}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One text and, where known, its label; `row` counts from 1 in the file that it was read from.

    For text-generation `label` is the wanted answer, `choices` those that the model picks the likeliest of, `messages` a
    whole conversation ({"role": ..., "content": ...} each, without the wanted answer), of which `text` is what the user says,
    and `tools` the JSON schemas of the functions that the model may call in it. `group` names what texts have in common that
    are not independent of each other: their speaker, document, template or ticket.
    """

    text: str
    label: str | None = None
    row: int = field(default=0, compare=False)
    choices: Sequence[str] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    group: str | None = None

    def facts(self) -> dict[str, Any]:
        """As a split's file has it: what is not there is left out, but for the label."""
        more = {"choices": self.choices, "messages": self.messages, "tools": self.tools, "group": self.group}
        return {"text": self.text, "label": self.label} | {key: value for key, value in more.items() if value}


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """A folder with train.jsonl, calibrate.jsonl and verify.jsonl, as `gather` writes it."""

    folder: Path

    def split(self, name: str) -> list[Prompt]:
        """The prompts of a split, in file order; an absent split is empty."""
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            return []
        # Not splitlines: a text may hold U+2028 or U+0085, which end a line there but not in JSON lines.
        return [Prompt(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


def sources(recipe: Recipe, splits: Sequence[str]) -> dict[str, Path | str]:
    """Where each needed split comes from: a file per split, or "*" for one source that is split by rule.

    A `datasets` id ("org/name", "org/name@revision") stays a string. Raises EdgekitError naming the missing key or file.
    """
    data = recipe.data
    named = {name: getattr(data, name) for name in SPLITS if getattr(data, name)}
    if named and data.path:
        raise EdgekitError(f"{recipe.path}: data: give either path or a file per split, not both")
    if named:
        return {name: _existing(recipe, named, name) for name in splits}
    if not data.path:
        raise EdgekitError(f"{recipe.path}: data.path: missing key; name a folder, a file or a datasets id")
    place = recipe.locate(data.path)
    if place.is_dir():
        return {name: _split_file(place, name) for name in splits}
    if place.is_file():
        return {"*": place}
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", data.path) and not data.path.startswith("."):
        return {"*": data.path}
    raise EdgekitError(f"{recipe.path}: data.path: no such file or folder: {place}")


def gather(recipe: Recipe, splits: Sequence[str], out: Path) -> dict[str, Any]:
    """Read the recipe's data, check it, and write one JSON-lines file per split into `out`.

    Returns what was found: rows and labels per split, and what was dropped as duplicate. Raises EdgekitError for a wrong
    column, an empty or one-class split, labels that differ by case only, texts that verify repeats, and overlapping splits.
    """
    rows = _read_splits(recipe, splits)
    places = sources(recipe, splits)
    where = {name: str(places.get(name) or places["*"]) for name in splits}
    dropped = _separate_groups(rows, recipe) if recipe.data.group else Counter()
    dropped += _drop_repeated(rows, recipe, where["verify"]) if "verify" in rows else Counter()
    dropped += _separate(rows, recipe)
    for name in splits:
        _check_split(recipe.data, name, rows[name], where[name], dropped[name])
    if recipe.data.label:
        _check_labels(recipe, rows, dropped)
    for name in splits:
        lines = (json.dumps(row.facts(), ensure_ascii=False) for row in rows[name])
        (out / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    labels = sorted({row.label for part in rows.values() for row in part if row.label is not None})
    return {
        "rows": {name: len(rows[name]) for name in splits},
        "labels": [label for label in labels if label != recipe.data.out_of_scope],
        "dropped_near_duplicates": dropped.total(),
    }


def _existing(recipe: Recipe, named: Mapping[str, str], name: str) -> Path:
    if name not in named:
        raise EdgekitError(f"{recipe.path}: data.{name}: missing key; this recipe needs a {name} split")
    path = recipe.locate(named[name])
    if not path.is_file():
        raise EdgekitError(f"{recipe.path}: data.{name}: no such file: {path}")
    return path


def _split_file(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if not found:
        raise EdgekitError(f"{folder}: no {name} split in it; expected {name}.csv, .tsv, .jsonl or .parquet")
    return found[0]


def _read_splits(recipe: Recipe, splits: Sequence[str]) -> dict[str, list[Prompt]]:
    where = sources(recipe, splits)
    if "*" not in where:
        return {name: _read_rows(Path(where[name]), recipe.data) for name in splits}
    if isinstance(where["*"], str):
        return _read_hub(where["*"], recipe, splits)
    rule = recipe.data.split
    if rule is None:
        raise EdgekitError(
            f"{recipe.path}: data.split: missing key; one file needs shares, such as split = {{ calibrate = 0.1, verify = 0.2 }}"
        )
    parts = _divide(_read_rows(where["*"], recipe.data), recipe.seed, calibrate=rule.calibrate, verify=rule.verify)
    return {name: parts[name] for name in splits}


def _divide(rows: Iterable[Prompt], seed: int, *, calibrate: float, verify: float = 0.0) -> dict[str, list[Prompt]]:
    """Send each row to the split that the hash of its group, or else of its words, names.

    So a text stays in its split when others are added, and a group is in one split.
    """
    parts: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    for row in rows:
        key = " ".join(sorted(words(row.text))) if row.group is None else f"group {row.group}"
        place = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64
        name = "verify" if place < verify else "calibrate" if place < verify + calibrate else "train"
        parts[name].append(row)
    return parts


def _read_rows(path: Path, data: Data) -> list[Prompt]:
    if path.suffix not in SUFFIXES:
        raise EdgekitError(f"{path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}")
    text = read_text(path) if path.suffix != ".parquet" else None
    if text is not None and not text.strip():
        raise EdgekitError(f"{path}: empty; expected rows with a text{' and a label' if data.label else ''}")
    import tempfile

    import datasets
    import pandas
    import pyarrow

    datasets.disable_progress_bars()
    options: dict[str, Any] = {}
    if text is not None and SUFFIXES[path.suffix] == "csv":
        delimiter = "\t" if path.suffix == ".tsv" else ","
        columns = _check_csv(path, text, delimiter)
        # Every column is text: a label 007 stays 007, and a text NA is not a missing one.
        features = datasets.Features({column: datasets.Value("string") for column in columns})
        options = {"delimiter": delimiter, "features": features, "keep_default_na": False}
    # In memory, and an uncleared folder is no error: Windows removes no file that is mapped.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            table = datasets.load_dataset(
                SUFFIXES[path.suffix],
                data_files=str(path),
                split="train",
                cache_dir=scratch,
                keep_in_memory=True,
                **options,
            )
        except (
            datasets.exceptions.DatasetGenerationError,
            pandas.errors.ParserError,
            pandas.errors.EmptyDataError,
            pyarrow.ArrowInvalid,
            ValueError,
        ) as bad:
            cause = bad.__cause__ or bad
            raise EdgekitError(f"{path}: cannot be read as {path.suffix[1:]}: {first_line(cause)}") from bad
    return _to_prompts(table, data, str(path))


def _check_csv(path: Path, text: str, delimiter: str) -> list[str]:
    """The header of a CSV file whose rows all have its number of fields: a comma in an unquoted text would shift them."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    count = 0
    try:
        for row in rows:
            count += bool(row)
            if not header:
                header = row
            elif row and len(row) != len(header):
                raise EdgekitError(
                    f"{path}: line {rows.line_num}: {len(row)} fields, but the header has {len(header)};"
                    " put texts that hold a delimiter in double quotes"
                )
    except csv.Error as bad:
        raise EdgekitError(f"{path}: line {rows.line_num}: not valid CSV: {bad}; check its double quotes") from bad
    if count < 2:
        raise EdgekitError(f"{path}: no rows below the header line; add some")
    if len(set(header)) < len(header):
        raise EdgekitError(f"{path}: line 1: two columns have the same name; rename one")
    return header


def _read_hub(source: str, recipe: Recipe, splits: Sequence[str]) -> dict[str, list[Prompt]]:
    """The splits of a data set on a hub; where it has no validation split, calibrate is a share of its train split."""
    import datasets

    where = f"{recipe.path}: data.path: {source}"
    name, _, revision = source.partition("@")
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
        split: _to_prompts(table, recipe.data, f"{source} ({HUB_SPLITS[split]})") for split, table in tables.items()
    }
    if carved:
        share = (recipe.data.split or Split()).calibrate
        divided = _divide(parts["train"], recipe.seed, calibrate=share)
        parts |= {"train": divided["train"], "calibrate": divided["calibrate"]}
    return {split: parts[split] for split in splits}


def _to_prompts(table: datasets.Dataset, data: Data, where: str) -> list[Prompt]:
    """The rows of a table; a column of class numbers (`datasets.ClassLabel`) becomes the classes' names."""
    told = ("messages", data.messages) if data.messages else ("text", data.text)
    more = {key: getattr(data, key) for key in ("label", "answer", "choices", "tools", "group")}
    for key, column in (told, *more.items()):
        if column and column not in table.column_names and table.num_rows:
            raise EdgekitError(
                f"{where}: data.{key}: no column {column!r} (its columns: {', '.join(table.column_names)})"
            )
    names = getattr(table.features.get(data.label), "names", None) if data.label else None
    prompts = []
    for number, row in enumerate(table.to_list(), start=1):
        if data.messages:
            prompts.append(_conversation(row, data, number, where))
            continue
        text = row[data.text]
        if not isinstance(text, str):
            raise EdgekitError(f"{where}: row {number}: {data.text}: {text!r:.60} is not a string")
        label = row[data.label] if data.label else None
        if names is not None and isinstance(label, int):
            label = names[label] if label >= 0 else None
        if data.label and (label is None or label == ""):
            raise EdgekitError(f"{where}: row {number}: {data.label}: no label; add one, or remove the row")
        if data.answer:
            label = _answer(row[data.answer], data.answer, number, where)
        prompts.append(
            Prompt(
                text=text,
                label=None if label is None else str(label),
                row=number,
                choices=_choices(row, label, data.choices, number, where),
                tools=_tools(row, data.tools, number, where),
                group=_group(row, data.group, number, where),
            )
        )
    return prompts


def _conversation(row: Mapping[str, Any], data: Data, number: int, where: str) -> Prompt:
    """A row of whole conversations: a last turn of the assistant is the wanted answer."""
    turns = row[data.messages or ""]
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    ):
        raise EdgekitError(
            f'{where}: row {number}: {data.messages}: not a conversation; expected [{{"role": "user", "content": "..."}}, ...]'
        )
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    label = messages.pop()["content"] if messages and messages[-1]["role"] == "assistant" else None
    said = "\n".join(turn["content"] for turn in messages if turn["role"] == "user")
    if not said:
        raise EdgekitError(f"{where}: row {number}: {data.messages}: the user says nothing; remove the row")
    choices = _choices(row, label, data.choices, number, where)
    return Prompt(
        text=said,
        label=label,
        row=number,
        messages=messages,
        choices=choices,
        tools=_tools(row, data.tools, number, where),
        group=_group(row, data.group, number, where),
    )


def _tools(row: Mapping[str, Any], column: str | None, number: int, where: str) -> list[dict[str, Any]] | None:
    """The functions that may be called, as JSON schemas, or as the JSON text of their list."""
    value = row[column] if column else None
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as bad:
            raise EdgekitError(f"{where}: row {number}: {column}: not valid JSON: {first_line(bad)}") from bad
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise EdgekitError(f"{where}: row {number}: {column}: expected a list of functions' JSON schemas")
    return value


def _group(row: Mapping[str, Any], column: str | None, number: int, where: str) -> str | None:
    """What a row's text shares with others; a row without one stands for itself."""
    value = row[column] if column else None
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | dict):
        raise EdgekitError(f"{where}: row {number}: {column}: {value!r:.60} is no group; give a name or a number")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _answer(value: Any, column: str, number: int, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise EdgekitError(f"{where}: row {number}: {column}: {value!r:.60} is not a string")
    return value or None


def _choices(
    row: Mapping[str, Any], label: str | None, column: str | None, number: int, where: str
) -> list[str] | None:
    """The answers to choose from, the wanted one among them."""
    if not column or row[column] is None:
        return None
    choices = row[column]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise EdgekitError(
            f"{where}: row {number}: {column}: expected a list of two or more strings, none of them empty"
        )
    if label not in choices:
        raise EdgekitError(f"{where}: row {number}: {column}: the wanted answer {label!r} is not among them")
    return choices


def _check_split(data: Data, name: str, rows: Sequence[Prompt], where: str, dropped: int) -> None:
    if not rows:
        raise EdgekitError(
            f"{where}: the {name} split has no rows{_told(dropped)}; add some, or a larger share of data.split"
        )
    if not data.label:
        return
    counts = Counter(row.label for row in rows if row.label != data.out_of_scope)
    if len(counts) < 2:
        only = f"only the class {next(iter(counts))!r}" if counts else "no class"
        raise EdgekitError(
            f"{where}: {data.label}: the {name} split has {only}{_told(dropped)}; a classifier needs at least two"
        )
    folded: dict[str, str] = {}
    for label in sorted(str(label) for label in counts):
        twin = folded.setdefault(label.casefold().strip(), label)
        if twin != label:
            raise EdgekitError(f"{where}: labels {twin!r} and {label!r} differ by case or spaces only; make them one")


def _told(dropped: int) -> str:
    return f" after {dropped} duplicates were dropped from it" if dropped else ""


def _check_labels(recipe: Recipe, rows: Mapping[str, Sequence[Prompt]], dropped: Mapping[str, int]) -> None:
    """Every split has every label where something is trained; a rejected label is there where the recipe names one."""
    every = {name: {str(row.label) for row in part} for name, part in rows.items()}
    rejected = recipe.data.out_of_scope
    for name in rows:
        told = _told(dropped[name])
        if rejected is not None and rejected not in every[name]:
            known = nearest(rejected, every[name])
            raise EdgekitError(
                f"{recipe.path}: data.out_of_scope: no row of the {name} split has the label {rejected!r}{told}{known}"
            )
        for other in rows:
            missing = sorted(every[other] - every[name])
            if missing and "train" in rows:
                raise EdgekitError(
                    f"{recipe.path}: data: the {name} split lacks the label {missing[0]!r} that {other} has"
                    f" ({len(missing)} such){told}; every split needs every label"
                )


def _drop_repeated(rows: dict[str, list[Prompt]], recipe: Recipe, where: str) -> Counter[str]:
    """Drop, or refuse, texts that verify has more than once: they would count as independent prompts in every bound.

    Of a text whose copies agree the first stays; of one whose copies have different labels none does, as none is known right.
    """
    groups: dict[frozenset[str] | str, list[Prompt]] = defaultdict(list)
    for row in rows["verify"]:
        groups[words(row.text) or row.text.strip()].append(row)
    repeated = [group for group in groups.values() if len(group) > 1]
    if not repeated:
        return Counter()
    if recipe.data.near_duplicates == "refuse":
        conflicts = [group for group in repeated if len({row.label for row in group}) > 1]
        first, second = _differing(conflicts[0]) if conflicts else repeated[0][:2]
        labels = f" with the labels {first.label!r} and {second.label!r}" if conflicts else ""
        raise EdgekitError(
            f"{where}: verify has {sum(len(group) - 1 for group in repeated)} texts that repeat another of its texts but for"
            f" case, punctuation, numbers and order, such as row {first.row} ({first.text!r}) and row {second.row}"
            f" ({second.text!r}){labels}; repeated texts prove nothing twice: remove them, or set"
            ' data.near_duplicates = "drop" to drop them'
        )
    kept = [group[0] for group in groups.values() if len({row.label for row in group}) == 1]
    dropped = len(rows["verify"]) - len(kept)
    rows["verify"] = kept
    return Counter(verify=dropped)


def _differing(group: Sequence[Prompt]) -> tuple[Prompt, Prompt]:
    return group[0], next(row for row in group if row.label != group[0].label)


def _separate_groups(rows: dict[str, list[Prompt]], recipe: Recipe) -> Counter[str]:
    """Drop from earlier splits, or refuse, rows whose group a later split has too; returns how many were dropped from which."""
    dropped: Counter[str] = Counter()
    names = [name for name in SPLITS if name in rows]
    for index, earlier in enumerate(names):
        later = {row.group for name in names[index + 1 :] for row in rows[name]} - {None}
        shared = [row for row in rows[earlier] if row.group in later]
        if shared and recipe.data.near_duplicates == "refuse":
            raise EdgekitError(
                f"{recipe.path}: data.group: {len(shared)} rows of {earlier} are of groups that a later split has too, such as"
                f" row {shared[0].row} of group {shared[0].group!r}; keep each group in one split, or set"
                f' data.near_duplicates = "drop" to drop those rows from {earlier}'
            )
        dropped[earlier] += len(shared)
        rows[earlier] = [row for row in rows[earlier] if row.group not in later]
    return dropped


def _separate(rows: dict[str, list[Prompt]], recipe: Recipe) -> Counter[str]:
    """Drop from earlier splits, or refuse, texts that a later split has too; returns how many were dropped from which."""
    policy = recipe.data.near_duplicates
    dropped: Counter[str] = Counter()
    names = [name for name in SPLITS if name in rows]
    for place, earlier in enumerate(names):
        for later in names[place + 1 :]:
            texts_a, texts_b = ([row.text for row in rows[name]] for name in (earlier, later))
            pairs = near_pairs(texts_a, texts_b)
            if pairs and policy == "refuse":
                first, second = pairs[0]
                raise EdgekitError(
                    f"{recipe.path}: data: {len({one for one, _ in pairs})} texts of {earlier} are (nearly) in {later} too,"
                    f" the first: {texts_a[first]!r} and {texts_b[second]!r}; remove them, or set"
                    f' data.near_duplicates = "drop" to drop them from {earlier}'
                )
            doomed = {first for first, _ in pairs}
            dropped[earlier] += len(doomed)
            rows[earlier] = [row for index, row in enumerate(rows[earlier]) if index not in doomed]
    return dropped
