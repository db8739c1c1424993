"""Scales that learn: their gradients are torch's own of a learned step size, and the file can hold what comes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.distill.on_grid import OnGrid
from edgekit.distill.scales import Learned
from edgekit.errors import EdgekitError
from edgekit.formats.onnx.rounding import make_layouts, pack, unpack
from edgekit.grid import Grid

NAME = "weight"


class Held(nn.Module):
    """A Linear of 40 inputs, as a student holds its model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(40, 6)


def learned(module: nn.Module, kind: str, *, weights: bool) -> tuple[OnGrid, Grid]:
    grid = Grid(format="onnx", scheme="w4", kinds={NAME: kind}, pack=pack, unpack=unpack, layouts=make_layouts([kind]))
    weight = module.get_parameter("model.weight").detach().numpy()
    # Scales a third too small: some values lie beyond the last code.
    coded = grid.layouts[kind].split(pack(weight, kind), 40)
    coded.scales[:] *= np.float32(0.67)
    return OnGrid(module, grid, Learned(module, grid, {NAME: grid.layouts[kind].join(coded)}, weights=weights)), grid


@pytest.mark.parametrize(("kind", "width"), [("w4/8", 8), ("w8/20", 20), ("int8", 40)])
def test_gradients_are_those_of_a_learned_step_size(kind: str, width: int) -> None:
    module, text = Held(), torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    on_grid, grid = learned(module, kind, weights=True)
    layout, weight = grid.layouts[kind], module.get_parameter("model.weight")
    own = weight.detach().clone()
    size = own.square().mean().sqrt()
    with on_grid.rounded():
        seen = weight.detach().clone()
        module.model(text).square().sum().backward()
    assert torch.equal(weight, own)
    scales = torch.from_numpy(layout.split(pack(own.numpy(), kind), 40).scales * np.float32(0.67))
    given, steps = own.reshape(-1, width).requires_grad_(), scales.reshape(-1).abs().requires_grad_()
    # torch's step is positive; blocks of w4 may have a negative one, with the codes the other way round.
    sign = scales.reshape(-1).sign()[:, None]
    call: Any = torch._fake_quantize_learnable_per_channel_affine
    wanted = sign * call(given * sign, steps, torch.zeros(len(steps)), 0, layout.low, layout.high, 1.0)
    assert torch.allclose(seen, wanted.reshape(6, 40).detach(), atol=1e-7)
    torch.nn.functional.linear(
        text, wanted.reshape(6, 40), module.get_parameter("model.bias")
    ).square().sum().backward()
    assert given.grad is not None
    assert steps.grad is not None
    assert weight.grad is not None
    assert torch.allclose(weight.grad, given.grad.reshape(6, 40), rtol=1e-4, atol=1e-5)
    mine = module.get_parameter("scales.0").grad
    assert mine is not None
    assert torch.allclose(mine.reshape(-1), steps.grad * steps.detach() / size, rtol=1e-3, atol=1e-4)


def test_scales_alone_learn_and_codes_stay() -> None:
    module, text = Held(), torch.randn(5, 40)
    on_grid, _ = learned(module, "w4/8", weights=False)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    seen = []
    for _ in range(3):
        with on_grid.rounded():
            seen.append(module.get_parameter("model.weight").detach().clone().view(6, 5, 8))
            (module.model(text) - 1).square().sum().backward()
        with torch.no_grad():
            scales = module.get_parameter("scales.0")
            assert scales.grad is not None
            scales -= 0.01 * scales.grad.sign()
        module.zero_grad()
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"scales.0"}
    # In each block the values changed by one factor.
    first, last = (values.abs().amax(dim=2, keepdim=True) for values in (seen[0], seen[-1]))
    assert torch.allclose(seen[-1], seen[0] * last / first, rtol=1e-5)
    assert float((last / first - 1).abs().min()) > 0.01


def test_scales_that_cannot_learn_are_refused() -> None:
    with pytest.raises(EdgekitError, match=r'qad\.train: the scales of onnx w4 \(pairs\).*"weights"'):
        Grid(format="onnx", scheme="w4", kinds={NAME: "pairs"}, pack=pack, unpack=unpack).check("scales")
