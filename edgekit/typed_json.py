"""JSON that edgekit writes and reads back: a frozen dataclass becomes a table, and the same table the same dataclass.

What people type is `schema`'s, which knows bounds and spelling. Here each key has to be there, none may be added, and a value is
kept as it is, so that what was read is written with the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, TypeVar, cast

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
# The metadata of a field that has no key in its table where it is None; {"key": name} is of one that Python could not name.
MAY_BE_ABSENT: Mapping[str, bool] = MappingProxyType({"may_be_absent": True})
# The metadata of a field that is a dataclass whose keys lie among those of the one that has it; None where none of them is there.
IN_ITS_TABLE: Mapping[str, bool] = MappingProxyType({"in_its_table": True})


def to_table(value: DataclassInstance) -> dict[str, object]:
    """What JSON can hold of a dataclass: its fields by key, in the order of the keys; tuples as lists."""
    table: dict[str, object] = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if _is_in_its_table(field):
            table |= {} if inner is None else to_table(inner)
        elif inner is not None or not _may_be_absent(field):
            table[_key(field)] = _plain(inner)
    return dict(sorted(table.items()))


def read_table(kind: type[T], table: object, where: str) -> T:
    """The dataclass whose table this is; where: the file, and the table's key in it, for messages.

    Fields are str, int, float, bool, None, object (any JSON), Literal, dataclasses, typed dictionaries, unions of these, and
    tuples, lists and mappings of all that. Raises EdgekitError that names the first key that is missing, unknown or holds
    something else.
    """
    if not isinstance(table, Mapping):
        raise EdgekitError(f"{where}: expected a table, got {table!r:.80}")
    for key in table:
        if key not in _keys(kind):
            raise EdgekitError(f"{_join(where, str(key))}: unknown key")
    values = {}
    for key, (field, hint) in _fields(kind).items():
        if _is_in_its_table(field):
            values[field.name] = _read_part(hint, table, where)
        elif key in table:
            values[field.name] = _read(hint, table[key], _join(where, key))
        elif not _may_be_absent(field):
            raise EdgekitError(f"{_join(where, key)}: missing key")
    return cast("Callable[..., T]", kind)(**values)


def _read_part(hint: object, table: Mapping[str, object], where: str) -> object:
    """The dataclass whose keys lie in a table among others."""
    kind = _dataclass_of(hint)
    own = {key: value for key, value in table.items() if key in _keys(kind)}
    return None if not own and kind is not hint else read_table(kind, own, where)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_table(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _read(hint: object, value: object, where: str) -> object:
    """The value as its type hint wants it."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read_table(hint, value, where)
    if typing.is_typeddict(hint):
        return _read_typed(hint, value, where)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in {UnionType, typing.Union}:
        return _read_union(parts, value, where)
    if origin is list and isinstance(value, list):
        return [_read(parts[0], inner, f"{where}.{index}") for index, inner in enumerate(value)]
    if origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_read(kind, inner, f"{where}.{index}") for index, (kind, inner) in pairs)
    elif origin in {Mapping, dict} and isinstance(value, Mapping):
        return {str(key): _read(parts[1], inner, f"{where}.{key}") for key, inner in value.items()}
    elif hint is object or (value in parts if origin is typing.Literal else _is_scalar(hint, value)):
        return value
    raise EdgekitError(f"{where}: expected {_words(hint)}, got {value!r:.80}")


def _read_typed(hint: object, value: object, where: str) -> dict[str, object]:
    """A typed dictionary: those of its keys that are there, which all are that it requires, and no other."""
    kind = cast("type", hint)
    hints, required = typing.get_type_hints(kind), frozenset[str](vars(kind)["__required_keys__"])
    if not isinstance(value, Mapping):
        raise EdgekitError(f"{where}: expected a table, got {value!r:.80}")
    for key in [*value, *required]:
        if key not in value or key not in hints:
            raise EdgekitError(f"{_join(where, str(key))}: {'missing' if key in hints else 'unknown'} key")
    return {str(key): _read(hints[key], inner, _join(where, str(key))) for key, inner in value.items()}


def _read_union(parts: tuple[object, ...], value: object, where: str) -> object:
    """Of scalars the one that it is; a union has at most one part that is no scalar."""
    if any(_is_scalar(part, value) for part in parts):
        return value
    others = [part for part in parts if part not in _SCALARS]
    if not others or value is None:
        raise EdgekitError(f"{where}: expected {' or '.join(map(_words, parts))}, got {value!r:.80}")
    return _read(others[0], value, where)


_SCALARS: tuple[object, ...] = (str, int, float, bool, NoneType)


def _is_scalar(hint: object, value: object) -> bool:
    """Whether a value is of a scalar type: an int is a float too, a bool is neither, and JSON has no infinity."""
    if hint is float and type(value) in {int, float}:
        return math.isfinite(cast("float", value))
    return hint in _SCALARS and type(value) is hint


def _words(hint: object) -> str:
    """A type as a message names it."""
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    named = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    kind = named.get(hint) if isinstance(hint, type) else None
    return kind or ("a list" if typing.get_origin(hint) in {tuple, list} else "a table")


@cache
def _fields(kind: type) -> dict[str, tuple[dataclasses.Field[object], object]]:
    """The fields of a dataclass with their types, by their keys."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(cast("type[DataclassInstance]", kind))
    return {_key(field): (field, hints[field.name]) for field in fields}


@cache
def _keys(kind: type) -> frozenset[str]:
    """All keys of a dataclass's table."""
    own = {key for key, (field, _) in _fields(kind).items() if not _is_in_its_table(field)}
    parts = [_keys(_dataclass_of(hint)) for field, hint in _fields(kind).values() if _is_in_its_table(field)]
    return frozenset(own).union(*parts)


def _dataclass_of(hint: object) -> type[DataclassInstance]:
    """A type that is a dataclass, or a dataclass or None."""
    kinds = [
        part for part in (hint, *typing.get_args(hint)) if isinstance(part, type) and dataclasses.is_dataclass(part)
    ]
    return kinds[0]


def _key(field: dataclasses.Field[object]) -> str:
    return str(field.metadata.get("key", field.name))


def _may_be_absent(field: dataclasses.Field[object]) -> bool:
    return bool(field.metadata.get("may_be_absent"))


def _is_in_its_table(field: dataclasses.Field[object]) -> bool:
    return bool(field.metadata.get("in_its_table"))


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"


# --- JSON that others wrote


def as_table(value: object) -> Mapping[str, object]:
    """A JSON object; {} where the value is anything else, as where its key is missing or null."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """A JSON array; [] where the value is anything else, as where its key is missing or null."""
    return value if isinstance(value, list) else []
