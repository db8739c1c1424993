"""Weights in blocks of 4 or 8 bits with a scale each, as onnxruntime's MatMulNBits and GatherBlockQuantized hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Packed = tuple[NDArray[np.uint8], NDArray[np.float32]]

# The levels that a block's largest weight is tried at: clipping it a little, or giving up some of the range.
LOWEST = tuple(-8.0 + 0.25 * step for step in range(-4, 5))
# Share of the mean importance that every channel has.
FLOOR = 0.01
# Weights that are packed at once: bounds the scratch memory.
PIECE = 1 << 20


def pack_blocks(weight: NDArray[np.float32], *, bits: int, block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A weight [inputs, outputs] as MatMulNBits wants it: uint8 [outputs, blocks, bytes], float32 scales [outputs * blocks].

    Symmetric with a zero point of 2^(bits-1): a block's value of largest magnitude gets the lowest level, exactly.
    """
    import numpy as np

    inputs, outputs = weight.shape
    count = -(-inputs // block)
    padded = np.zeros((outputs, count * block), np.float32)
    padded[:, :inputs] = weight.T
    blocks = padded.reshape(outputs, count, block)
    middle = 1 << (bits - 1)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scales = peak / np.float32(-middle)
    levels = np.rint(blocks / np.where(scales == 0, 1, scales)) + middle
    levels = np.clip(levels, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        levels = levels[..., 0::2] | (levels[..., 1::2] << 4)
    return np.ascontiguousarray(levels), np.ascontiguousarray(scales.reshape(-1), dtype=np.float32)


def pack_weighted(weight: NDArray[np.float32], importance: NDArray[np.float32] | None, *, block: int) -> Packed:
    """`pack_blocks` of 4 bits with the scales that cost a product least: of several, each block's least-squares best.

    A scale s with levels q costs sum_i m_i (w_i - s q_i)^2, m_i the mean square of input i: what the product's output
    differs by where inputs are independent. For given levels the best scale is sum(m w q) / sum(m q^2).
    """
    import numpy as np

    inputs, outputs = weight.shape
    count = -(-inputs // block)
    padding = ((0, 0), (0, count * block - inputs))
    values = np.pad(weight.T.astype(np.float32), padding).reshape(outputs, count, block)
    given = np.ones(inputs, np.float32) if importance is None else importance.astype(np.float32)
    # A channel that no prompt used may be used by another: a floor keeps its weights from being rounded to anything.
    counts = np.pad(given + max(float(given.mean()), 1e-30) * FLOOR, (0, padding[1][1])).reshape(count, block)
    packed = np.empty((outputs, count, block // 2), np.uint8)
    scales = np.empty((outputs, count), np.float32)
    piece = max(1, PIECE // (count * block))
    for begin in range(0, outputs, piece):
        rows = slice(begin, begin + piece)
        levels, scales[rows] = _best_levels(values[rows], counts)
        packed[rows] = levels[..., 0::2] | (levels[..., 1::2] << 4)
    return packed, scales.reshape(-1)


def _best_levels(values: NDArray[np.float32], counts: NDArray[np.float32]) -> Packed:
    """Levels 0..15 around 8 of values [rows, blocks, block], uint8, and the scale of each block, float32 [rows, blocks]."""
    import numpy as np

    places = np.abs(values).argmax(axis=2)[..., None]
    peak = np.take_along_axis(values, places, axis=2)
    inverse = np.where(peak == 0, 0, 1 / np.where(peak == 0, 1, peak))
    weighted = values * counts
    best = np.full(peak.shape[:2], -1, np.float32)
    scales = np.zeros(peak.shape[:2], np.float32)
    chosen = np.zeros(values.shape, np.int8)
    for lowest in LOWEST:
        levels = np.clip(np.rint(values * (inverse * np.float32(lowest))), -8, 7)
        product = (weighted * levels).sum(axis=2)
        power = (levels * levels * counts).sum(axis=2)
        gain = np.where(power > 0, product**2 / np.where(power > 0, power, 1), 0)
        better = gain > best
        best = np.where(better, gain, best)
        scales = np.where(better, product / np.where(power > 0, power, 1), scales)
        chosen = np.where(better[..., None], levels.astype(np.int8), chosen)
    return (chosen + 8).astype(np.uint8), scales.astype(np.float32)
