"""A checkpoint's tensors, from safetensors to a GGUF file in one pass: rows are read by position, converted, quantized, written.

Nothing is ever held whole. Threads compute while this one writes and hashes in order, so the bytes do not depend on how many
(rounding with feedback multiplies matrices, whose last bits may).
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.file import GgufWriter, TensorHeader, Value
from edgekit.formats.gguf.mixed.gptq import CODES, round_rows
from edgekit.formats.gguf.tensors import Tensor, plan
from edgekit.grid import Packed
from edgekit.model import Model

__all__ = ["Converted", "Quantization", "Tensor", "convert", "plan"]

# Values that a thread converts at once: its buffers fit into a CPU's cache, and Python's share stays small.
_VALUES = 1 << 19
_SOURCES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_EXPONENTS = {"f16": 0x7C00, "bf16": 0x7F80}
# The largest numbers of the two short types. A block of a quantized type has a scale in f16.
_LIMITS = {"f32": float(np.finfo(np.float32).max), "bf16": float(np.float32(3.3895314e38)), "f16": 65504.0}
# llama.cpp's converter keeps these in f32 whatever the type of the file (conversion/base.py), beside vectors and norms.
_KEPT = ("position_embd.weight", "token_types.weight")
# ggml has no quantizer for these without importances; it would end the process.
_NEEDS_IMPORTANCE = frozenset({"iq1_s", "iq2_xxs", "iq2_xs"})


Number = TypeVar("Number", bound=np.generic)
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What each tensor is rounded to, and how.

    types: ggml's, by GGUF name. through: "f16" or "bf16" to round matrices to that type before they are quantized, as
    llama.cpp's converter and quantizer in a row do. importance: what an error in each column weighs, float32 [columns], by GGUF
    name. feedback: asked once for each tensor of a type in gptq.CODES, in the file's order; it gives `round_rows`' `spread`, or
    None to round as ggml does. trained: the codes and scales that the model was trained with, which are written as they are.
    """

    types: Mapping[str, str]
    through: Literal["f16", "bf16"] | None = None
    importance: Mapping[str, Floats] = field(default_factory=dict)
    feedback: Callable[[str], Floats | None] | None = None
    trained: Packed | None = None


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A file that was written: bytes, sha256, how many tensors and weights it has, and how many tensors of each type."""

    bytes: int
    sha256: str
    tensors: int
    parameters: int
    types: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Some rows of a tensor, and what becomes of them."""

    tensor: Tensor
    first: int
    rows: int
    type: str
    through: str | None
    importance: Floats | None
    spread: Floats | None
    codes: NDArray[np.uint8] | None = None
    """What the piece's tensor was trained with, [rows, bytes of a row], in the checkpoint's order."""

    @property
    def bytes(self) -> int:
        return self.rows * ggml.row_bytes(self.type, self.tensor.columns)


def convert(
    model: Model,
    out: Path,
    quantization: Quantization,
    metadata: Mapping[str, Value],
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write a checkpoint's tensors, rounded as `quantization` says, and the metadata to `out`.

    progress: called with the bytes written so far and in all.

    The file grows under another name beside its own and is renamed when the disk holds it. Raises EdgekitError for what
    `plan` refuses, for weights that are NaN, infinite or too large for their type, and for a type that does not fit a tensor.
    """
    tensors = plan(model)
    _check(model, tensors, quantization)
    ggml.load()
    headers = [
        TensorHeader(name=tensor.name, type=quantization.types[tensor.name], shape=tensor.shape) for tensor in tensors
    ]
    with GgufWriter(out, metadata, headers) as file:
        written = file.size - sum(header.bytes for header in headers)
        for data in _converted(_pieces(tensors, quantization), threads):
            file.append(data)
            written += len(data)
            if progress is not None:
                progress(min(written, file.size), file.size)
        size, digest = file.finish()
    return Converted(
        bytes=size,
        sha256=digest,
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        types=dict(sorted(Counter(header.type for header in headers).items())),
    )


def _check(model: Model, tensors: list[Tensor], quantization: Quantization) -> None:
    types, importance = quantization.types, quantization.importance
    names = {tensor.name for tensor in tensors}
    if foreign := sorted({*types, *importance} - names):
        raise EdgekitError(f"{model.folder}: {foreign[0]}: no such tensor in this model; it was chosen for another one")
    for tensor in tensors:
        if tensor.name not in types:
            raise EdgekitError(f"{model.folder}: {tensor.name}: no type was chosen for it")
        ggml.row_bytes(types[tensor.name], tensor.shape[-1])
        weights = importance.get(tensor.name)
        if weights is not None and weights.shape != tensor.shape[1:]:
            raise EdgekitError(
                f"{model.folder}: {tensor.name}: {weights.size} importances for {tensor.shape[-1]} columns;"
                " they are another model's"
            )
        if weights is None and types[tensor.name] in _NEEDS_IMPORTANCE:
            raise EdgekitError(
                f"{model.folder}: {tensor.name}: {types[tensor.name]} needs importances; give calibration prompts"
            )


def _pieces(tensors: list[Tensor], quantization: Quantization) -> Iterator[_Piece]:
    feedback = quantization.feedback
    for tensor in tensors:
        name, kind = tensor.name, quantization.types[tensor.name]
        spread = feedback(name) if feedback is not None and kind in CODES else None
        matrix = len(tensor.shape) > 1 and not name.endswith("_norm.weight") and name not in _KEPT
        group = tensor.head or 1
        # With feedback, each column is a step in Python: more rows at once.
        values = _VALUES * (16 if spread is not None else 1)
        codes = _trained(tensor, kind, quantization.trained)
        step = max(values // tensor.columns // group, 1) * group
        for first in range(0, tensor.rows, step):
            yield _Piece(
                tensor=tensor,
                first=first,
                rows=min(step, tensor.rows - first),
                type=kind,
                through=quantization.through if matrix else None,
                importance=quantization.importance.get(name),
                spread=spread,
                codes=codes,
            )


def _converted(pieces: Iterator[_Piece], threads: int) -> Iterator[memoryview]:
    """The bytes of each piece in order. What is given is valid until the next is asked for."""
    scratch = _Scratch()
    free: SimpleQueue[bytearray] = SimpleQueue()
    waiting: deque[tuple[Future[memoryview], bytearray]] = deque()
    # Enough that no thread waits while this one writes.
    ahead = 2 * max(threads, 1) + 1
    for _ in range(ahead):
        free.put(bytearray())
    pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="convert")
    try:
        for piece in pieces:
            if len(waiting) == ahead:
                yield from _first(waiting, free)
            buffer = free.get()
            waiting.append((pool.submit(_compute, piece, scratch, buffer), buffer))
        while waiting:
            yield from _first(waiting, free)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _first(waiting: deque[tuple[Future[memoryview], bytearray]], free: SimpleQueue[bytearray]) -> Iterator[memoryview]:
    future, buffer = waiting.popleft()
    with future.result() as data:
        yield data
    free.put(buffer)


class _Scratch(threading.local):
    """The buffers of a thread; they grow to the largest piece and stay."""

    def __init__(self) -> None:
        self.held: dict[str, NDArray[np.uint8]] = {}

    def take(self, use: str, count: int, kind: type[Number]) -> NDArray[Number]:
        size = count * np.dtype(kind).itemsize
        if use not in self.held or self.held[use].size < size:
            self.held[use] = np.empty(size, np.uint8)
        return self.held[use][:size].view(kind)


def _compute(piece: _Piece, scratch: _Scratch, out: bytearray) -> memoryview:
    """Read, convert and quantize a piece into `out`."""
    if len(out) < piece.bytes:
        out.extend(bytes(piece.bytes - len(out)))
    view = memoryview(out)[: piece.bytes]
    tensor = piece.tensor
    if tensor.source is None:
        assert tensor.values is not None
        ggml.quantize(tensor.values.reshape(-1, tensor.columns)[piece.first :][: piece.rows], piece.type, out=view)
        return view
    source = _SOURCES[tensor.source.dtype]
    raw = _read(piece, scratch)
    if source in _EXPONENTS and {piece.type, piece.through or source} == {source} and not tensor.add:
        # The bits stay as they are.
        words = raw.view(np.uint16)
        _check_bits(piece, words, _EXPONENTS[source])
        np.frombuffer(view, np.uint8)[:] = words.view(np.uint8)
        return view
    rows = _floats(piece, raw, source, scratch).reshape(piece.rows, tensor.columns)
    if piece.codes is not None:
        view[:] = _as_trained(piece, piece.codes, rows).reshape(-1).data
    elif piece.spread is not None:
        view[:] = round_rows(rows, piece.type, piece.spread, piece.importance).reshape(-1).data
    else:
        ggml.quantize(rows, piece.type, piece.importance, view)
    return view


def _read(piece: _Piece, scratch: _Scratch) -> NDArray[np.uint8]:
    """The bytes of a piece's rows, in the order that llama.cpp wants."""
    tensor, info = piece.tensor, piece.tensor.source
    assert info is not None
    width = (info.end - info.begin) // math.prod(info.shape) * tensor.columns
    raw = scratch.take("raw", piece.rows * width, np.uint8)
    try:
        # Each piece opens the file for itself: threads share no position, and any system can do it.
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(info.begin + (tensor.skip + piece.first) * width)
            view = raw.data
            while view:
                count = stream.readinto(view)
                if not count:
                    raise EdgekitError(f"{info.file}: it became shorter while it was read")
                view = view[count:]
    except OSError as failed:
        raise EdgekitError(f"{info.file}: cannot be read: {failed.strerror or failed}") from failed
    return _interleaved(raw, tensor.head, width, scratch.take("turned", raw.size, np.uint8)) if tensor.head else raw


def _interleaved(rows: NDArray[np.uint8], head: int, width: int, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of `width` bytes with the halves of each head interleaved, as llama.cpp rotates them; `out` is filled."""
    halves = rows.reshape(-1, 2, head // 2, width)
    out.reshape(-1, head // 2, 2, width)[:] = halves.swapaxes(1, 2)
    return out


def _trained(tensor: Tensor, kind: str, trained: Packed | None) -> NDArray[np.uint8] | None:
    """The codes that a tensor was trained with; None where it was trained on no grid."""
    if trained is None or tensor.origin not in trained.kinds:
        return None
    codes, shape = trained.rows(tensor.origin), (tensor.rows, ggml.row_bytes(kind, tensor.columns))
    if trained.kinds[tensor.origin] != kind or codes.shape != shape:
        raise EdgekitError(
            f"{trained.file}: {tensor.origin}: {trained.kinds[tensor.origin]} {list(codes.shape)}, where {kind} {list(shape)} is"
            " to be written; make the step qad again"
        )
    return codes


def _as_trained(piece: _Piece, codes: NDArray[np.uint8], rows: Floats) -> NDArray[np.uint8]:
    """A piece's codes in the file's order. EdgekitError where they do not stand for its weights."""
    tensor = piece.tensor
    mine = codes[piece.first :][: piece.rows]
    if tensor.head:
        mine = _interleaved(mine, tensor.head, codes.shape[1], np.empty_like(mine))
    if not np.array_equal(ggml.dequantize(mine, piece.type, tensor.columns), rows):
        raise EdgekitError(
            f"{tensor.where}: its weights are not those that it was trained with; the folder was changed: make the step qad again"
        )
    return mine


def _floats(piece: _Piece, raw: NDArray[np.uint8], source: str, scratch: _Scratch) -> Floats:
    """A piece's values in float32, after what is added to them and rounded as `through` says."""
    if source == "f32":
        values = raw.view(np.float32)
    else:
        values = scratch.take("values", raw.size // 2, np.float32)
        ggml.to_float(raw.view(np.uint16), source, values)
    if piece.tensor.add:
        values += np.float32(piece.tensor.add)
    narrow = {piece.type, piece.through or piece.type} - {"f32", "bf16"}
    kinds = {"f16"} if narrow else {piece.type, piece.through or piece.type}
    _check_range(piece, values, min(_LIMITS[kind] for kind in kinds))
    if piece.through and piece.through != source:
        words = scratch.take("rounded", values.size, np.uint16)
        ggml.from_float(values, piece.through, words)
        ggml.to_float(words, piece.through, values)
    return values


def _check_bits(piece: _Piece, words: NDArray[np.uint16], exponent: int) -> None:
    if ((words & exponent) == exponent).any():
        raise _damaged(piece)


def _check_range(piece: _Piece, values: Floats, limit: float) -> None:
    # NaN is neither above nor below: it fails the comparison too.
    largest = max(float(values.max()), -float(values.min()))
    if largest <= limit:
        return
    if not np.isfinite(values).all():
        raise _damaged(piece)
    kind = piece.through or piece.type
    raise EdgekitError(
        f"{piece.tensor.where}: weights up to {largest:.4g}, more than {kind} holds ({limit:.0f}); choose f32 or bf16 for it"
    )


def _damaged(piece: _Piece) -> EdgekitError:
    return EdgekitError(f"{piece.tensor.where} has NaN or infinite weights; the checkpoint is damaged")


def float_rows(tensor: Tensor) -> Iterator[Floats]:
    """A tensor's rows in float32 [n, columns], in the file's order, so many at once as a thread converts.

    What is given is valid until the next is asked for. Raises EdgekitError as `convert` does.
    """
    scratch = _Scratch()
    for piece in _pieces([tensor], Quantization(types={tensor.name: "f32"})):
        if tensor.source is None:
            assert tensor.values is not None
            yield tensor.values.reshape(-1, tensor.columns)[piece.first :][: piece.rows]
        else:
            values = _floats(piece, _read(piece, scratch), _SOURCES[tensor.source.dtype], scratch)
            yield values.reshape(piece.rows, tensor.columns)
