"""Inputs are rounded as onnxruntime rounds them, their scales learn as torch's own learned step size, and weights come back whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from edgekit.distill.reads import Reads, round_by_text, round_fixed
from edgekit.formats.onnx.session import Session
from edgekit.grid import Read


def quantized(values: np.ndarray) -> np.ndarray:
    """A text's values as onnxruntime's DynamicQuantizeLinear rounds them."""
    make = onnx.helper.make_node
    nodes = [
        make("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        make("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, values.shape) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "text", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return np.asarray(Session(model, fuse=False).values(["y"], {"x": values})[0])


def test_a_text_is_rounded_by_itself_and_without_its_padding() -> None:
    values = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    values[1, 4:] = 40.0
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    found = round_by_text(values, mask).numpy()
    np.testing.assert_allclose(found[0], quantized(values[:1].numpy())[0], atol=1e-6)
    np.testing.assert_allclose(found[1, :4], quantized(values[1:, :4].numpy())[0], atol=1e-6)


def test_a_fixed_range_learns_as_a_learned_step_size() -> None:
    values, slope = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).split([3, 2])[0], torch.rand(3, 40)
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    mine, steps = torch.tensor(0.012, requires_grad=True), torch.tensor([0.012], requires_grad=True)
    call: Any = torch._fake_quantize_learnable_per_tensor_affine
    wanted = call(theirs, steps, torch.tensor([100.0]), 0, 255, 1.0)
    got = round_fixed(ours, mine, 100)
    assert torch.allclose(got, wanted, atol=1e-6)
    assert float(got.detach().max()) < float(values.max())
    (got * slope).sum().backward()
    (wanted * slope).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert mine.grad is not None
    assert steps.grad is not None
    assert torch.allclose(mine.grad, steps.grad[0], rtol=1e-4)


class Held(nn.Module):
    """Two Linears that read one value, as a student holds its model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"first": nn.Linear(8, 4), "second": nn.Linear(8, 4), "drop": nn.Dropout(0.5)})

    def forward(self, values: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
        return self.model["drop"](self.model["first"](values) + self.model["second"](values))


def test_weights_come_back_whole_and_shared_scales_learn_as_one() -> None:
    module = Held()
    divisor = np.exp2(np.arange(-4, 4)).astype(np.float32)
    read = Read(divisor=divisor, scale=np.float32(0.5), zero=128)
    names = [f"{name}.weight" for name in ("first", "second")]
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    values = torch.randn(2, 3, 8)
    wanted = module.eval()(values, values)
    module.train()
    reads = Reads(module, dict.fromkeys(names, read))
    reads.begin()
    reads.learn()
    assert [name for name, _ in module.named_parameters() if name.startswith("reads")] == ["reads.0"]
    with reads.rounded():
        answers = module(values, torch.ones(2, 3))
        # Coarse steps, and no dropout.
        assert 0 < float((answers - wanted).abs().max()) < 2
        assert torch.equal(answers, module(values, torch.ones(2, 3)))
    assert module.training
    answers.sum().backward()
    with torch.no_grad():
        module.get_parameter("reads.0").add_(0.1)
    found = reads.settled()
    assert found[names[0]].scale == found[names[1]].scale != np.float32(0.5)
    reads.end()
    assert all(torch.equal(module.get_parameter(name), value) for name, value in before.items())
