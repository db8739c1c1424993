"""GGUF files: a reader that trusts nothing that a file says about itself, and a writer that streams.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Reading needs NumPy only.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.ggml import TYPES, row_bytes
from edgekit.schema import refuse_pointer
from edgekit.workspace import disk_error, sync

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
# llama.cpp refuses more (GGML_MAX_DIMS; GGML_MAX_NAME with its final zero).
_MAX_EXTENTS, _MAX_NAME = 4, 63
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, np.dtype[np.generic]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_IDS = {kind: number for number, kind in _SCALARS.items()}
_NAMES = {kind.id: name for name, kind in TYPES.items()}

Scalar = str | bool | int | float
Numbers = NDArray[np.generic]
Value = Scalar | np.generic | Numbers | Sequence[Scalar]
"""What a key may be given. Python's numbers become u32 (i32, u64, i64 where they must) and f32, or i32 and f32 in a list;
a NumPy scalar or array keeps its own type."""
ReadValue = Scalar | list[str] | Numbers
"""What a key of a file holds: numbers of an array are a NumPy array, texts a list."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file: ggml type, shape (rows before columns), first byte in the file, number of bytes."""

    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """What a GGUF file's header says, checked against the file."""

    path: Path
    version: int
    metadata: dict[str, ReadValue]
    tensors: dict[str, StoredTensor]
    data_offset: int


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """A tensor that a file will hold: name, ggml type and shape (rows before columns)."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size of its data, without the padding behind it."""
        return math.prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])


def read_gguf(path: Path) -> GgufFile:
    """The metadata of a GGUF file and where its tensors lie; no tensor is read.

    Raises EdgekitError for whatever is not a whole GGUF file. Memory stays within what the file really holds.
    """
    try:
        refuse_pointer(path)
        with path.open("rb") as stream:
            return _Reader(path, stream, os.fstat(stream.fileno()).st_size).read()
    except OSError as failed:
        raise EdgekitError(f"{path}: cannot be read: {failed.strerror or failed}") from failed


def read_tensor(file: GgufFile, name: str) -> NDArray[np.uint8]:
    """The bytes of a tensor, [rows, bytes of a row], mapped from the file."""
    tensor = file.tensors[name]
    rows = math.prod(tensor.shape[:-1])
    return np.memmap(file.path, np.uint8, "r", tensor.offset, (rows, tensor.bytes // max(rows, 1)))


class _Reader:
    """Reads values one after another; what a count promises must still lie before the end of the file."""

    def __init__(self, path: Path, stream: IO[bytes], size: int) -> None:
        self.path, self.stream, self.left, self.size = path, stream, size, size

    def read(self) -> GgufFile:
        if self.left < len(MAGIC) or self.take(len(MAGIC)) != MAGIC:
            raise EdgekitError(f"{self.path}: not a GGUF file")
        version = self.number("<I")
        if version not in {2, VERSION}:
            raise self.bad(f"version {version} is unknown (big-endian files are not read)")
        tensors, keys = self.number("<q"), self.number("<q")
        # The least that one key or one tensor takes: a name's length, a type and a value; or an offset besides.
        if not 0 <= keys * 13 <= self.left or not 0 <= tensors * 24 <= self.left:
            raise self.bad(f"it promises {keys} keys and {tensors} tensors, more than fit into it")
        metadata: dict[str, ReadValue] = {}
        for _ in range(keys):
            name = self.text()
            if name in metadata:
                raise self.bad(f"the key {name!r} is there twice")
            metadata[name] = self.value(self.number("<I"), name)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self.bad(f"general.alignment is {alignment!r}, not a power of two")
        headers = [self.tensor() for _ in range(tensors)]
        start = -(-(self.size - self.left) // alignment) * alignment
        stored = self.stored(headers, start, alignment)
        return GgufFile(path=self.path, version=version, metadata=metadata, tensors=stored, data_offset=start)

    def stored(self, headers: list[tuple[TensorHeader, int]], start: int, alignment: int) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        expected = 0
        for header, offset in headers:
            if header.name in tensors:
                raise self.bad(f"the tensor {header.name!r} is there twice")
            # llama.cpp wants the tensors one behind another, so nothing can overlap.
            if offset != expected:
                raise self.bad(f"the tensor {header.name!r} is at {offset} instead of {expected}")
            if start + offset + header.bytes > self.size:
                raise self.bad(f"it ends before the data of {header.name!r}")
            tensors[header.name] = StoredTensor(
                type=header.type, shape=header.shape, offset=start + offset, bytes=header.bytes
            )
            expected = -(-(offset + header.bytes) // alignment) * alignment
        return tensors

    def tensor(self) -> tuple[TensorHeader, int]:
        name = self.text()
        count = self.number("<I")
        if not 1 <= count <= _MAX_EXTENTS:
            raise self.bad(f"the tensor {name!r} has {count} extents")
        extents = [self.number("<q") for _ in range(count)]
        kind = self.number("<I")
        if kind not in _NAMES:
            raise self.bad(f"the tensor {name!r} has the unknown type {kind}")
        if min(extents) < 0 or math.prod(extents) >= 1 << 63 or extents[0] % TYPES[_NAMES[kind]].block:
            raise self.bad(f"the tensor {name!r} cannot have the shape {extents} in {_NAMES[kind]}")
        # A file names the extent that varies fastest first.
        return TensorHeader(name=name, type=_NAMES[kind], shape=tuple(reversed(extents))), self.number("<Q")

    def value(self, kind: int, name: str) -> ReadValue:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(name)
        if kind not in _SCALARS:
            raise self.bad(f"the key {name!r} has the unknown type {kind}")
        number: bool | int | float = np.frombuffer(self.take(_SCALARS[kind].itemsize), _SCALARS[kind])[0].item()
        return number

    def array(self, name: str) -> list[str] | Numbers:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            if count * 8 > self.left:
                raise self.bad(f"{name!r} promises {count} texts, more than fit into it")
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.bad(f"{name!r} is an array of the unknown type {kind}")
        return np.frombuffer(self.take(count * _SCALARS[kind].itemsize), _SCALARS[kind])

    def text(self) -> str:
        # Not every tokenizer's pieces are whole characters.
        return self.take(self.number("<Q")).decode("utf-8", errors="surrogateescape")

    def number(self, kind: str) -> int:
        return int(struct.unpack(kind, self.take(struct.calcsize(kind)))[0])

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.bad(f"it ends {count - self.left} bytes too early")
        self.left -= count
        data = self.stream.read(count)
        if len(data) != count:
            raise self.bad("it became shorter while it was read")
        return data

    def bad(self, what: str) -> EdgekitError:
        return EdgekitError(f"{self.path}: damaged GGUF file: {what}; fetch or make it again")


class GgufWriter:
    """A GGUF file in the making: header on entering the block, then the tensors' data in the order of `tensors`, then `finish`.

    Keys are sorted and nothing of the moment enters, so equal contents give equal bytes. The file grows beside its place, under
    its name with `.partial` behind it; leaving the block without `finish` deletes it. The digest is computed on the way.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Value], tensors: Sequence[TensorHeader]) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.tensors = tensors
        self._header = _header(path, metadata, tensors)
        self._ends = _ends(len(self._header), tensors)
        self._current = self._written = 0
        self._digest = hashlib.sha256()

    @property
    def size(self) -> int:
        """How many bytes the finished file will have."""
        return self._ends[-1][1]

    def append(self, data: bytes | memoryview) -> None:
        """Write the next bytes of the tensors' data; the padding between tensors is not part of it."""
        end, padded = self._ends[self._next()]
        view = memoryview(data).cast("B")
        assert self._written + len(view) <= end, "more data than the tensor has"
        self._write(view)
        if self._written == end and padded > end:
            self._write(bytes(padded - end))

    def finish(self) -> tuple[int, str]:
        """Have the disk hold the file and give it its name; returns its length in bytes and its sha256."""
        assert self._written == self.size, f"{self.size - self._written} bytes of data are missing"
        try:
            self._stream.close()
            sync(self.partial)
            self.partial.replace(self.path)
            sync(self.path.parent)
        except OSError as failed:
            raise disk_error(self.path, failed) from failed
        return self._written, self._digest.hexdigest()

    def __enter__(self) -> Self:
        try:
            self._stream = self.partial.open("wb", buffering=0)
        except OSError as failed:
            raise disk_error(self.partial, failed) from failed
        try:
            self._write(self._header)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        self._stream.close()
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _next(self) -> int:
        """The index in `_ends` of the tensor that the next byte belongs to."""
        while self._written >= self._ends[self._current][1]:
            self._current += 1
        return self._current

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self._digest.update(view)
        self._written += len(view)
        try:
            while view:
                view = view[self._stream.write(view) :]
        except OSError as failed:
            raise disk_error(self.partial, failed) from failed


def _ends(header: int, tensors: Sequence[TensorHeader]) -> list[tuple[int, int]]:
    """(end of the data, end of the padding behind it) of the header and of each tensor, in bytes from the file's start."""
    ends = [(header, header)]
    for tensor in tensors:
        end = ends[-1][1] + tensor.bytes
        ends.append((end, -(-end // ALIGNMENT) * ALIGNMENT))
    return ends


def _header(path: Path, metadata: Mapping[str, Value], tensors: Sequence[TensorHeader]) -> bytes:
    if metadata.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        raise EdgekitError(f"{path}: general.alignment: edgekit writes {ALIGNMENT} only")
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key in sorted(metadata):
        parts += [_text(key), _value(path, key, metadata[key])]
    offset = 0
    for tensor in tensors:
        if len(tensor.name.encode()) > _MAX_NAME:
            raise EdgekitError(f"{path}: tensor {tensor.name}: its name is longer than {_MAX_NAME} bytes")
        extents = tuple(reversed(tensor.shape))
        parts.append(_text(tensor.name))
        parts.append(struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, TYPES[tensor.type].id, offset))
        offset = -(-(offset + tensor.bytes) // ALIGNMENT) * ALIGNMENT
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(path: Path, key: str, value: Value) -> bytes:
    """A value's type and its bytes."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, np.ndarray | Sequence):
        return struct.pack("<I", _ARRAY) + _array(path, key, value)
    scalar = value if isinstance(value, np.generic) else _scalar(path, key, value)
    return struct.pack("<I", _id(path, key, scalar.dtype)) + scalar.tobytes()


def _array(path: Path, key: str, value: Numbers | Sequence[Scalar]) -> bytes:
    if len(value) and all(isinstance(item, str) for item in value):
        return struct.pack("<IQ", _STRING, len(value)) + b"".join(_text(str(item)) for item in value)
    if not isinstance(value, np.ndarray):
        kinds = {type(item) for item in value}
        kind = {frozenset({bool}): "?", frozenset({int}): "<i4", frozenset({float}): "<f4"}.get(frozenset(kinds))
        if kind is None:
            raise EdgekitError(
                f"{path}: {key}: an array of no values or of values of several types; pass a NumPy array"
            )
        value = np.array(value, kind)
    return struct.pack("<IQ", _id(path, key, value.dtype), len(value)) + value.tobytes()


def _scalar(path: Path, key: str, value: Scalar) -> np.generic:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    for kind in (np.uint32, np.int32, np.uint64, np.int64):
        if np.iinfo(kind).min <= int(value) <= np.iinfo(kind).max:
            return kind(value)
    raise EdgekitError(f"{path}: {key}: {value} fits in no integer of the format")


def _id(path: Path, key: str, kind: np.dtype[np.generic]) -> int:
    little = kind.newbyteorder("<")
    if little not in _IDS or kind != little:
        raise EdgekitError(f"{path}: {key}: the format has no {kind}")
    return _IDS[little]
