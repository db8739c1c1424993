"""TOML and JSON tables become frozen dataclasses, or an error that names file, key and the nearest valid key."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter

T = TypeVar("T")
Options = TypeVar("Options", bound="DataclassInstance")
_POINTER = b"version https://git-lfs"


def read_toml(path: Path) -> dict[str, object]:
    """The table in a TOML file; EdgekitError names the file and the line that does not parse."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as bad:
        raise EdgekitError(f"{path}: not valid TOML: {bad}") from bad
    except RecursionError as deep:
        raise EdgekitError(f"{path}: lists or tables inside each other, too deep to be read") from deep


def read_json(path: Path) -> Any:
    """The value in a JSON file; EdgekitError names the file and the position that does not parse."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as bad:
        raise EdgekitError(f"{path}: not valid JSON: {bad}") from bad
    except RecursionError as deep:
        raise EdgekitError(f"{path}: lists or objects inside each other, too deep to be read") from deep


def read_text(path: Path) -> str:
    """A UTF-8 file's text; EdgekitError where it is missing, unreadable or not UTF-8 (with the byte's place)."""
    try:
        content = path.read_bytes()
        refuse_pointer(path, content)
        return content.decode("utf-8-sig")
    except FileNotFoundError as missing:
        raise EdgekitError(f"{path}: no such file") from missing
    except OSError as unreadable:
        raise EdgekitError(f"{path}: cannot be read: {unreadable.strerror}") from unreadable
    except UnicodeDecodeError as bad:
        byte = bad.object[bad.start]
        raise EdgekitError(f"{path}: byte {bad.start} (0x{byte:02x}) is not UTF-8; save the file as UTF-8") from bad


def refuse_pointer(path: Path, content: bytes | None = None) -> None:
    """Raises EdgekitError for a file that Git LFS left a pointer of (its specification: three lines, `version` first)."""
    if content is None:
        with path.open("rb") as stream:
            content = stream.read(len(_POINTER))
    if content.startswith(_POINTER):
        raise EdgekitError(f"{path}: a pointer of Git LFS, not the file itself; fetch the file: git lfs pull")


def dump_json(value: object) -> str:
    """JSON with sorted keys and a final newline, so that equal values are equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def nearest(word: str, known: Iterable[str]) -> str:
    """A ' (did you mean ...?)' for a misspelt word, or the list of known ones."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(choices) or 'none'})"


def pick(table: Mapping[str, T], key: str, where: str) -> T:
    """The entry of a table that a user named; EdgekitError names the nearest one where it is unknown."""
    if key not in table:
        raise EdgekitError(f"{where}: unknown value {key!r}{nearest(key, table)}")
    return table[key]


def parse(kind: type[Options], table: object, where: str) -> Options:
    """Check a table against a dataclass and build it.

    `where` is the file and the table's key ("targets/pi.toml: budget"). Nested dataclasses are checked with their own key.
    Types are strict: 3 is a float too, "3" and true are no numbers. Raises EdgekitError for unknown, missing or wrongly
    typed keys, and for numbers that are not finite.
    """
    import pydantic

    _refuse_unknown_keys(kind, table, where)
    _refuse_infinite(table, where)
    try:
        # As JSON, because pydantic's strict mode takes a dataclass from a table there, and only there.
        found = _adapter(kind).validate_json(json.dumps(table, default=str), strict=True)
    except pydantic.ValidationError as bad:
        first = bad.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        joined = _join(where, key) if key else where
        if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
            raise EdgekitError(f"{joined}: missing key") from bad
        shown = repr(first["input"])
        reason = first["msg"].lower().removeprefix("input ").replace("valid array", "valid list")
        raise EdgekitError(f"{joined}: {reason}, got {shown[:80]}") from bad
    assert isinstance(found, kind)
    return found


@cache
def _adapter(kind: type) -> TypeAdapter[object]:
    """What pydantic makes of a dataclass: 25 ms, each time that it is asked."""
    import pydantic

    return pydantic.TypeAdapter(kind)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"


def _refuse_unknown_keys(kind: type, table: object, where: str) -> None:
    if not isinstance(table, Mapping):
        raise EdgekitError(f"{where}: expected a table, got {table!r:.80}")
    hints = _field_types(kind)
    for key, value in table.items():
        if key not in hints:
            raise EdgekitError(f"{_join(where, key)}: unknown key{nearest(key, hints)}")
        hint = hints[key]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and value is not None:
            _refuse_unknown_keys(hint, value, _join(where, key))
        for inner in (
            typing.get_args(hint) if typing.get_origin(hint) in (list, tuple) and isinstance(value, list) else ()
        ):
            for index, entry in enumerate(value if dataclasses.is_dataclass(inner) else ()):
                _refuse_unknown_keys(inner, entry, _join(where, f"{key}.{index}"))


def _refuse_infinite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise EdgekitError(f"{where}: expected a finite number, got {value}")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_infinite(inner, _join(where, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_infinite(inner, _join(where, str(index)))


def _field_types(kind: type) -> dict[str, object]:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: _without_none(hints[name]) for name in names}


def _without_none(hint: object) -> object:
    import types

    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        if len(parts) == 1:
            return parts[0]
    return hint
