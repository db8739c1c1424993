"""Training on a grid: each forward pass sees the numbers that the exported file will hold, and the last one's are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.distill.decoder_inputs import DecoderInputs
from edgekit.distill.decoders import Body
from edgekit.distill.options import QadOptions
from edgekit.distill.reads import Reads
from edgekit.errors import EdgekitError
from edgekit.grid import Grid, write_packed
from edgekit.runtimes.machine import count_threads

Bytes = NDArray[np.uint8]
# Of a model of 384 channels: a quarter of what a student's training takes, since all that is to learn is what rounding broke.
# Where codes begin from rounding with feedback, each that changes by chance breaks what others made up for: smaller steps.
QAD_RATES = {"weights": 5e-5, "scales": 5e-5, "both": 1.25e-5}
# Where inputs are rounded to 8 bits, and the start is a plain export's: a tenth of that is left to learn.
INPUTS_RATE = 5e-6


class Rounding(Protocol):
    """How weights are rounded, and what is learned of that. A weight is named as in the checkpoint."""

    def round(self, name: str, weight: Tensor) -> None:
        """Round a weight in place."""

    def learn(self, name: str, weight: Tensor) -> None:
        """Behind a backward pass, the weight being its own again: what becomes of the gradient at the rounded one."""

    def pack(self, name: str, weight: Tensor) -> Bytes:
        """What the file will hold of a weight: uint8 [rows, bytes of a row]."""


class Nearest:
    """ggml's or ONNX's own rounding, anew in each pass: its scales follow from the weights."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def round(self, name: str, weight: Tensor) -> None:
        """See Rounding."""
        unpacked = self._grid.unpack(self.pack(name, weight), self._grid.kinds[name], weight.shape[1])
        weight.copy_(torch.from_numpy(unpacked))

    def learn(self, name: str, weight: Tensor) -> None:
        """Nothing: the gradient passes straight through."""

    def pack(self, name: str, weight: Tensor) -> Bytes:
        """See Rounding."""
        return self._grid.pack(weight.detach().float().cpu().numpy(), self._grid.kinds[name])


class OnGrid:
    """A module whose weights are rounded to a grid for the time of a forward and a backward pass.

    Between them it has its own weights, in float32, and the optimizer changes those: the gradient at the rounded weights is
    taken for theirs (the straight-through estimator, Bengio, Leonard, Courville, arXiv:1308.3432; two copies of the weights as
    in BinaryConnect, arXiv:1511.00363, algorithm 1). A weight that has two names, as a tied head, is one weight.
    """

    def __init__(self, module: nn.Module, grid: Grid, rounding: Rounding, reads: Reads | None = None) -> None:
        """reads: how inputs are read, where that was measured; it has begun."""
        self._grid, self._rounding, self._reads = grid, rounding, reads
        self._weights = grid_weights(module, grid)
        rounded = {id(weight) for weight in self._weights.values()}
        linears = [part for part in module.modules() if isinstance(part, nn.Linear) and id(part.weight) in rounded]
        self._inputs: Callable[[], AbstractContextManager[None]] = nullcontext if reads is None else reads.rounded
        if isinstance(module, Body) and (grid.rounds_inputs or grid.input_block is not None):
            self._inputs = DecoderInputs(module, linears, grid.input_block).rounded
        self._own: dict[str, Tensor] = {}

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """The weights rounded; afterwards they are what they were."""
        for name, weight in self._weights.items():
            self._own.setdefault(name, torch.empty_like(weight)).copy_(weight.detach())
        with ThreadPoolExecutor(count_threads()) as pool:
            # As many at once as training uses cores: packing holds no lock of Python's.
            list(pool.map(self._round, self._weights))
        try:
            with self._inputs():
                yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(self._own[name])
                    if weight.grad is not None:
                        self._rounding.learn(name, weight)

    def settle(self, folder: Path) -> None:
        """Round the weights for good, and put the codes and scales that they stand for into a folder (`edgekit.grid.GRID`)."""
        packed = {}
        for name, weight in self._weights.items():
            packed[name] = data = self._rounding.pack(name, weight)
            with torch.no_grad():
                weight.copy_(torch.from_numpy(self._grid.unpack(data, self._grid.kinds[name], weight.shape[1])))
        if self._reads is None:
            write_packed(folder, self._grid, packed)
        else:
            self._reads.end()
            write_packed(folder, self._grid, packed, self._reads.settled())

    def _round(self, name: str) -> None:
        with torch.no_grad():
            self._rounding.round(name, self._weights[name])


def choose_rate(options: QadOptions, width: int, grid: Grid | None = None) -> float:
    """The learning rate of a training on a grid, of a model of so many channels."""
    usual = INPUTS_RATE if grid is not None and _is_int8(grid) else QAD_RATES[options.train]
    return options.learning_rate or usual * 384 / width


def complete(options: QadOptions, grid: Grid, width: int) -> QadOptions:
    """Options with what a grid and a model's width decide where they are silent."""
    # bf16 has no more bits than inputs that are rounded to 8.
    exact = _is_int8(grid) and options.precision == "auto"
    rate = choose_rate(options, width, grid)
    return replace(options, learning_rate=rate, precision="fp32" if exact else options.precision)


def _is_int8(grid: Grid) -> bool:
    """Whether inputs are rounded to 8 bits between their ends, an encoder's or a decoder's."""
    return grid.inputs is not None or grid.rounds_inputs


def without_surplus(module: nn.Module, grid: Grid) -> Grid:
    """The grid without what a checkpoint has beyond its task, as the pooler of an embedding model: the file has not.

    What is no pooler stays in it where it may be a Linear of the module by another name.
    """
    body = module.get_submodule("model")
    own = dict(body.named_parameters())
    linears = [f"{path}.weight" for path, part in body.named_modules() if isinstance(part, nn.Linear)]
    named = bool(linears) and all(name in grid.kinds for name in linears)
    surplus = {name for name in grid.kinds.keys() - own.keys() if named or "pooler" in name.split(".")}
    return replace(grid, kinds={name: kind for name, kind in grid.kinds.items() if name not in surplus})


def grid_weights(module: nn.Module, grid: Grid) -> Mapping[str, Tensor]:
    """A module's weights that a grid rounds, by their names there. EdgekitError where it names one that the module has not."""
    parameters: dict[str, Tensor] = dict(cast(Any, module).model.named_parameters())
    if missing := sorted(grid.kinds.keys() - parameters.keys()):
        raise EdgekitError(
            f"{missing[0]}: {grid.format} writes it, but it is no weight of the module; train without [qad]"
        )
    return {name: parameters[name] for name in sorted(grid.kinds)}
