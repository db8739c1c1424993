"""Rows that lie in a file and not in memory: of what is larger than HELD bytes only where each row begins is kept."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, TypeVar, overload

S = TypeVar("S")
T = TypeVar("T")
# A file of at most so many bytes is read into memory, where its rows take several times as much.
HELD = 16 << 20
_BLOCK = 1 << 16


class Lazy(Sequence[T]):
    """Rows that are made when they are asked for, each time anew."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        """make: a row by its number, from 0 on."""
        self._count, self._make = count, make

    def __len__(self) -> int:
        """How many rows there are."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        """A row, or those of a slice as a list."""
        if isinstance(index, slice):
            return [self._make(one) for one in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(index % self._count)


class Spool:
    """A file in a folder that rows are written to and read from; it has no name there, and is gone with this object."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the rows that lie in it
        self._starts = array("q", [0])

    def add(self, row: bytes) -> None:
        """Write one row behind the others."""
        self._file.write(row)
        self._starts.append(self._starts[-1] + len(row))

    def rows(self, read: Callable[[bytes], T]) -> Sequence[T]:
        """All rows, as `read` makes them of what was written."""
        return _rows(self._file, self._starts, read)


def read_lines(path: Path, read: Callable[[bytes], T]) -> Sequence[T]:
    """The lines of a file, each as `read` makes it; a list where the file is small."""
    if path.stat().st_size <= HELD:
        # Not splitlines: a text may hold U+2028 or U+0085, which end a line there but not in JSON lines.
        return [read(line) for line in path.read_bytes().split(b"\n") if line]
    file = path.open("rb")
    starts, place = array("q", [0]), 0
    while block := file.read(_BLOCK):
        found = block.find(b"\n")
        while found >= 0:
            starts.append(place + found + 1)
            found = block.find(b"\n", found + 1)
        place += len(block)
    if starts[-1] < place:
        starts.append(place)
    return _rows(file, starts, read)


def choose(rows: Sequence[T], indices: Iterable[int]) -> Sequence[T]:
    """The rows of these indices, in this order."""
    if isinstance(rows, list):
        return [rows[index] for index in indices]
    kept = array("q", indices)
    return Lazy(len(kept), lambda index: rows[kept[index]])


def join(rows: Sequence[T], more: Sequence[T]) -> Sequence[T]:
    """Rows with more behind them."""
    if isinstance(rows, list) and isinstance(more, list):
        return [*rows, *more]
    count = len(rows)
    return Lazy(count + len(more), lambda index: rows[index] if index < count else more[index - count])


def derive(rows: Sequence[T], of: Callable[[T], S]) -> Sequence[S]:
    """What follows from each row."""
    return [of(row) for row in rows] if isinstance(rows, list) else Lazy(len(rows), lambda index: of(rows[index]))


def _rows(file: IO[bytes], starts: array[int], read: Callable[[bytes], T]) -> Sequence[T]:
    def row(index: int) -> T:
        file.seek(starts[index])
        return read(file.read(starts[index + 1] - starts[index]))

    return Lazy(len(starts) - 1, row)
