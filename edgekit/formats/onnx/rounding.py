"""The grid of an ONNX scheme: how each weight of an encoder is rounded, and what a student was trained with (see `trained`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.trained import ByValues, Channel
from edgekit.grid import Coded, Grid, Inputs, Layout, read_packed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.formats.onnx.options import Options
    from edgekit.grid import Packed
    from edgekit.model import Model

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

# Schemes that round a weight by itself alone, with nothing that calibration chooses.
ROUNDED = ("int8-dynamic", "w8", "w4")
# Those of which it is measured how inputs are read.
READS = ("int8-dynamic", "int8-static")
_TABLES = re.compile(r"embedding", re.IGNORECASE)
# Tables that no name tells, which stay float.
_FLOAT = re.compile(r"relative_attention_bias")
_SCALE_BYTES = 4
# How a kind is written: int8 (a scale a channel), pairs (the same with `reduce_range`), wBITS/BLOCK, table (a scale a row) and
# table/w4/BLOCK.
_BLOCKS = re.compile(r"(?:table/)?w(\d)/(\d+)$")
# What is rounded with feedback where a training begins: rounding to 8 bits loses too little, and a table is no product.
_FITTED = re.compile(r"w4/")


def make_grid(format_: str, model: Model, options: Options) -> Grid:
    """What a scheme makes of an encoder's weights, from its headers alone.

    Raises EdgekitError for a scheme that rounds nothing, and for one that is chosen when the file is written.
    """
    from edgekit.formats.gptq import round_linears

    if options.scheme not in {*ROUNDED, *READS}:
        raise EdgekitError(
            f"onnx {options.scheme}: [qad] trains for a scheme that rounds weights, and this one rounds none or is chosen when"
            f" the file is written; name a scheme, such as --scheme int8-dynamic (or {', '.join((*READS[1:], *ROUNDED[1:]))})"
        )
    kinds = _kinds(model, options)
    fitted = {name: kind for name, kind in kinds.items() if _FITTED.match(kind)}
    return Grid(
        format=format_,
        scheme=options.scheme,
        kinds=kinds,
        pack=pack,
        unpack=unpack,
        layouts=make_layouts(kinds.values()),
        fit=partial(round_linears, kinds=fitted, pack=pack_fitted) if fitted else None,
        inputs=Inputs(
            fixed=options.scheme == "int8-static", smoothing=options.smoothing, float_layers=options.float_layers
        )
        if options.scheme in READS
        else None,
    )


def _kind(name: str, shape: tuple[int, ...], options: Options) -> str | None:
    from edgekit.formats.onnx.table import SMALLEST_TABLE_ROWS, TABLE_BLOCK, bits_of

    if len(shape) != 2 or _FLOAT.search(name):
        return None
    if _TABLES.search(name):
        if shape[0] < SMALLEST_TABLE_ROWS:
            return None
        return "table" if bits_of(shape[1], options.table_bits) == 8 else f"table/w4/{TABLE_BLOCK}"
    if options.scheme in {"w8", "w4"}:
        return f"{options.scheme}/{options.block}"
    return "pairs" if options.reduce_range else "int8"


def pack(rows: Floats, kind: str, *, weighted: bool = False) -> Bytes:
    """Rows [n, columns] as the file has them: each row's codes, then its scales, uint8 [n, bytes].

    weighted: 4 bits by `pack_weighted`, as a decoder's are.
    """
    import numpy as np

    from edgekit.formats.onnx.packing import pack_blocks, pack_weighted
    from edgekit.formats.onnx.quantize import weight_int8
    from edgekit.formats.onnx.table import table_int8

    if found := _BLOCKS.match(kind):
        bits, block = int(found[1]), int(found[2])
        if weighted and bits == 4:
            codes, scales = pack_weighted(rows.T, None, block=block)
        else:
            codes, scales = pack_blocks(rows.T, bits=bits, block=block)
        parts = [codes.reshape(len(rows), -1), scales.reshape(len(rows), -1)]
    elif kind == "table":
        parts = list(table_int8(rows))
    else:
        integers, scale = weight_int8(rows.T, reduce_range=kind == "pairs")
        parts = [integers.T, scale[:, None]]
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


def pack_fitted(rows: Floats, kind: str, spread: Floats, importance: Floats, wanted: Floats) -> Bytes:
    """Rows rounded with feedback (`gptq.Pack`), each block's scale the best for what the columns before it made of its values."""
    import numpy as np

    from edgekit.formats.gptq import round_columns
    from edgekit.formats.onnx.packing import pack_weighted

    count, columns = rows.shape
    found = _BLOCKS.match(kind)
    block = int(found[2]) if found else columns
    filled = -columns % block
    padded, weights = np.pad(rows, ((0, 0), (0, filled))), np.pad(importance, (0, filled))
    scales = np.empty((count, padded.shape[1] // block), np.float32)

    def place(first: int, values: Floats) -> tuple[Floats, Floats]:
        scales[:, first // block] = scale = pack_weighted(values.T, weights[first : first + block], block=block)[1]
        every = np.repeat(scale[:, None], block, axis=1)
        return every * np.float32(-8), every

    codes = round_columns(padded, np.pad(spread, (0, filled)), block, np.arange(16, dtype=np.float32), place)
    wanted[:] = padded[:, :columns]
    numbers = codes.reshape(*scales.shape, block).astype(np.float32) - np.float32(8)
    return _join(kind, Coded(codes=numbers, scales=scales))


def unpack(data: Bytes, kind: str, columns: int) -> Floats:
    """The numbers that onnxruntime reads in packed rows, float32 [n, columns]."""
    import numpy as np

    codes, scales = split(data, kind, columns)
    blocks = _numbers(codes, kind).reshape(*scales.shape, -1) * scales[..., None]
    return np.ascontiguousarray(blocks.reshape(len(data), -1)[:, :columns])


def make_layouts(kinds: Iterable[str]) -> dict[str, Layout]:
    """How kinds hold codes and scales; pairs are left out, whose scales keep sums of two codes in range."""
    return {kind: _layout(kind) for kind in {*kinds} - {"pairs"}}


def _layout(kind: str) -> Layout:
    found = _BLOCKS.match(kind)
    half = 1 << (int(found[1]) - 1) if found else 128
    # The lowest code of int8 is left out: scales are symmetric there.
    low = -half if found else 1 - half
    return Layout(low=low, high=half - 1, split=partial(_split_codes, kind), join=partial(_join, kind), hold=_keep)


def _keep(scales: Floats) -> Floats:
    return scales


def _split_codes(kind: str, data: Bytes, columns: int) -> Coded:
    codes, scales = split(data, kind, columns)
    return Coded(codes=_numbers(codes, kind).reshape(*scales.shape, -1), scales=scales)


def _join(kind: str, coded: Coded) -> Bytes:
    import numpy as np

    rows = len(coded.codes)
    if found := _BLOCKS.match(kind):
        codes = (coded.codes.reshape(rows, -1) + np.float32(1 << (int(found[1]) - 1))).astype(np.uint8)
        if found[1] == "4":
            codes = codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)
    else:
        codes = coded.codes.reshape(rows, -1).astype(np.int8).view(np.uint8)
    return np.concatenate([codes, np.ascontiguousarray(coded.scales).view(np.uint8)], axis=1)


def _numbers(codes: NDArray[np.integer], kind: str) -> Floats:
    """What `split` gives as codes, as the whole numbers that scales multiply, float32 [n, columns in whole blocks]."""
    import numpy as np

    if not (found := _BLOCKS.match(kind)):
        return codes.astype(np.float32)
    bits = int(found[1])
    levels = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1) if bits == 4 else codes
    numbers: Floats = levels.astype(np.float32) - np.float32(1 << (bits - 1))
    return numbers


def split(data: Bytes, kind: str, columns: int) -> tuple[NDArray[np.integer], Floats]:
    """Packed rows as codes [n, bytes or columns] and scales float32 [n, one or blocks]."""
    import numpy as np

    found = _BLOCKS.match(kind)
    count = -(-columns // int(found[2])) if found else 1
    end = data.shape[1] - count * _SCALE_BYTES
    codes, scales = np.ascontiguousarray(data[:, :end]), np.ascontiguousarray(data[:, end:]).view(np.float32)
    return (codes if found else codes.view(np.int8)), scales


def read_trained(model: Model, format_: str, options: Options) -> tuple[ByValues | None, str | None]:
    """What a student was trained with, where that is what the options write; else None and a note of what becomes of it.

    Raises EdgekitError where its weights are no longer those that it was trained with.
    """
    packed = read_packed(model.folder)
    if packed is None:
        return None, None
    kinds = {name: kind for name, kind in _kinds(model, options).items() if name not in packed.floats}
    if not packed.serves(format_, options.scheme) or kinds != dict(packed.kinds):
        return None, packed.note_other(format_, options.scheme)
    channels: dict[bytes, Channel] = {}
    rows: dict[bytes, Channel] = {}
    for name, kind in packed.kinds.items():
        weight = read_weight(model, name)
        # As they were rounded: what `trained_inputs` puts into the graph.
        data, rounded = _checked(packed, name, kind, weight)
        codes, scales = split(data, kind, weight.shape[1])
        found = rows if kind.startswith("table") else channels
        for values, code, scale in zip(rounded, codes, scales, strict=True):
            found[values.tobytes()] = Channel(code, scale)
    return ByValues(channels=channels, rows=rows), None


def read_weight(model: Model, name: str) -> Floats:
    """A weight of a student that was trained on a grid: `settle` leaves float32."""
    from safetensors import safe_open

    with safe_open(model.tensors[name].file, framework="numpy") as opened:
        weight: Floats = opened.get_tensor(name)
    return weight


def checked_rows(packed: Packed, name: str, kind: str, weight: Floats) -> tuple[NDArray[np.integer], Floats]:
    """A weight's codes and scales (see `split`). Raises EdgekitError where they stand for other values than the weight's."""
    data, _ = _checked(packed, name, kind, weight)
    return split(data, kind, weight.shape[1])


def _checked(packed: Packed, name: str, kind: str, weight: Floats) -> tuple[Bytes, Floats]:
    """A weight's bytes, and the values that were rounded to those."""
    import numpy as np

    data = packed.rows(name)
    rounded = unpack(data, kind, weight.shape[1])
    values = rounded / packed.read(name).divisor if name in (packed.reads or ()) else rounded
    if not np.array_equal(values, weight):
        raise EdgekitError(
            f"{packed.file}: {name}: its weights are not those that it was trained with; the folder was changed: make the step"
            " qad again"
        )
    return data, rounded


def _kinds(model: Model, options: Options) -> dict[str, str]:
    return {name: kind for name, info in model.tensors.items() if (kind := _kind(name, info.shape, options))}
