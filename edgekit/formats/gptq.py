"""Rounding with feedback: columns are rounded one after another, and each one's error is made up for by those that follow.

The method is GPTQ (arXiv:2210.17323). A block's scale is found for what the columns before it have made of its values, and only
the integers differ from what a format would choose by itself. It costs no byte and no time when the file runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.grid import Rounded

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
# Rows, their number type, what `feedback` gives, what an error in each column weighs [columns], and an array for what was rounded
# in the end -> the rows' bytes, uint8 [n, bytes of a row].
Pack = Callable[[Floats, str, Floats, Floats, Floats], Bytes]

# Tokens whose inputs are seen: several times the width of most layers.
MOST_TOKENS = 16384
# Bytes of Gram matrices that are summed up at once; a model that has more is run again for the next layers.
MOST_BYTES = 1 << 31
# Of the mean of a Gram matrix's diagonal, added to it all: what GPTQ's authors take against directions that no text has.
_DAMPING = 0.01
# Columns that are rounded before what follows is told; errors reach the others as one matrix product.
STEP = 32


def feedback(gram: Floats) -> Floats:
    """What an error of each column takes from the best values of those that follow, float32 [columns, columns].

    gram: the mean of x x^T over a layer's inputs, float32 [columns, columns]. With H its damped form and H^-1 = U^T U (U upper
    triangular), row j is U_j / U_jj, which is 1 on
    the diagonal (arXiv:2210.17323, section 3.3).
    """
    import torch

    with _counted_threads():
        return _feedback(torch.from_numpy(gram).double())


def _feedback(damped: Tensor) -> Floats:
    import torch

    damped.diagonal().add_(_DAMPING * max(float(damped.diagonal().mean()), 1e-30))
    # H = M M^T with M upper triangular, from Cholesky's lower one of the reversed matrix: then U is M's inverse.
    factor = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    del damped
    upper = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=torch.float64), upper=True)
    scaled: Floats = (upper / upper.diagonal()[:, None]).float().numpy()
    return scaled


def round_columns(
    values: Floats, spread: Floats, block: int, levels: Floats, place: Callable[[int, Floats], tuple[Floats, Floats]]
) -> Bytes:
    """Which of the levels each of float32 values [n, columns] gets, uint8 [n, columns].

    values: rounded in place: what was rounded in the end is left there, each value with what it makes up for. spread: what
    `feedback` gives. block: columns of one scale, which divides all of them; levels: rising, of 256 at most. place(first,
    values [n, block]): asked for each block in turn, from column `first` on: base and scale [n, block]; a level stands
    for base + scale * level.
    """
    count, columns = values.shape
    codes = np.empty((count, columns), np.uint8)
    group = max(block, 8 * STEP)
    for begin in range(0, columns, group):
        end = min(begin + group, columns)
        errors = np.empty((count, end - begin), np.float32)
        for first in range(begin, end, block):
            own = slice(first, first + block)
            grid = place(first, np.ascontiguousarray(values[:, own]))
            inner = values[:, begin:end], errors, spread[begin:end, begin:end]
            codes[:, own] = _round_block(*inner, first - begin, grid, levels)
        values[:, end:] -= errors @ spread[begin:end, end:]
    return codes


def _round_block(
    values: Floats, errors: Floats, spread: Floats, first: int, grid: tuple[Floats, Floats], levels: Floats
) -> Bytes:
    """Round one block of the columns of a group; fills in its errors and changes the group's columns that follow."""
    base, scale = grid
    block = base.shape[1]
    with np.errstate(divide="ignore"):
        inverse = np.where(scale != 0, 1 / scale, 0).astype(np.float32)
    codes = np.empty((len(values), block), np.uint8)
    borders = (levels[1:] + levels[:-1]) / 2
    even = np.array_equal(levels, np.arange(len(levels)))
    step = min(STEP, block)
    for begin in range(first, first + block, step):
        for at in range(begin, begin + step):
            column, own = values[:, at], at - first
            wanted = (column - base[:, own]) * inverse[:, own]
            if even:
                chosen = np.clip(np.rint(wanted), 0, len(levels) - 1).astype(np.uint8)
            else:
                chosen = np.searchsorted(borders, wanted).astype(np.uint8)
            codes[:, own] = chosen
            errors[:, at] = column - (base[:, own] + scale[:, own] * levels[chosen])
            after = slice(at + 1, begin + step)
            values[:, after] -= errors[:, at, None] * spread[at, after]
        done = slice(begin, begin + step)
        values[:, begin + step :] -= errors[:, done] @ spread[done, begin + step :]
    return codes


@contextmanager
def _counted_threads() -> Iterator[None]:
    """As many threads as trainings have: sums do not depend on what ran before in this process."""
    import torch

    from edgekit.runtimes.machine import count_threads

    threads = torch.get_num_threads()
    torch.set_num_threads(count_threads())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def linear_paths(module: nn.Module) -> list[str]:
    """The paths of a module's Linears."""
    return list(_linears(module))


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    from torch import nn

    return {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}


def input_grams(
    module: nn.Module, ids: Sequence[Sequence[int]], paths: Sequence[str]
) -> Generator[tuple[str, Floats], None, None]:
    """The mean of x x^T over the tokens of some texts, for each of these Linears that a text reaches, in the order of `paths`.

    module: as a task loads one. Texts are run one by one, the first MOST_TOKENS tokens of them, again for every MOST_BYTES of
    matrices, and only as far as the last layer that is asked about. Layers with the same input get the same matrix.
    """
    layers = _linears(module)
    shared = _share_inputs(module, ids[0], {path: layers[path] for path in paths})
    reached = [path for path in paths if path in shared]
    held: dict[str, Floats] = {}
    for index, path in enumerate(reached):
        if shared[path] not in held:
            # What the next ones need goes before they are made.
            held.clear()
            group: list[str] = []
            size = 0
            for ahead in dict.fromkeys(shared[other] for other in reached[index:]):
                size += 4 * layers[ahead].in_features ** 2
                if group and size > MOST_BYTES:
                    break
                group.append(ahead)
            held = _run(module, ids, {ahead: layers[ahead] for ahead in group})
        yield path, held[shared[path]]


def round_linears(
    module: nn.Module, ids: Sequence[Sequence[int]], kinds: Mapping[str, str], pack: Pack
) -> Iterator[tuple[str, Rounded]]:
    """Weights of Linears rounded with feedback, by what some texts put into them, with their names in the checkpoint.

    module: as `distill` loads one, whose `model` is the checkpoint's. kinds: the number type of each weight that is wanted. Those
    that no text reaches, as a head that is not run, are left out.
    """
    paths = {path: f"{path.removeprefix('model.')}.weight" for path in linear_paths(module)}
    last: tuple[Floats, Floats] | None = None
    for path, gram in input_grams(module, ids, [path for path, name in paths.items() if name in kinds]):
        if last is None or last[0] is not gram:
            last = gram, feedback(gram)
        weight = module.get_parameter(f"{path}.weight").detach().numpy()
        wanted = np.empty(weight.shape, np.float32)
        packed = pack(weight, kinds[paths[path]], last[1], np.ascontiguousarray(gram.diagonal()), wanted)
        yield paths[path], Rounded(packed=packed, wanted=wanted)


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
        with torch.inference_mode(), suppress(_Enough), _counted_threads():
            feed = torch.tensor([list(row)])
            module(feed, torch.ones_like(feed))
    finally:
        for handle in handles:
            handle.remove()
