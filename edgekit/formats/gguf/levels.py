"""ggml's types of equal steps, taken apart into integers and scales and put together again, to the last bit.

The layouts are those of ggml-common.h's blocks and ggml-quants.c's dequantize_row_*
(https://github.com/ggml-org/llama.cpp, ggml/src). What is no even grid (iq4_nl) has none here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgekit.formats.gguf.ggml import TYPES
from edgekit.grid import Coded, Layout

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def put_nibbles(blocks: Bytes, codes: Bytes) -> None:
    """Put integers [n, 32] of 4 bits into the last 16 bytes of each block."""
    blocks[:, -16:] = codes[:, :16] | codes[:, 16:] << 4


def put_q4_k(blocks: Bytes, codes: Bytes) -> None:
    """Put integers [n, 256] into blocks [n, 144]."""
    pairs = codes.reshape(-1, 4, 2, 32)
    blocks[:, 16:] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def put_q5_k(blocks: Bytes, codes: Bytes) -> None:
    """Put integers [n, 256] into blocks [n, 176]."""
    pairs = codes.reshape(-1, 4, 2, 32)
    low, high = pairs & 15, pairs >> 4
    places = np.arange(8, dtype=np.uint8).reshape(4, 2, 1)
    blocks[:, 16:48] = np.bitwise_or.reduce((high << places).reshape(-1, 8, 32), axis=1)
    blocks[:, 48:] = (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)


def put_q6_k(blocks: Bytes, codes: Bytes) -> None:
    """Put integers [n, 256] into blocks [n, 210]."""
    quarters = codes.reshape(-1, 2, 4, 32)
    low, high = quarters & 15, quarters >> 4
    blocks[:, :128] = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128)
    places = 2 * np.arange(4, dtype=np.uint8).reshape(4, 1)
    blocks[:, 128:192] = np.bitwise_or.reduce(high << places, axis=2).reshape(-1, 64)


def _put_q5(blocks: Bytes, codes: Bytes) -> None:
    put_nibbles(blocks, codes & np.uint8(15))
    blocks[:, -20:-16] = np.packbits(codes >> 4, axis=1, bitorder="little")


def _put_q8_0(blocks: Bytes, codes: Bytes) -> None:
    # A file holds the integer itself, in two's complement.
    blocks[:, 2:] = codes + np.uint8(128)


def _get_nibbles(blocks: Bytes) -> Bytes:
    low = blocks[:, -16:]
    return np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=1)


def _get_q5(blocks: Bytes) -> Bytes:
    return _get_nibbles(blocks) | np.unpackbits(blocks[:, -20:-16], axis=1, bitorder="little") << np.uint8(4)


def _get_q8_0(blocks: Bytes) -> Bytes:
    return blocks[:, 2:] + np.uint8(128)


def _get_q4_k(blocks: Bytes) -> Bytes:
    pairs = blocks[:, -128:].reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=2).reshape(-1, 256)


def _get_q5_k(blocks: Bytes) -> Bytes:
    high = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").swapaxes(1, 2)
    return _get_q4_k(blocks) | high.reshape(-1, 256) << np.uint8(4)


def _get_q6_k(blocks: Bytes) -> Bytes:
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> 2 * np.arange(4, dtype=np.uint8).reshape(4, 1) & 3
    codes: Bytes = (np.concatenate([low & 15, low >> 4], axis=2) | high << 4).reshape(-1, 256)
    return codes


def _to_half(scales: Floats) -> Floats:
    return scales.astype(np.float16).astype(np.float32)


def _six_bits(scales: Floats) -> tuple[Floats, Bytes]:
    """Scales [n, 8] as f16 times 6 bits: the largest is 63 of it, as in quantize_row_q4_K_ref."""
    whole = _to_half(np.maximum(scales, 0).max(axis=1, keepdims=True) / np.float32(63))
    return whole, np.clip(np.rint(_ratio(scales, whole)), 0, 63).astype(np.uint8)


def _eight_bits(scales: Floats) -> tuple[Floats, NDArray[np.int8]]:
    """Scales [n, 16] as f16 times 8 bits: the one of largest magnitude is -128 of it, as in quantize_row_q6_K_ref."""
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1, keepdims=True), axis=1)
    whole = _to_half(largest / np.float32(-128))
    return whole, np.clip(np.rint(_ratio(scales, whole)), -128, 127).astype(np.int8)


def _ratio(scales: Floats, whole: Floats) -> Floats:
    return np.divide(scales, whole, out=np.zeros_like(scales), where=whole != 0)


def _hold(parts: Callable[[Floats], tuple[Floats, NDArray[np.integer]]], count: int, scales: Floats) -> Floats:
    """The scales [n, groups] that a super-block of so many groups can hold."""
    whole, small = parts(np.ascontiguousarray(scales).reshape(-1, count))
    return (whole * small.astype(np.float32)).reshape(scales.shape)


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """How a type's blocks hold integers and scales. zero: which stored integer stands for the code 0. groups: of a block.

    get: blocks [n, bytes] -> integers [n, values]; scales: -> scale and least [n, groups]; write: puts those into blocks.
    """

    zero: int
    groups: int
    get: Callable[[Bytes], Bytes]
    put: Callable[[Bytes, Bytes], None]
    scales: Callable[[Bytes], tuple[Floats, Floats | None]]
    write: Callable[[Bytes, Floats, Floats | None], None]


def _read_halves(least: bool, blocks: Bytes) -> tuple[Floats, Floats | None]:
    halves = np.ascontiguousarray(blocks[:, : 4 if least else 2]).view(np.float16).astype(np.float32)
    return halves[:, :1], -halves[:, 1:] if least else None


def _write_halves(blocks: Bytes, scales: Floats, least: Floats | None) -> None:
    parts = [scales] if least is None else [scales, -least]
    for index, part in enumerate(parts):
        blocks[:, 2 * index : 2 * index + 2] = part.astype(np.float16).view(np.uint8)


def _read_pairs(blocks: Bytes) -> tuple[Floats, Floats | None]:
    """The scale and the least of each 32 values of q4_k and q5_k: get_scale_min_k4."""
    halves = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    least = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return halves[:, :1] * scales.astype(np.float32), halves[:, 1:] * least.astype(np.float32)


def _write_pairs(blocks: Bytes, scales: Floats, least: Floats | None) -> None:
    assert least is not None
    (whole, large), (base, low) = _six_bits(scales), _six_bits(least)
    blocks[:, :4] = np.concatenate([whole, base], axis=1).astype(np.float16).view(np.uint8)
    blocks[:, 4:8] = large[:, :4] | large[:, 4:] >> 4 << 6
    blocks[:, 8:12] = low[:, :4] | low[:, 4:] >> 4 << 6
    blocks[:, 12:16] = large[:, 4:] & 15 | low[:, 4:] << 4


def _read_q6_k(blocks: Bytes) -> tuple[Floats, Floats | None]:
    whole = np.ascontiguousarray(blocks[:, 208:]).view(np.float16).astype(np.float32)
    return whole * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32), None


def _write_q6_k(blocks: Bytes, scales: Floats, _least: Floats | None) -> None:
    whole, small = _eight_bits(scales)
    blocks[:, 192:208] = small.view(np.uint8)
    blocks[:, 208:] = whole.astype(np.float16).view(np.uint8)


def _plain(zero: int, get: Callable[[Bytes], Bytes], put: Callable[[Bytes, Bytes], None]) -> _Blocks:
    """One scale a block; zero 0: and one least."""
    return _Blocks(zero=zero, groups=1, get=get, put=put, scales=partial(_read_halves, zero == 0), write=_write_halves)


_TYPES: dict[str, _Blocks] = {
    "q4_0": _plain(8, _get_nibbles, put_nibbles),
    "q4_1": _plain(0, _get_nibbles, put_nibbles),
    "q5_0": _plain(16, _get_q5, _put_q5),
    "q5_1": _plain(0, _get_q5, _put_q5),
    "q8_0": _plain(128, _get_q8_0, _put_q8_0),
    "q4_k": _Blocks(zero=0, groups=8, get=_get_q4_k, put=put_q4_k, scales=_read_pairs, write=_write_pairs),
    "q5_k": _Blocks(zero=0, groups=8, get=_get_q5_k, put=put_q5_k, scales=_read_pairs, write=_write_pairs),
    "q6_k": _Blocks(zero=32, groups=16, get=_get_q6_k, put=put_q6_k, scales=_read_q6_k, write=_write_q6_k),
}
_BITS = {"q4_0": 4, "q4_1": 4, "q5_0": 5, "q5_1": 5, "q8_0": 8, "q4_k": 4, "q5_k": 5, "q6_k": 6}


def _split(kind: str, data: Bytes, columns: int) -> Coded:
    blocks, rows = np.ascontiguousarray(data).reshape(-1, TYPES[kind].bytes), len(data)
    held = _TYPES[kind]
    codes = held.get(blocks).astype(np.float32) - np.float32(held.zero)
    scales, least = held.scales(blocks)
    groups = columns // TYPES[kind].block * held.groups
    return Coded(
        codes=codes.reshape(rows, groups, -1),
        scales=scales.reshape(rows, groups),
        least=None if least is None else least.reshape(rows, groups),
    )


def _join(kind: str, coded: Coded) -> Bytes:
    held, wide = _TYPES[kind], TYPES[kind]
    codes = (coded.codes + np.float32(held.zero)).astype(np.uint8).reshape(-1, wide.block)
    blocks = np.zeros((len(codes), wide.bytes), np.uint8)
    held.put(blocks, codes)
    scales, least = coded.scales, coded.least
    held.write(blocks, scales.reshape(-1, held.groups), None if least is None else least.reshape(-1, held.groups))
    return blocks.reshape(len(coded.codes), -1)


def _layout(kind: str) -> Layout:
    held, count = _TYPES[kind], 1 << _BITS[kind]
    hold: Callable[[Floats], Floats] = _to_half
    if held.groups > 1:
        hold = partial(_hold, _eight_bits if kind == "q6_k" else _six_bits, held.groups)
    # ggml rounds to 8 bits symmetrically.
    low = -held.zero + (kind == "q8_0")
    return Layout(
        low=low, high=count - 1 - held.zero, split=partial(_split, kind), join=partial(_join, kind), hold=hold
    )


LAYOUTS: dict[str, Layout] = {kind: _layout(kind) for kind in _TYPES}
