"""How a training on a grid of 8-bit inputs begins: what is smoothed and what stays float, chosen as a plain export chooses it.

The float module answers some train texts; candidates answer the same ones on the grid, and the search of the export
(`candidates.search`) takes the one that is nearest. So a training begins where that export ends, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.distill.batches import Source
from edgekit.distill.on_grid import Nearest, OnGrid
from edgekit.distill.reads import Reads, linears
from edgekit.distill.signals import Batch
from edgekit.formats.onnx.candidates import Recipe8, Ways, search
from edgekit.formats.onnx.quantize import input_scale, rounding_noise
from edgekit.formats.onnx.smooth import Range, balance
from edgekit.grid import Grid, Read
from edgekit.progress import Progress, silent
from edgekit.tasks.encoders import dimensions

# Train texts whose values are looked at, and those that candidates answer: enough to rank them, as in an export.
SEEN, ASKED = 1024, 128
_AT_ONCE = 16


@dataclass(kw_only=True)
class _Value:
    """A value that Linears read: the names of their weights, and of each channel its least, greatest and mean square value.

    even: whether it may be divided; not where one of the weights multiplies other values too. widened: whether it has more
    channels than the model's blocks make, as what a block's second Linear reads.
    """

    names: list[str]
    minimum: Tensor
    maximum: Tensor
    squares: Tensor
    count: int = 0
    even: bool = True
    widened: bool = False

    @property
    def range(self) -> Range:
        return Range(
            minimum=self.minimum.numpy(),
            maximum=self.maximum.numpy(),
            mean_square=(self.squares / max(self.count, 1)).float().numpy(),
        )

    def add(self, rows: Tensor) -> None:
        self.minimum = self.minimum.minimum(rows.amin(0))
        self.maximum = self.maximum.maximum(rows.amax(0))
        self.squares += rows.square().sum(0, dtype=torch.float64)
        self.count += len(rows)


def choose_reads(
    module: nn.Module, grid: Grid, source: Source, progress: Progress = silent
) -> tuple[Grid, dict[str, Read]]:
    """How the file will read the inputs of a module's Linears, by the names of their weights, and the grid without those that
    stay float. The module stays as it is.

    grid: whose `inputs` says what may be chosen. A Linear that no text reaches is read undivided, and stays float where ranges
    are fixed: it has none.
    """
    inputs = grid.inputs
    assert inputs is not None
    progress(0, 0, "measuring what Linears read")
    rows = sorted(_evenly(source.train, SEEN), key=lambda row: (source.lengths[row], row))
    with _asked(module):
        values = _watch(module, grid, [source.batch(rows[at : at + _AT_ONCE]) for at in range(0, len(rows), _AT_ONCE)])
        some = sorted(_evenly(rows, ASKED))
        asked = [source.batch(some[at : at + _AT_ONCE]) for at in range(0, len(some), _AT_ONCE)]
        wanted = [module(batch.tokens, batch.mask).double() for batch in asked]

        def loss(recipe: Recipe8) -> float:
            own, reads = _applied(module, grid, values, recipe)
            begun = Reads(module, reads)
            before = {name: found[0].weight.clone() for name, found in begun.layers.items()}
            begun.begin()
            with OnGrid(module, own, Nearest(own), begun).rounded():
                answers = [module(batch.tokens, batch.mask).double() for batch in asked]
            for name, found in begun.layers.items():
                found[0].weight.copy_(before[name])
            return _apart(torch.cat(answers), torch.cat(wanted))

        ways = Ways(
            loss=loss,
            noisiest=partial(_noisiest, module, grid, values),
            float_layers=inputs.float_layers,
            smoothing=inputs.smoothing,
        )
        # Behind activation functions there is no ladder here for the outliers that would widen a fixed range.
        first = (
            Recipe8(mode="static", alpha=None, activated="smoothed")
            if inputs.fixed
            else Recipe8(mode="dynamic", alpha=None)
        )
        return _applied(module, grid, values, search(ways, first, progress))


@contextmanager
def _asked(module: nn.Module) -> Iterator[None]:
    """A module without dropout and gradients."""
    trains = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(trains)


def _evenly(rows: Sequence[int], most: int) -> list[int]:
    return list(rows[:: max(1, -(-len(rows) // most))])


def _apart(answers: Tensor, wanted: Tensor) -> float:
    """How far answers are from wanted ones: the figure of `candidates.Trial.loss`."""
    if not bool(torch.isfinite(answers).all()):
        return float("inf")
    wanted = wanted - wanted.mean(dim=1, keepdim=True)
    error = answers - answers.mean(dim=1, keepdim=True) - wanted
    return float((error.square().sum(dim=1) / wanted.square().sum(dim=1).clamp(min=1e-12)).mean())


def _layers(module: nn.Module, grid: Grid) -> dict[str, list[nn.Linear]]:
    """The Linears that the grid rounds, by the names of their weights; a table that is a head too is read as it is."""
    return linears(module, {name: kind for name, kind in grid.kinds.items() if not kind.startswith("table")})


def _watch(module: nn.Module, grid: Grid, batches: Sequence[Batch]) -> list[_Value]:
    """The values that the grid's Linears read, in the order of computing."""
    layers = _layers(module, grid)
    values: list[_Value] = []
    of: dict[str, _Value] = {}
    calls: dict[str, int] = dict.fromkeys(layers, 0)
    inputs: list[tuple[Tensor, _Value]] = []
    mask: Tensor | None = None

    def see(name: str, _layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        value = given[0]
        calls[name] += 1
        if name not in of:
            same = next(
                (one for other, one in inputs if other.shape == value.shape and torch.equal(other, value)), None
            )
            if same is None:
                none = torch.full((value.shape[-1],), torch.inf)
                same = _Value(names=[], minimum=none, maximum=-none, squares=torch.zeros_like(none).double())
                values.append(same)
                inputs.append((value, same))
            same.names.append(name)
            of[name] = same
        elif calls[name] > 1:
            of[name].even = False
        if of[name].names[0] == name or calls[name] > 1:
            real = mask is not None and value.shape[:-1] == mask.shape
            of[name].add(value[mask.bool()] if mask is not None and real else value.flatten(0, -2))

    hooks = [layer.register_forward_pre_hook(partial(see, name)) for name, found in layers.items() for layer in found]
    try:
        for batch in batches:
            calls.update(dict.fromkeys(layers, 0))
            mask = batch.mask
            module(batch.tokens, batch.mask)
            inputs.clear()
    finally:
        for hook in hooks:
            hook.remove()
    hidden = dimensions(module.get_submodule("model").config).hidden
    for value in values:
        value.widened = len(value.minimum) > hidden
    return values


def _applied(module: nn.Module, grid: Grid, values: Sequence[_Value], recipe: Recipe8) -> tuple[Grid, dict[str, Read]]:
    """The grid without what a recipe leaves float, and how the others read their inputs."""
    assert grid.inputs is not None
    layers = _layers(module, grid)
    reads: dict[str, Read] = {}
    for value in values:
        divisor = _divisor(layers, value, recipe)
        scale, zero = input_scale(value.range.divided(divisor), "uint8") if grid.inputs.fixed else (None, 0)
        rounded = [name for name in value.names if name not in recipe.keep_float]
        reads |= {name: Read(divisor=divisor, scale=scale, zero=int(zero)) for name in rounded}
    floats = set(recipe.keep_float)
    if grid.inputs.fixed:
        floats |= layers.keys() - reads.keys()
    else:
        reads |= {
            name: Read(divisor=np.ones(found[0].in_features, np.float32))
            for name, found in layers.items()
            if name not in reads and name not in floats
        }
    kinds = {name: kind for name, kind in grid.kinds.items() if name not in floats}
    return replace(grid, kinds=kinds, floats=frozenset(floats)), reads


def _divisor(
    layers: Mapping[str, Sequence[nn.Linear]], value: _Value, recipe: Recipe8
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What a value is divided by: the scale of SmoothQuant."""
    skipped = value.widened and recipe.activated != "smoothed"
    if recipe.alpha is None or skipped or not value.even:
        return np.ones(len(value.minimum), np.float32)
    weights = [np.ascontiguousarray(layers[name][0].weight.detach().numpy().T) for name in value.names]
    return balance(weights, value.range, recipe.alpha)


def _noisiest(module: nn.Module, grid: Grid, values: Sequence[_Value], recipe: Recipe8) -> list[str]:
    """The names of the weights that a recipe rounds, the one that loses most of its input first."""
    layers = _layers(module, grid)
    noise = {}
    for value in values:
        divisor = _divisor(layers, value, recipe)
        seen = value.range.divided(divisor)
        for name in value.names:
            if name not in recipe.keep_float:
                noise[name] = rounding_noise(layers[name][0].weight.detach().numpy().T * divisor[:, None], seen)
    return sorted(noise, key=lambda name: (-noise[name], name))
