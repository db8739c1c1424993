"""The file of a delta, and how the bytes of one file are told by those of another.

    16 bytes   "edgekit delta 1\\n"
    8 bytes    the header's length, little endian
    32 bytes   the header's sha256
    header     JSON: `Delta`
    parts      one behind the other, in the header's order

A part is a frame of Zstandard (RFC 8878). "whole" needs nothing else; "patch" is what `zstd --patch-from=OLD` makes and reads,
OLD being the file of A that it names; "difference" is of bytes that are added, each modulo 256, to those of that file, which is
as long: codes that moved by a step leave bytes that are small and few. "same" has no part: the file is A's.

zstandard was chosen by measurement (`benchmarks/delta.py`): bsdiff's patches are smaller, by 6 % of a model that was taught anew
and by a third where one code in a hundred moved, and take seventeen times the model's size in memory. What is larger than `_HELD`
is never held: it is a difference or whole, in pieces.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast

from edgekit.bundle.archive import stays_inside
from edgekit.bundle.manifest import FileEntry
from edgekit.errors import EdgekitError
from edgekit.schema import dump_json
from edgekit.typed_json import MAY_BE_ABSENT, read_table, to_table
from edgekit.workspace import sync

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"edgekit delta 1\n"
_LENGTH, _DIGEST = 8, 32
# A header lists files by name: one of more is none.
_MOST_HEADER = 1 << 26
# Of what is held whole while a patch is made or used; what one is made of and refers back to is at most twice that.
_HELD, _WINDOW_LOG = 1 << 28, 29
# zstd's thoroughness, and up to which size that takes seconds and not minutes.
_LEVEL, _QUICK_LEVEL, _QUICK_FROM = 19, 9, 1 << 26
_PIECE = 1 << 20

Way = Literal["same", "whole", "patch", "difference"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """How a file of B is made. source: the file of A that it is made of. part: the bytes of the delta that it takes."""

    name: str
    way: Way
    file: FileEntry
    source: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    part: FileEntry | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The header. kind: "bundle" or "release"; a, b: their names; sources: the files of A that are needed."""

    kind: str
    a: str
    b: str
    sources: Mapping[str, FileEntry]
    files: tuple[Part, ...]


def open_delta(path: Path) -> tuple[Delta, int]:
    """The header of a delta, and where its parts begin; every byte was read and is as it was written."""
    changed = EdgekitError(f"{path}: cut off or changed after it was written; fetch it again")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise EdgekitError(f"{path}: not a delta that edgekit diff --delta wrote")
            length = int.from_bytes(stream.read(_LENGTH), "little")
            digest = stream.read(_DIGEST)
            begin = stream.tell() + length
            if length > _MOST_HEADER or begin > size:
                raise changed
            header = stream.read(length)
            if hashlib.sha256(header).digest() != digest:
                raise changed
            delta = _read(header, path)
            parts = [one.part for one in delta.files if one.part is not None]
            if begin + sum(part.bytes for part in parts) != size:
                raise changed
            for part in parts:
                if _sha256_of(stream, part.bytes) != part.sha256:
                    raise changed
    except OSError as failed:
        raise EdgekitError(f"{path}: cannot be read: {failed.strerror or failed}") from failed
    return delta, begin


def _read(header: bytes, path: Path) -> Delta:
    """The header's table; EdgekitError where it is none that edgekit wrote, or names what is outside the folder."""
    try:
        table = json.loads(header)
    except ValueError as wrong:
        raise EdgekitError(f"{path}: not a delta that edgekit diff --delta wrote: {wrong}") from wrong
    delta = read_table(Delta, table, str(path))
    names = [one.name for one in delta.files]
    for name in (*names, *delta.sources):
        if not stays_inside(path.parent, name):
            raise EdgekitError(f"{path}: names a path outside the bundle: {name}; do not use this delta")
    whole = all(
        (one.way == "whole") == (one.source is None)
        and (one.way == "same") == (one.part is None)
        and (one.source is None or one.source in delta.sources)
        and min(one.file.bytes, one.part.bytes if one.part else 0) >= 0
        for one in delta.files
    )
    if not whole or len(set(names)) != len(names) or delta.kind not in {"bundle", "release"}:
        raise EdgekitError(f"{path}: not a delta that edgekit diff --delta wrote: its parts do not fit each other")
    return delta


def _sha256_of(stream: IO[bytes], size: int) -> str:
    found = hashlib.sha256()
    while size and (piece := stream.read(min(size, _PIECE))):
        found.update(piece)
        size -= len(piece)
    return found.hexdigest()


def smallest(old: Path | None, new: Path, out: Path) -> tuple[Way, Path]:
    """The way in which a file takes the fewest bytes, and these in a file."""
    made: list[tuple[Way, Path]] = []
    sizes = (old.stat().st_size if old else 0, new.stat().st_size)
    if old is not None and max(sizes) <= _HELD and min(sizes) > 0:
        made.append(("patch", out.with_name(f"{out.name}-patch")))
        _compress(_pieces(new), sizes[1], made[-1][1], old.read_bytes())
    if old is not None and sizes[0] == sizes[1]:
        made.append(("difference", out.with_name(f"{out.name}-difference")))
        _compress(_differences(old, new), sizes[1], made[-1][1])
    if not made:
        made.append(("whole", out))
        _compress(_pieces(new), sizes[1], out)
    way, best = min(made, key=lambda one: one[1].stat().st_size)
    for _, path in made:
        if path != best:
            path.unlink()
    return way, best


def _compress(pieces: Iterator[bytes], size: int, out: Path, prefix: bytes = b"") -> None:
    """Write pieces as one frame, which may refer back to a prefix."""
    import zstandard

    level = _LEVEL if size <= _QUICK_FROM else _QUICK_LEVEL
    back = (
        {"window_log": min(max((size + len(prefix)).bit_length(), 10), _WINDOW_LOG), "enable_ldm": True}
        if prefix
        else {}
    )
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=size, write_content_size=True, **back
    )
    held = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=held)
    with out.open("wb") as stream, compressor.stream_writer(stream, size=size, closefd=False) as writer:
        for piece in pieces:
            writer.write(piece)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _differences(old: Path, new: Path) -> Iterator[bytes]:
    """What is added to each byte of the old file to get the new one."""
    for mine, theirs in zip(_pieces(old), _pieces(new), strict=True):
        yield (_numbers(theirs) - _numbers(mine)).tobytes()


def _numbers(piece: bytes) -> NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer(piece, np.uint8)


def join(delta: Delta, parts: Sequence[Path], out: Path) -> None:
    """Write a delta's file."""
    header = dump_json(to_table(delta)).encode()
    with out.open("wb") as stream:
        stream.write(MAGIC + len(header).to_bytes(_LENGTH, "little") + hashlib.sha256(header).digest() + header)
        for path in parts:
            with path.open("rb") as source:
                shutil.copyfileobj(source, stream, _PIECE)
    sync(out)


def decoded(part: Part, stream: IO[bytes], old: Path) -> Iterator[bytes]:
    """The bytes of a file of B."""
    import zstandard

    assert part.part is not None
    source = old / part.source if part.source else None
    held = None
    if part.way == "patch":
        assert source is not None
        held = zstandard.ZstdCompressionDict(source.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    decompressor = zstandard.ZstdDecompressor(dict_data=held, max_window_size=1 << _WINDOW_LOG)
    with (
        suppress(zstandard.ZstdError),
        decompressor.stream_reader(cast("IO[bytes]", _Section(stream, part.part.bytes)), closefd=False) as reader,
    ):
        if part.way == "difference":
            assert source is not None
            for mine in _pieces(source):
                theirs = _exactly(reader, len(mine))
                yield (_numbers(theirs) + _numbers(mine[: len(theirs)])).tobytes()
        while piece := reader.read(_PIECE):
            yield piece


def _exactly(reader: IO[bytes], size: int) -> bytes:
    """So many bytes, or all that are left."""
    found = b""
    while len(found) < size and (piece := reader.read(size - len(found))):
        found += piece
    return found


class _Section:
    """The next bytes of a stream, as a file that ends there."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int = -1) -> bytes:
        """Up to so many bytes."""
        piece = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        return piece
