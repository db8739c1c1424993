"""Answers as they come, a line each in a file: whoever is killed goes on behind the last of them, and nothing is asked twice."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

WRITTEN = "written.jsonl"
"""The file of all answers; of a finished step in the order of the questions."""
_KEYS = {"answer", "end", "model", "question", "sample"}
Place = tuple[int, int]
"""The index of a question, and which of its answers."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """An answer, None where there is none; why it ended (stop, length or failed); the model, where an endpoint told its name."""

    answer: str | None
    end: str
    model: str | None = None


class Journal:
    """The answers of a step, by place."""

    def __init__(self, folder: Path) -> None:
        """Reads what was written before; half a line at the end, of an answer that was cut by a kill, is none."""
        self._path, self._lock = folder / WRITTEN, Lock()
        content = self._path.read_bytes() if self._path.is_file() else b""
        self.found, whole = _read(content)
        if whole < len(content):
            with self._path.open("r+b") as stream:
                stream.truncate(whole)

    def add(self, place: Place, written: Written) -> None:
        """Keep an answer; it is in the file when this returns."""
        with self._lock:
            self.found[place] = written
            with self._path.open("ab") as stream:
                stream.write(_line(place, written))

    def finish(self) -> None:
        """Put the answers in order: the order in which they came is nobody's."""
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(b"".join(_line(place, self.found[place]) for place in sorted(self.found)))
        partial.replace(self._path)


def read_written(folder: Path) -> dict[Place, Written]:
    """The answers of a finished step, by place."""
    return _read((folder / WRITTEN).read_bytes())[0]


def _line(place: Place, written: Written) -> bytes:
    entry = {**vars(written), "question": place[0], "sample": place[1]}
    return json.dumps(entry, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def _read(content: bytes) -> tuple[dict[Place, Written], int]:
    """The answers in a file up to the first line that is none, and the bytes that they take."""
    found, whole = dict[Place, Written](), 0
    for line in content.splitlines(keepends=True):
        entry: object = None
        with suppress(ValueError):
            entry = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(entry, dict) or entry.keys() != _KEYS:
            break
        place = entry.pop("question"), entry.pop("sample")
        found[place] = Written(**entry)
        whole += len(line)
    return found, whole
