"""Rounding with feedback (`formats.gptq`) on ggml's own blocks.

A block's scales are those that ggml finds for what the columns before have made of it, and only its integers differ from ggml's
choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.formats.gguf.ggml import TYPES, dequantize, quantize
from edgekit.formats.gguf.levels import put_nibbles, put_q4_k, put_q5_k, put_q6_k
from edgekit.formats.gptq import round_columns

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# ggml-common.h, kvalues_iq4nl.
_IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


@dataclass(frozen=True)
class _Codes:
    """How a type's blocks hold their integers: what an integer stands for, and how they are put into bytes [n, bytes]."""

    levels: Floats
    put: Callable[[Bytes, Bytes], None]


# Rounding to 8 bits loses too little.
CODES: dict[str, _Codes] = {
    "q4_0": _Codes(np.arange(16, dtype=np.float32), put_nibbles),
    "iq4_nl": _Codes(_IQ4_NL, put_nibbles),
    "q4_k": _Codes(np.arange(16, dtype=np.float32), put_q4_k),
    "q5_k": _Codes(np.arange(32, dtype=np.float32), put_q5_k),
    "q6_k": _Codes(np.arange(64, dtype=np.float32), put_q6_k),
}


def round_rows(
    rows: Floats, kind: str, spread: Floats, importance: Floats | None = None, wanted: Floats | None = None
) -> Bytes:
    """The bytes of float32 rows, [n, columns], in a type of CODES: [n, bytes of a row]. spread: what `gptq.feedback` gives.

    importance: what an error in each column weighs where ggml looks for scales, float32 [columns]. wanted: filled with what was
    rounded in the end, float32 [n, columns]: each value with what it makes up for.
    """
    values = np.array(rows, np.float32) if wanted is None else wanted
    values[:] = rows
    count, columns = values.shape
    block, width = TYPES[kind].block, TYPES[kind].bytes
    out = np.empty((count, columns // block, width), np.uint8)

    def place(first: int, inner: Floats) -> tuple[Floats, Floats]:
        bytes_ = quantize(inner, kind, None if importance is None else importance[first : first + block])
        out[:, first // block] = bytes_
        return _grid(kind, bytes_)

    codes = round_columns(values, spread, block, CODES[kind].levels, place)
    for index in range(columns // block):
        bytes_ = np.ascontiguousarray(out[:, index])
        CODES[kind].put(bytes_, codes[:, index * block : (index + 1) * block])
        out[:, index] = bytes_
    return out.reshape(count, -1)


def _grid(kind: str, blocks: Bytes) -> tuple[Floats, Floats]:
    """(base, scale) of every value in blocks [n, bytes]: a value is base + scale * level."""
    block, codes = TYPES[kind].block, CODES[kind]

    def all_of(code: int) -> Floats:
        same = blocks.copy()
        codes.put(same, np.full((len(blocks), block), code, np.uint8))
        return dequantize(same, kind, block)

    first, last = all_of(0), all_of(len(codes.levels) - 1)
    scale = (last - first) / (codes.levels[-1] - codes.levels[0])
    return first - scale * codes.levels[0], scale
