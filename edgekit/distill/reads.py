"""Reads: how a file's Linears read their inputs (`edgekit.grid.Read`), while a module is trained on its grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.grid import Read


class Reads:
    """A module's Linears read their inputs as the file will: by the names of their weights in the checkpoint.

    From `begin` on the module holds weights that are multiplied with their divisors, and is itself only within `rounded`; `end`
    divides them again. Dropout is off: it makes far more noise than the rounding that is to be won back.
    """

    def __init__(self, module: nn.Module, reads: Mapping[str, Read]) -> None:
        self._module, self._reads = module, dict(reads)
        self.layers = linears(module, reads)
        self._divisors = {name: torch.from_numpy(read.divisor) for name, read in reads.items()}
        self._scales: dict[str, tuple[nn.Parameter, float]] = {}
        self._mask: Tensor | None = None

    def begin(self) -> None:
        """Multiply the weights with their divisors."""
        self._each(torch.Tensor.mul_)

    def end(self) -> None:
        """Divide them again."""
        self._each(torch.Tensor.div_)

    def learn(self) -> None:
        """Let the scales of fixed ranges be trained with the module, one for all that read a value.

        It is LSQ's learned step size (Esser et al., arXiv:1902.08153): `scale = start (1 + unit * parameter)`, with the unit
        as in `scales.Learned`.
        """
        shared: dict[bytes, tuple[nn.Parameter, float]] = {}
        for name, read in self._reads.items():
            if read.scale is None:
                continue
            weight = self.layers[name][0].weight
            unit = 1 / max(float(weight.detach().double().square().mean().sqrt()), 1e-12)
            key = read.divisor.tobytes() + read.scale.tobytes() + bytes([read.zero])
            self._scales[name] = shared.setdefault(key, (nn.Parameter(torch.zeros(())), unit))
        # Where they are of the module, the optimizer trains them, and snapshots have them.
        if shared:
            self._module.register_module("reads", nn.ParameterList([one for one, _ in shared.values()]))

    def settled(self) -> dict[str, Read]:
        """As the file will read inputs, by the names of weights."""
        return {
            name: Read(
                divisor=read.divisor,
                scale=None if read.scale is None else np.float32(self._scale(name, read).item()),
                zero=read.zero,
            )
            for name, read in self._reads.items()
        }

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Inputs divided and rounded."""
        hooks = [self._module.register_forward_pre_hook(self._note_mask)]
        for name, layers in self.layers.items():
            hooks += [layer.register_forward_pre_hook(partial(self._round, name)) for layer in layers]
        trains = self._module.training
        self._module.eval()
        try:
            yield
        finally:
            self._module.train(trains)
            for hook in hooks:
                hook.remove()

    def _each(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        with torch.no_grad():
            for name, layers in self.layers.items():
                change(layers[0].weight, self._divisors[name].to(layers[0].weight.device))

    def _note_mask(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._mask = inputs[1]

    def _round(self, name: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values, *others = inputs
        read = self._reads[name]
        divided = values / self._divisors[name].to(values.device)
        if read.scale is None:
            return (round_by_text(divided, self._mask), *others)
        return (round_fixed(divided, self._scale(name, read).to(values.device), read.zero), *others)

    def _scale(self, name: str, read: Read) -> Tensor:
        start = torch.tensor(read.scale)
        if name not in self._scales:
            return start
        parameter, unit = self._scales[name]
        return start.to(parameter.device) * (1 + unit * parameter)


def linears(module: nn.Module, names: Mapping[str, object]) -> dict[str, list[nn.Linear]]:
    """The Linears that multiply by weights, by these weights' names in the checkpoint; those that no Linear has are left out."""
    parameters = {id(weight): name for name, weight in module.get_submodule("model").named_parameters()}
    found: dict[str, list[nn.Linear]] = {}
    for part in module.modules():
        if isinstance(part, nn.Linear) and (name := parameters.get(id(part.weight))) in names:
            found.setdefault(cast(str, name), []).append(part)
    return found


def round_by_text(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """A Linear's input [batch, ..., channels] rounded as ONNX's DynamicQuantizeLinear does, each text by itself as it will be
    asked: between the least and the greatest value, zero among them, in steps of 1/255. Its gradient passes straight through.

    mask: 1 for a real token [batch, sequence]; the deployed text has no padding in its range. Without it, padding counts.
    """
    with torch.no_grad():
        axes = tuple(range(1, values.ndim))
        real = values
        if mask is not None and values.shape[:-1] == mask.shape:
            real = values.masked_fill(mask[..., None] == 0, 0)
        low, high = real.amin(dim=axes, keepdim=True).clamp(max=0), real.amax(dim=axes, keepdim=True).clamp(min=0)
        error = round_between(values, low, high) - values
    return values + error


def round_between(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values rounded as ONNX's DynamicQuantizeLinear does between ends, zero among them: in steps of 1/255 of their distance."""
    scale = (high - low).clamp(min=1e-12) / 255
    zero = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(values / scale).add_(zero).clamp_(0, 255) - zero) * scale


def round_fixed(values: Tensor, scale: Tensor, zero: int) -> Tensor:
    """A Linear's input rounded as ONNX's QuantizeLinear does: codes from 0 to 255, `scale * (code - zero)`.

    Gradients are those of a learned step size (LSQ, equations 3 and 5): none of a value beyond the last code.
    """
    inside = (values / scale).clamp(-zero, 255 - zero)
    return (inside + (inside.round() - inside).detach()) * scale
