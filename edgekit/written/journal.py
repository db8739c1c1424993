"""Lines as they come, each for a place, in a file: whoever is killed goes on behind the last of them, and asks nothing twice."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WRITTEN = "written.jsonl"
"""The file of all lines; of a finished step in the order of their places."""
Place = tuple[int, int]
"""The index of a question, and which of its answers."""
Line = TypeVar("Line", bound="DataclassInstance")
_PLACE = ("question", "sample")


@dataclass(frozen=True, kw_only=True)
class Written:
    """An answer, None where there is none; why it ended (stop, length or failed); the model, where an endpoint told its name."""

    answer: str | None
    end: str
    model: str | None = None


class Journal(Generic[Line]):
    """The lines of a step, by place: dataclasses of what JSON can hold."""

    def __init__(self, folder: Path, kind: type[Line]) -> None:
        """Reads what was written before; half a line at the end, which was cut by a kill, is none."""
        self._path, self._lock = folder / WRITTEN, Lock()
        content = self._path.read_bytes() if self._path.is_file() else b""
        self.found, whole = _read(content, kind)
        if whole < len(content):
            with self._path.open("r+b") as stream:
                stream.truncate(whole)

    def add(self, place: Place, line: Line) -> None:
        """Keep a line; it is in the file when this returns."""
        with self._lock:
            self.found[place] = line
            with self._path.open("ab") as stream:
                stream.write(_bytes(place, line))

    def finish(self) -> None:
        """Put the lines in order: the order in which they came is nobody's."""
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(b"".join(_bytes(place, self.found[place]) for place in sorted(self.found)))
        partial.replace(self._path)


def read_lines(folder: Path, kind: type[Line]) -> dict[Place, Line]:
    """The lines of a finished step, by place."""
    return _read((folder / WRITTEN).read_bytes(), kind)[0]


def _bytes(place: Place, line: DataclassInstance) -> bytes:
    entry = {**vars(line), **dict(zip(_PLACE, place, strict=True))}
    return json.dumps(entry, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def _read(content: bytes, kind: type[Line]) -> tuple[dict[Place, Line], int]:
    """The lines in a file up to the first that is none, and the bytes that they take."""
    found, whole = dict[Place, Line](), 0
    keys = {field.name for field in dataclasses.fields(kind)} | {*_PLACE}
    for line in content.splitlines(keepends=True):
        entry: object = None
        with suppress(ValueError):
            entry = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(entry, dict) or entry.keys() != keys:
            break
        question, sample = (entry.pop(name) for name in _PLACE)
        found[question, sample] = kind(**entry)
        whole += len(line)
    return found, whole
