"""Learned scales: the codes of a weight's blocks stay or follow the weights, and the scales of the file are trained themselves.

With the codes fixed it is scale-only tuning (DWQ: mlx-lm, mlx_lm/quant/dwq.py); with weights that are trained too, the learned
step size of LSQ (Esser et al., arXiv:1902.08153) and, of blocks with a least value, LSQ+ (arXiv:2004.09576).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgekit.distill.batches import Source
from edgekit.distill.on_grid import Nearest, OnGrid, Rounding, grid_weights, without_surplus
from edgekit.distill.options import QadOptions, TrainingOptions
from edgekit.distill.reads import Reads
from edgekit.grid import Coded, Grid, Layout
from edgekit.progress import Progress, silent

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
# Of the texts on which weights are rounded before they are trained: several times the width of most layers.
TOKENS = 16384


@dataclass
class _Weight:
    """What is known of one weight, whose scales and least values began as `start` and its like, float32 [n, groups].

    width: the values of a group. unit: by what share a scale changes where its parameter changes by 1. fixed: the codes, float32
    [n, groups, values], where they stay what they were.
    """

    layout: Layout
    width: int
    unit: float
    start: Floats
    scale: nn.Parameter
    least_start: Floats | None
    least: nn.Parameter | None
    fixed: Tensor | None


class Learned:
    """Rounding with scales that are parameters of the module: `scale = start (1 + unit * parameter)`, then as the file holds it.

    weights: whether the weights are trained beside them; their codes then follow, and the gradient of a weight beyond the last
    code is dropped, as in LSQ, equation 5. Without, everything but scales is frozen, and codes stay those of the start.

    LSQ's factor 1 / sqrt(N Q) makes a step's scale change by as large a share as its weights (section 2.2). Adam's steps do not
    depend on a gradient's size, so that the same is had by the unit: one over the root mean square of the weight.

    start: what the file would hold now, by name: the bytes. Raises EdgekitError as `Grid.check`.
    """

    def __init__(self, module: nn.Module, grid: Grid, start: dict[str, Bytes], *, weights: bool) -> None:
        found = grid_weights(module, grid)
        grid.check("both" if weights else "scales")
        if not weights:
            module.requires_grad_(requires_grad=False)
        self._weights: dict[str, _Weight] = {}
        for name, weight in found.items():
            layout = grid.layouts[grid.kinds[name]]
            coded = layout.split(start[name], weight.shape[1])
            size = float(weight.detach().double().square().mean().sqrt())
            self._weights[name] = _Weight(
                layout=layout,
                width=coded.codes.shape[2],
                unit=1 / max(size, 1e-12),
                start=coded.scales,
                scale=nn.Parameter(torch.zeros(coded.scales.shape)),
                least_start=coded.least,
                least=None if coded.least is None else nn.Parameter(torch.zeros(coded.scales.shape)),
                fixed=None if weights else torch.from_numpy(coded.codes),
            )
            # Its gradient at the rounded weight is what the scales learn from.
            weight.requires_grad_()
        parameters = [part for one in self._weights.values() for part in (one.scale, one.least) if part is not None]
        # Where they are of the module, the optimizer trains them, and snapshots have them.
        module.register_module("scales", nn.ParameterList(parameters))

    def round(self, name: str, weight: Tensor) -> None:
        """See Rounding."""
        one = self._weights[name]
        scale, least = _held(one)
        codes = _codes(one, weight, scale, least)[1]
        weight.copy_(_values(codes, scale, least)[:, : weight.shape[1]])

    def learn(self, name: str, weight: Tensor) -> None:
        """Turn the gradient at the rounded weight into those of its scales, and into the weight's own or none."""
        one, slope = self._weights[name], cast(Tensor, weight.grad)
        scale, least = _held(one)
        exact, codes = _codes(one, weight, scale, least)
        by_value = _grouped(slope, one.width)
        if one.fixed is not None:
            shift, beyond = codes, by_value
            weight.grad = None
        else:
            inside = (exact - codes).abs() <= 0.5
            shift = torch.where(inside, codes - exact, codes)
            beyond = by_value * ~inside
            slope.mul_(inside.flatten(1)[:, : weight.shape[1]])
        one.scale.grad = (by_value * shift).sum(dim=2) * _like(slope, one.start) * one.unit
        if one.least is not None and one.least_start is not None:
            one.least.grad = beyond.sum(dim=2) * _like(slope, one.least_start) * -one.unit

    def pack(self, name: str, weight: Tensor) -> Bytes:
        """See Rounding."""
        one = self._weights[name]
        scale, least = _held(one)
        codes = _codes(one, weight.detach(), scale, least)[1]
        coded = Coded(
            codes=codes.cpu().numpy(),
            scales=scale.cpu().numpy(),
            least=None if least is None else least.cpu().numpy(),
        )
        return one.layout.join(coded)


def put_on_grid(module: nn.Module, grid: Grid, source: Source, options: TrainingOptions, progress: Progress) -> OnGrid:
    """A module on a grid, as its training begins; what begins from texts does from the source's."""
    train = options.train if isinstance(options, QadOptions) else "weights"
    grid = without_surplus(module, grid)
    reads = None
    if grid.choose_reads is not None:
        grid, chosen = grid.choose_reads(module, grid, source, progress)
        reads = Reads(module, chosen)
        reads.begin()
    rounding: Rounding = Nearest(grid)
    if train != "weights":
        start = round_on_texts(module, grid, source, weights=train == "both", progress=progress)
        rounding = Learned(module, grid, start, weights=train == "both")
    if reads is not None:
        reads.learn()
    return OnGrid(module, grid, rounding, reads)


def round_on_texts(
    module: nn.Module, grid: Grid, source: Source, *, weights: bool, progress: Progress = silent
) -> dict[str, Bytes]:
    """What the file would hold of a module's weights before they are trained, by name: as its format rounds them on some of the
    source's texts, where it can, else as it rounds each by itself.

    weights: whether they will be trained, and become what was rounded: nearest to the codes, and ready to leave them.
    """
    found = grid_weights(module, grid)
    fitted: dict[str, Bytes] = {}
    if grid.fit is not None:
        progress(0, 0, "rounding on texts")
        for name, rounded in grid.fit(module, _texts(source)):
            fitted[name] = rounded.packed
            if weights:
                with torch.no_grad():
                    found[name].copy_(torch.from_numpy(rounded.wanted))
    return {
        name: fitted[name] if name in fitted else grid.pack(weight.detach().float().numpy(), grid.kinds[name])
        for name, weight in found.items()
    }


def _texts(source: Source) -> list[list[int]]:
    """The ids of train texts from all over the source, together about TOKENS."""
    rows = source.train
    step = max(1, sum(source.lengths[row] for row in rows) // TOKENS)
    batches = (source.batch([row]) for row in rows[::step])
    return [batch.tokens[0][batch.mask[0].bool()].tolist() for batch in batches]


def _held(one: _Weight) -> tuple[Tensor, Tensor | None]:
    """Scales and least values as the file holds them, [n, groups]."""
    scale = _hold(one, one.start, one.scale)
    return scale, None if one.least is None or one.least_start is None else _hold(one, one.least_start, one.least)


def _hold(one: _Weight, start: Floats, parameter: nn.Parameter) -> Tensor:
    changed = start * (1 + np.float32(one.unit) * parameter.detach().cpu().numpy())
    return torch.from_numpy(one.layout.hold(changed)).to(parameter.device)


def _codes(one: _Weight, weight: Tensor, scale: Tensor, least: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the codes would be without rounding, and the codes, [n, groups, values]."""
    if one.fixed is not None:
        return one.fixed, one.fixed
    values = _grouped(weight, one.width)
    inverse = torch.where(scale == 0, 0.0, 1 / scale)[..., None]
    exact = (values if least is None else values + least[..., None]) * inverse
    return exact, exact.round().clamp_(one.layout.low, one.layout.high)


def _values(codes: Tensor, scale: Tensor, least: Tensor | None) -> Tensor:
    """The numbers that codes stand for, [n, groups * values]: as the engine computes them, to the last bit."""
    values = codes * scale[..., None]
    return (values if least is None else values.sub_(least[..., None])).flatten(1)


def _grouped(values: Tensor, width: int) -> Tensor:
    """Rows [n, columns] as [n, groups, width], zeros in what a row has not."""
    return functional.pad(values, (0, -values.shape[1] % width)).view(len(values), -1, width)


def _like(tensor: Tensor, values: Floats) -> Tensor:
    return torch.from_numpy(values).to(tensor.device)
