"""Which tensors of two model files differ, and by how much as they multiply: dequantized by gguf-py, or by onnxruntime itself.

Of an ONNX file the weights that edgekit wrote are dequantized (`inspect.onnx_grid`); integers of other tools are compared as they
are. Where a smoothed file is compared with another (SmoothQuant), factors that went into the weights count as differences.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.errors import require

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# What edgekit adds to the name of a weight that it rounds.
_CODES = re.compile(r"\.int\d+$")
# Values of a tensor that are floats at once: 64 MiB.
_VALUES = 1 << 24
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a file. key: its name without what says how it is rounded. read: its float values, in pieces; None where nobody
    can tell them. data: its bytes as they lie in the file, in pieces. scaled: whether its scales are another tensor's.
    """

    key: str
    name: str
    type: str
    shape: tuple[int, ...]
    data: Callable[[], Iterator[bytes]]
    read: Callable[[], Iterator[Floats]] | None
    scaled: bool = False


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """A tensor that is not the same in B. largest, mean: of |b - a|, in the weights' own unit; relative: the root of the squared
    differences' sum by that of A's squares. None where the shapes differ, or nobody can tell the values."""

    name: str
    change: Literal["changed", "added", "removed"]
    a: str | None
    b: str | None
    largest: float | None = None
    mean: float | None = None
    relative: float | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How many tensors are the same, and all others: those that changed most come first, matrices before vectors."""

    same: int
    changed: int
    added: int
    removed: int
    tensors: tuple[TensorChange, ...]


def compare_weights(a: Path, b: Path) -> Weights | None:
    """What became of A's tensors in B; None where one is a GGUF file and the other is not, so that names have nothing in common.

    Raises EdgekitError for a file that is not whole, and where gguf-py is needed and not there.
    """
    if (a.suffix == ".gguf") != (b.suffix == ".gguf"):
        return None
    before, after = ({tensor.key: tensor for tensor in _tensors(path)} for path in (a, b))
    changes: list[TensorChange] = []
    matrices = {tensor.name for tensor in (*before.values(), *after.values()) if len(tensor.shape) > 1}
    for key in sorted(before.keys() | after.keys()):
        mine, theirs = before.get(key), after.get(key)
        if mine is None:
            assert theirs is not None
            changes.append(TensorChange(name=theirs.name, change="added", a=None, b=_shown(theirs)))
        elif theirs is None:
            changes.append(TensorChange(name=mine.name, change="removed", a=_shown(mine), b=None))
        elif (change := _compare(mine, theirs)) is not None:
            changes.append(change)
    count = {kind: sum(one.change == kind for one in changes) for kind in ("changed", "added", "removed")}
    changes.sort(key=lambda one: (one.relative is None, one.name not in matrices, -(one.relative or 0.0), one.name))
    return Weights(same=len(before.keys() & after.keys()) - count["changed"], **count, tensors=tuple(changes))


def _shown(tensor: Tensor) -> str:
    return f"{tensor.type} [{', '.join(map(str, tensor.shape))}]"


def _compare(a: Tensor, b: Tensor) -> TensorChange | None:
    """None where both are the same: type, shape, bytes and, of a rounded one, what it multiplies by."""
    alike = (a.type, a.shape) == (b.type, b.shape) and _same(a.data(), b.data())
    if alike and not (a.scaled or b.scaled):
        return None
    apart = _apart(a, b)
    if alike and (apart is None or apart["largest"] == 0):
        return None
    return TensorChange(name=b.name, change="changed", a=_shown(a), b=_shown(b), **(apart or {}))


def _same(one: Iterator[bytes], other: Iterator[bytes]) -> bool:
    return all(mine == theirs for mine, theirs in zip(one, other, strict=True))


def _apart(a: Tensor, b: Tensor) -> dict[str, float] | None:
    """How far the values are apart; None where there are none of one of them, or of another number."""
    import numpy as np

    if a.read is None or b.read is None or math.prod(a.shape) == 0:
        return None
    largest = total = squares = power = 0.0
    count = 0
    for mine, theirs in zip_longest(a.read(), b.read()):
        if mine is None or theirs is None or mine.shape != theirs.shape:
            return None
        wanted = mine.astype(np.float64)
        differences = np.abs(theirs - wanted)
        largest = max(largest, float(differences.max(initial=0.0)))
        total += float(differences.sum())
        squares += float((differences**2).sum())
        power += float((wanted**2).sum())
        count += differences.size
    if not math.isfinite(total):
        return None
    relative = math.sqrt(squares / power) if power else float(squares > 0)
    found = {"largest": largest, "mean": total / max(count, 1), "relative": relative}
    return {key: float(f"{value:.{_DIGITS}g}") for key, value in found.items()}


def _tensors(path: Path) -> Iterator[Tensor]:
    return _gguf(path) if path.suffix == ".gguf" else _onnx(path)


def _gguf(path: Path) -> Iterator[Tensor]:
    require("gguf", extra="gguf")
    from edgekit.formats.gguf.file import read_gguf, read_tensor

    file = read_gguf(path)
    for name, stored in file.tensors.items():
        rows = partial(read_tensor, file, name)
        yield Tensor(
            key=name,
            name=name,
            type=stored.type,
            shape=stored.shape,
            data=partial(_row_bytes, rows),
            read=partial(_row_values, rows, stored.type, stored.shape[-1] if stored.shape else 1),
        )


def _row_bytes(rows: Callable[[], NDArray[np.uint8]]) -> Iterator[bytes]:
    data = rows().reshape(-1)
    for begin in range(0, data.size, _VALUES):
        yield data[begin : begin + _VALUES].tobytes()


def _row_values(rows: Callable[[], NDArray[np.uint8]], kind: str, columns: int) -> Iterator[Floats]:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data, step = rows(), max(_VALUES // max(columns, 1), 1)
    number = GGMLQuantizationType[kind.upper()]
    for begin in range(0, len(data), step):
        yield dequantize(np.ascontiguousarray(data[begin : begin + step]), number).astype(np.float32, copy=False)


def _onnx(path: Path) -> Iterator[Tensor]:
    from edgekit.formats.onnx import ort
    from edgekit.formats.onnx.files import external_files, read
    from edgekit.inspect.onnx_file import graph_of, tensor_type

    if path.suffix == ort.SUFFIX:
        model = ort.read_ort(path)
    else:
        model = read(path)
        external_files(model, path)  # all of them are there, beside it
    rounded, weights = _rounded(model), graph_of(model).weights
    tables = {node.input[0] for node in model.graph.node if node.op_type in {"Gather", "GatherBlockQuantized"}}
    for name, tensor in sorted(weights.items()):
        plain = _CODES.sub("", name)
        array = partial(_array, tensor, path.parent)
        reader: Callable[[], Iterator[Floats]] | None = None
        if name in rounded:
            reader = partial(_channels, rounded[name], is_table=name in tables)
        elif "float" in tensor_type(tensor):
            reader = partial(_whole, array)
        codes = _CODES.search(name) if name in rounded else None
        yield Tensor(
            key=name if plain in weights else plain,
            name=name,
            type=codes.group()[1:] if codes else tensor_type(tensor),
            shape=tuple(tensor.dims),
            data=partial(_array_bytes, array),
            read=reader,
            scaled=name in rounded,
        )


def _rounded(model: onnx.ModelProto) -> Mapping[str, Callable[[], tuple[str, str, Floats]]]:
    """How the rounded weights are read; empty of a file whose weights another tool laid out otherwise."""
    from edgekit.inspect.onnx_grid import quantized_weights

    try:
        return quantized_weights(model)
    except (KeyError, IndexError):
        return {}


def _array(tensor: onnx.TensorProto, folder: Path) -> NDArray[np.generic]:
    from onnx import numpy_helper

    found: NDArray[np.generic] = numpy_helper.to_array(tensor, base_dir=str(folder))
    return found


def _array_bytes(array: Callable[[], NDArray[np.generic]]) -> Iterator[bytes]:
    yield array().tobytes()


def _whole(array: Callable[[], NDArray[np.generic]]) -> Iterator[Floats]:
    import numpy as np

    yield array().astype(np.float32)


def _channels(read: Callable[[], tuple[str, str, Floats]], *, is_table: bool) -> Iterator[Floats]:
    """As the float weight lies in a graph: a product's outputs are its columns."""
    values = read()[2]
    yield values if is_table else values.T
