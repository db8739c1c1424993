"""Rounding with feedback: columns are rounded one after another, and each one's error is made up for by those that follow.

The method is GPTQ (arXiv:2210.17323) on ggml's own blocks: a block's scales are those that ggml finds for what the columns before
have made of it, and only its integers differ from ggml's choice. It costs no byte and no time when the file runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.formats.gguf.ggml import TYPES, dequantize, quantize
from edgekit.formats.gguf.levels import put_nibbles, put_q4_k, put_q5_k, put_q6_k

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Tokens whose inputs are seen: several times the width of most layers.
MOST_TOKENS = 16384
# Bytes of Gram matrices that are summed up at once; a model that has more is run again for the next layers.
MOST_BYTES = 1 << 31
# Of the mean of a Gram matrix's diagonal, added to it all: what GPTQ's authors take against directions that no text has.
_DAMPING = 0.01
# Columns that are rounded before what follows is told; errors reach the others as one matrix product.
_STEP = 32
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


def feedback(gram: Floats) -> Floats:
    """What an error of each column takes from the best values of those that follow, float32 [columns, columns].

    gram: the mean of x x^T over a layer's inputs, float32 [columns, columns]. With H its damped form and H^-1 = U^T U (U upper
    triangular), row j is U_j / U_jj, which is 1 on
    the diagonal (arXiv:2210.17323, section 3.3).
    """
    import torch

    damped = torch.from_numpy(gram).double()
    damped.diagonal().add_(_DAMPING * max(float(damped.diagonal().mean()), 1e-30))
    # H = M M^T with M upper triangular, from Cholesky's lower one of the reversed matrix: then U is M's inverse.
    factor = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    del damped
    upper = torch.linalg.solve_triangular(factor, torch.eye(len(gram), dtype=torch.float64), upper=True)
    scaled: Floats = (upper / upper.diagonal()[:, None]).float().numpy()
    return scaled


def round_rows(
    rows: Floats, kind: str, spread: Floats, importance: Floats | None = None, wanted: Floats | None = None
) -> Bytes:
    """The bytes of float32 rows, [n, columns], in a type of CODES: [n, bytes of a row]. spread: what `feedback` gives.

    importance: what an error in each column weighs where ggml looks for scales, float32 [columns]. wanted: filled with what was
    rounded in the end, float32 [n, columns]: each value with what it makes up for.
    """
    values = np.array(rows, np.float32) if wanted is None else wanted
    values[:] = rows
    count, columns = values.shape
    block, width = TYPES[kind].block, TYPES[kind].bytes
    out = np.empty((count, columns // block, width), np.uint8)
    group = max(block, 8 * _STEP)
    for begin in range(0, columns, group):
        end = min(begin + group, columns)
        errors = np.empty((count, end - begin), np.float32)
        for first in range(begin, end, block):
            weights = None if importance is None else importance[first : first + block]
            inner = values[:, begin:end], errors, spread[begin:end, begin:end]
            out[:, first // block] = _round_block(kind, *inner, first - begin, weights)
        values[:, end:] -= errors @ spread[begin:end, end:]
    return out.reshape(count, -1)


def _round_block(
    kind: str, values: Floats, errors: Floats, spread: Floats, first: int, importance: Floats | None
) -> Bytes:
    """Round one block of the columns of a group; fills in its errors and changes the group's columns that follow."""
    block = TYPES[kind].block
    bytes_ = quantize(np.ascontiguousarray(values[:, first : first + block]), kind, importance)
    base, scale = _grid(kind, bytes_)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale != 0, 1 / scale, 0).astype(np.float32)
    codes = np.empty((len(values), block), np.uint8)
    levels = CODES[kind].levels
    borders = (levels[1:] + levels[:-1]) / 2
    even = np.array_equal(levels, np.arange(len(levels)))
    for begin in range(first, first + block, _STEP):
        for at in range(begin, begin + _STEP):
            column, own = values[:, at], at - first
            wanted = (column - base[:, own]) * inverse[:, own]
            if even:
                chosen = np.clip(np.rint(wanted), 0, len(levels) - 1).astype(np.uint8)
            else:
                chosen = np.searchsorted(borders, wanted).astype(np.uint8)
            codes[:, own] = chosen
            errors[:, at] = column - (base[:, own] + scale[:, own] * levels[chosen])
            after = slice(at + 1, begin + _STEP)
            values[:, after] -= errors[:, at, None] * spread[at, after]
        done = slice(begin, begin + _STEP)
        values[:, begin + _STEP :] -= errors[:, done] @ spread[done, begin + _STEP :]
    CODES[kind].put(bytes_, codes)
    return bytes_


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


def linear_paths(module: nn.Module) -> list[str]:
    """The paths of a module's Linears."""
    return list(_linears(module))


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    from torch import nn

    return {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}


def input_grams(module: nn.Module, ids: Sequence[Sequence[int]], paths: Sequence[str]) -> Generator[Floats, None, None]:
    """The mean of x x^T over the tokens of some texts, for each of these Linears, in the order of `paths`.

    module: as a task loads one. Texts are run one by one, the first MOST_TOKENS tokens of them, again for every MOST_BYTES of
    matrices, and only as far as the last layer that is asked about. Layers with the same input get the same matrix.
    """
    layers = _linears(module)
    shared = _share_inputs(module, ids[0], {path: layers[path] for path in paths})
    held: dict[str, Floats] = {}
    for index, path in enumerate(paths):
        if shared[path] not in held:
            # What the next ones need goes before they are made.
            held.clear()
            group: list[str] = []
            size = 0
            for ahead in dict.fromkeys(shared[other] for other in paths[index:]):
                size += 4 * layers[ahead].in_features ** 2
                if group and size > MOST_BYTES:
                    break
                group.append(ahead)
            held = _run(module, ids, {ahead: layers[ahead] for ahead in group})
        yield held[shared[path]]


def _share_inputs(module: nn.Module, row: Sequence[int], layers: Mapping[str, nn.Linear]) -> dict[str, str]:
    """The first layer, in the order of computing, that sees the same input as each."""
    shared: dict[str, str] = {}
    # Kept, so that no other tensor has an input's place in memory.
    seen: list[tuple[Tensor, str]] = []

    def watch(path: str) -> Callable[..., None]:
        def see(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shared[path] = next((other for value, other in seen if value is inputs[0]), path)
            seen.append((inputs[0], path))

        return see

    _feed(module, row, layers, watch)
    return shared


def _run(module: nn.Module, ids: Sequence[Sequence[int]], layers: Mapping[str, nn.Linear]) -> dict[str, Floats]:
    """The matrices of layers whose inputs differ."""
    import torch

    sums: dict[str, Tensor] = {}
    left: set[str] = set()
    tokens = 0

    def watch(path: str) -> Callable[..., None]:
        def see(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].flatten(0, -2).float()
            if path in sums:
                sums[path].addmm_(flat.T, flat)
            else:
                sums[path] = flat.T @ flat
            left.discard(path)
            if not left:
                raise _Enough

        return see

    for row in ids:
        if tokens >= MOST_TOKENS:
            break
        left |= set(layers)
        _feed(module, row, layers, watch)
        tokens += len(row)
    with torch.inference_mode():
        return {path: total.div_(max(tokens, 1)).numpy() for path, total in sums.items()}


class _Enough(Exception):
    pass


def _feed(
    module: nn.Module,
    row: Sequence[int],
    layers: Mapping[str, nn.Linear],
    watch: Callable[[str], Callable[..., None]],
) -> None:
    """Run a text while layers are watched."""
    import torch

    handles = [layer.register_forward_pre_hook(watch(path)) for path, layer in layers.items()]
    try:
        with torch.inference_mode(), suppress(_Enough):
            feed = torch.tensor([list(row)])
            module(feed, torch.ones_like(feed))
    finally:
        for handle in handles:
            handle.remove()
