"""Importance matrices in llama.cpp's format: how large each input channel of each tensor is on the calibrate prompts.

A quantizer weighs the error in column j of a tensor by the mean square of the j-th input: the expected square of what the
error does to the output, where inputs are uncorrelated. Format: llama.cpp, tools/imatrix/imatrix.cpp (`save_imatrix`,
`save_imatrix_legacy`) and common/imatrix-loader.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import MAGIC, GgufFile, GgufWriter, TensorHeader, Value, read_gguf, read_tensor
from edgekit.formats.gguf.schemes import Chosen, Shape

if TYPE_CHECKING:
    from edgekit.calibration import Calibration

_SUMS, _COUNTS = ".in_sum2", ".counts"
# llama.cpp counts prompts in chunks of this many tokens by default.
_CHUNK = 512
# A channel that no prompt reached weighs this share of the mean: with 0, a block of such channels would be rounded to 0.
_UNREACHED = 1e-6


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor's inputs: the sum of each channel's squares, float32 [columns], over `count` tokens."""

    sums: NDArray[np.float32]
    count: int

    @property
    def mean_square(self) -> NDArray[np.float32]:
        """Float32 [columns], divided in float32 as llama.cpp divides, so that both quantize to the same bytes."""
        return self.sums / np.float32(self.count)


@dataclass(frozen=True, kw_only=True)
class Imatrix:
    """Entries by GGUF tensor name, and where they come from: data sets, chunks of `chunk_size` tokens (0: not known)."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int = _CHUNK

    def importance(self) -> dict[str, NDArray[np.float32]]:
        """The mean square of each input channel, float32 [columns], of every tensor that some token reached."""
        return {name: entry.mean_square for name, entry in self.entries.items() if entry.count > 0}


def from_calibration(calibration: Calibration, names: Mapping[str, str], *, dataset: str) -> Imatrix:
    """An importance matrix from a Calibration's mean squares; what `names` does not name is left out.

    `names` gives the GGUF tensor of a module path ("model.model.layers.0.mlp.up_proj"); calls of one module are added up.
    `dataset` is the name of the prompts, for the record.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for key, stats in sorted(calibration.stats.items()):
        name = names.get(key.rpartition("#")[0])
        if name is not None and stats.count:
            sums[name] = sums.get(name, np.float64(0)) + stats.mean_square.astype(np.float64) * stats.count
            counts[name] = counts.get(name, 0) + stats.count
    entries = {
        name: Entry(sums=np.maximum(total, total.mean() * _UNREACHED).astype(np.float32), count=counts[name])
        for name, total in sorted(sums.items())
        if total.any()
    }
    tokens = max(counts.values(), default=0)
    return Imatrix(entries=entries, datasets=(dataset,), chunks=-(-tokens // _CHUNK))


def check_imatrix(imatrix: Imatrix, tensors: Sequence[Shape], chosen: Chosen, where: str) -> None:
    """Refuse a matrix that is another model's, or that does not cover a tensor which needs it; EdgekitError begins with `where`.

    `chosen` is the choice of types made with this matrix.
    """
    widths = {tensor.name: tensor.columns for tensor in tensors}
    for name, entry in sorted(imatrix.entries.items()):
        if name not in widths:
            raise EdgekitError(
                f"{where}: it has {name}, which the model has not: an importance matrix of another model"
            )
        if entry.sums.size != widths[name]:
            raise EdgekitError(
                f"{where}: {name} has {entry.sums.size} channels there and {widths[name]} in the model:"
                " an importance matrix of another model"
            )
    if chosen.uncovered:
        first, count = chosen.uncovered[0], len(chosen.uncovered)
        raise EdgekitError(
            f"{where}: it does not cover {first} ({count} such tensor{'s' if count > 1 else ''}), whose type"
            f" {chosen.types[first]} needs it; calibrate with prompts that reach it, or choose q8_0, or no importance matrix"
        )


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write a matrix as llama.cpp's programs read it, the same bytes for the same contents."""
    metadata: dict[str, Value] = {
        "general.type": "imatrix",
        "imatrix.datasets": list(imatrix.datasets),
        "imatrix.chunk_count": imatrix.chunks,
        "imatrix.chunk_size": imatrix.chunk_size,
    }
    entries = sorted(imatrix.entries.items())
    headers = [
        header
        for name, entry in entries
        for header in (
            TensorHeader(name=name + _SUMS, type="f32", shape=(entry.sums.size,)),
            TensorHeader(name=name + _COUNTS, type="f32", shape=(1,)),
        )
    ]
    with GgufWriter(path, metadata, headers) as writer:
        for _, entry in entries:
            writer.append(np.ascontiguousarray(entry.sums, "<f4").tobytes())
            writer.append(np.float32(entry.count).tobytes())
        writer.finish()


def read_imatrix(path: Path) -> Imatrix:
    """Read a matrix that edgekit or llama-imatrix wrote, in its GGUF format or the older binary one (.dat).

    Raises EdgekitError for a file that is neither, is damaged, or belongs to a mixture of experts.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(MAGIC))
    except OSError as failed:
        raise EdgekitError(f"{path}: cannot be read: {failed.strerror or failed}") from failed
    imatrix = _read_gguf(read_gguf(path)) if start == MAGIC else _Legacy(path).read()
    for name, entry in imatrix.entries.items():
        if not (np.isfinite(entry.sums).all() and (entry.sums >= 0).all() and entry.count >= 0):
            raise EdgekitError(f"{path}: {name} has values that are no sums of squares; make the matrix again")
    return imatrix


def _read_gguf(file: GgufFile) -> Imatrix:
    if file.metadata.get("general.type") != "imatrix":
        raise EdgekitError(f"{file.path}: a GGUF file, but no importance matrix (general.type is not 'imatrix')")
    entries = {}
    for name in sorted(file.tensors):
        stem, counts = name.removesuffix(_SUMS), name.removesuffix(_SUMS) + _COUNTS
        if stem == name:
            continue
        if counts not in file.tensors or {file.tensors[name].type, file.tensors[counts].type} != {"f32"}:
            raise EdgekitError(f"{file.path}: {stem} lacks its float32 counts; make the matrix again")
        count = _floats(file, counts)
        if count.size != 1:
            raise EdgekitError(
                f"{file.path}: {stem} has {count.size} counts: a mixture of experts, which edgekit has not"
            )
        if not np.isfinite(count[0]):
            raise EdgekitError(f"{file.path}: {stem} has no finite count; make the matrix again")
        entries[stem] = Entry(sums=_floats(file, name), count=round(float(count[0])))
    if not entries:
        raise EdgekitError(f"{file.path}: an importance matrix without entries")
    datasets, numbers = file.metadata.get("imatrix.datasets"), ("imatrix.chunk_count", "imatrix.chunk_size")
    chunks, size = (value if isinstance(value := file.metadata.get(key), int) else 0 for key in numbers)
    return Imatrix(
        entries=entries,
        datasets=tuple(map(str, datasets)) if isinstance(datasets, list) else (),
        chunks=chunks,
        chunk_size=size,
    )


def _floats(file: GgufFile, name: str) -> NDArray[np.float32]:
    return np.frombuffer(read_tensor(file, name).tobytes(), "<f4").astype(np.float32)


class _Legacy:
    """Reads the binary format of before 2025: int32 numbers and names one after another, nothing that says what it is."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.offset = path, memoryview(path.read_bytes()), 0

    def read(self) -> Imatrix:
        entries = {}
        for _ in range(self.number(least=1)):
            name = self.text()
            count = self.number()
            entries[name] = Entry(
                sums=np.frombuffer(self.take(4 * self.number(least=1)), "<f4").astype(np.float32),
                # llama.cpp takes the sums as they are where they were counted by nothing.
                count=count or 1,
            )
        chunks = 0
        datasets: tuple[str, ...] = ()
        if self.offset < len(self.data):
            chunks, datasets = self.number(), (self.text(),)
        return Imatrix(entries=dict(sorted(entries.items())), datasets=datasets, chunks=chunks, chunk_size=0)

    def text(self) -> str:
        return bytes(self.take(self.number())).decode("utf-8", errors="replace")

    def number(self, least: int = 0) -> int:
        value = int(struct.unpack("<i", self.take(4))[0])
        if value < least:
            raise self.bad()
        return value

    def take(self, count: int) -> memoryview:
        if self.offset + count > len(self.data):
            raise self.bad()
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def bad(self) -> EdgekitError:
        return EdgekitError(
            f"{self.path}: not an importance matrix, or a damaged one; make it again with llama-imatrix"
        )
