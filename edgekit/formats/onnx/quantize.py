"""Float Linears and embeddings become eight-bit or block-quantized ones, written with onnxruntime's own operators.

Arithmetic: activations 8-bit per tensor with a zero point, weights 8-bit symmetric per output channel, products in int32,
outputs float32 (requantizing a MatMul's output costs far more accuracy than time on a CPU).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edgekit.formats.onnx.graph import Attribute, Graph, Linear, import_microsoft
from edgekit.formats.onnx.smooth import Range
from edgekit.formats.onnx.table import FULL_LEVELS, Bits, is_table, quantize_table
from edgekit.runtimes.onnxruntime.library import EXACT_SUMS
from edgekit.runtimes.onnxruntime.operators import OPERATORS

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.formats.onnx.trained import Trained

Layout = Literal["operators", "qdq", "emulated"]
# x86 without VNNI adds the products of two neighbouring inputs in 16 bits (VPMADDUBSW). 255 * (w0 + w1) fits while two
# weights of one sign sum to at most 128, also after each was rounded up by half a level.
LARGEST_PAIR = 127.5


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How Linears are quantized to 8 bits."""

    ranges: (
        Mapping[str, Range] | None
    )  # by calibration key: fixed input ranges; None: each input's own range, at run time
    keep_float: Collection[str] = ()  # keys of Linears that stay float
    activation: Literal["uint8", "int8"] = "uint8"
    reduce_range: bool = True
    # Weights as unsigned bytes beside unsigned activations: such products are summed in 32 bits on every CPU, whatever a session
    # asks for. Of the layout `operators` alone.
    unsigned_weights: bool = False
    # operators: onnxruntime's fused kernels; qdq: Quantize/Dequantize pairs, which execution providers fuse themselves;
    # emulated: float arithmetic on the quantized values, free of any CPU's saturation, to judge choices by.
    layout: Layout = "operators"
    # Of large embedding tables.
    table_bits: Bits = 8
    # What the weights were trained with: written as it is.
    trained: Trained | None = None

    @property
    def config_entries(self) -> dict[str, str]:
        """What a session needs so that it multiplies exactly on every CPU."""
        return dict(EXACT_SUMS) if self.unsigned and not self.reduce_range and not self.unsigned_weights else {}

    @property
    def unsigned(self) -> bool:
        """Whether activations are: those that are quantized at run time become so."""
        return self.ranges is None or self.activation == "uint8"


@dataclass(kw_only=True)
class _Rewrite:
    graph: Graph
    settings: Int8
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    quantized_inputs: dict[tuple[str, ...], tuple[str, str, str]] = field(default_factory=dict)
    count: int = 0

    def emit(self, operator: str, inputs: list[str], outputs: list[str], name: str, **attributes: Attribute) -> None:
        import onnx

        domain = OPERATORS[operator].domain if operator in OPERATORS else ""
        self.nodes.append(onnx.helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))


def quantize_int8(graph: Graph, settings: Int8) -> list[str]:
    """Quantize a graph's Linears and large embedding tables in place; returns the keys of the Linears that were quantized."""
    linears = {linear.matmul.name: linear for linear in graph.linears() if _wanted(linear, settings)}
    adds = {linear.add.output[0] for linear in linears.values() if linear.add is not None}
    sharing: dict[str, int] = {}
    for linear in linears.values():
        sharing[linear.source] = sharing.get(linear.source, 0) + 1
    rewrite = _Rewrite(graph=graph, settings=settings)
    for node in list(graph.model.graph.node):
        linear_here = linears.get(node.name) if node.op_type == "MatMul" else None
        if linear_here is not None:
            _quantize_linear(rewrite, linear_here, alone=sharing[linear_here.source] == 1)
        elif is_table(graph, node):
            rewrite.nodes += quantize_table(graph, node, bits=settings.table_bits, trained=settings.trained)
        elif not (node.op_type == "Add" and node.output[0] in adds):
            rewrite.nodes.append(node)
    graph.replace_nodes(rewrite.nodes)
    graph.sort()
    import_microsoft(graph.model)
    return [linear.key for linear in linears.values()]


def _wanted(linear: Linear, settings: Int8) -> bool:
    return linear.key not in settings.keep_float and (settings.ranges is None or linear.key in settings.ranges)


def weight_int8(weight: NDArray[np.float32], *, reduce_range: bool) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 [inputs, outputs] and scales [outputs]: symmetric, each output channel's largest weight at the top level.

    reduce_range: a scale just coarse enough that no sum of two neighbours saturates on any CPU. That costs a third of a bit
    on trained weights, where onnxruntime's own reduce_range (7 bits for every weight) costs a whole one.
    """
    import numpy as np

    scale = np.abs(weight).max(axis=0) / np.float32(FULL_LEVELS)
    if reduce_range:
        even = np.concatenate([weight, np.zeros((len(weight) % 2, weight.shape[1]), weight.dtype)])
        pairs = [np.maximum(sign * even, 0).reshape(-1, 2, weight.shape[1]).sum(axis=1).max(axis=0) for sign in (1, -1)]
        scale = np.maximum(scale, np.max(pairs, axis=0) / np.float32(LARGEST_PAIR))
    scale = np.maximum(scale, np.float32(1e-12))
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


def input_scale(seen: Range, kind: str) -> tuple[np.float32, np.uint8 | np.int8]:
    """Scale and zero point of a tensor whose range is known; 0 is always representable exactly."""
    import numpy as np

    if seen.steps is not None:
        return seen.steps[0], np.dtype(kind).type(seen.steps[1] - (0 if kind == "uint8" else 128))
    low, high = min(0.0, float(seen.minimum.min())), max(0.0, float(seen.maximum.max()))
    scale = np.float32(max(high - low, 1e-12) / 255)
    lowest = 0 if kind == "uint8" else -128
    zero = np.clip(np.rint(lowest - low / scale), lowest, lowest + 255)
    return scale, np.dtype(kind).type(zero)


def rounding_noise(weight: NDArray[np.float32], seen: Range) -> float:
    """The share of a Linear's output power that rounding its input to 8 bits makes up, were its inputs independent.

    Rounding to steps of D is noise of power D^2 / 12 on every input (Widrow's model); an input's signal is its mean square.
    """
    scale, _ = input_scale(seen, "uint8")
    power = (weight**2).sum(axis=1)
    return float(scale**2 / 12 * power.sum() / max(1e-12, float((seen.mean_square * power).sum())))


def _quantize_linear(rewrite: _Rewrite, linear: Linear, *, alone: bool) -> None:
    import numpy as np

    graph, settings = rewrite.graph, rewrite.settings
    weight = graph.weights(linear.weight)
    found = None if settings.trained is None else settings.trained.find(f"{linear.path}.weight", weight.T)
    if found is None:
        integers, scales = weight_int8(weight, reduce_range=settings.reduce_range)
    else:
        integers, scales = np.ascontiguousarray(found[0].T, np.int8), found[1][:, 0]
    name, result = linear.matmul.name, linear.result
    if settings.layout == "emulated":
        fake = graph.add_constant(f"{linear.weight}.dequantized", integers.astype(np.float32) * scales)
        source = _dequantized_input(rewrite, linear)
        _float_matmul(rewrite, linear, source, fake)
        return
    zero_point = ""
    if settings.unsigned_weights and settings.unsigned and settings.layout == "operators":
        packed = graph.add_constant(f"{linear.weight}.uint8", (integers.astype(np.int16) + 128).astype(np.uint8))
        zero_point = graph.add_constant("weights.zero", np.array(128, np.uint8))
    else:
        packed = graph.add_constant(f"{linear.weight}.int8", integers)
    scale = graph.add_constant(f"{linear.weight}.scale", scales)
    if settings.layout == "qdq":
        zero = graph.add_constant(f"{linear.weight}.zero", np.zeros(len(scales), np.int8))
        restored = f"{linear.weight}.dequantized"
        rewrite.emit("DequantizeLinear", [packed, scale, zero], [restored], f"{name}/DequantizeWeight", axis=1)
        _float_matmul(rewrite, linear, _dequantized_input(rewrite, linear), restored)
    elif settings.ranges is None and alone:
        inputs = [linear.source, packed, scale, zero_point, linear.bias or ""]
        rewrite.emit("DynamicQuantizeMatMul", _trim(inputs), [result], name)
    else:
        values, x_scale, x_zero = _quantized_input(rewrite, linear)
        inputs = [values, packed, x_scale, scale, x_zero, zero_point, linear.bias or ""]
        rewrite.emit("MatMulIntegerToFloat", _trim(inputs), [result], name)


def _trim(inputs: list[str]) -> list[str]:
    while inputs and not inputs[-1]:
        inputs.pop()
    return inputs


def _float_matmul(rewrite: _Rewrite, linear: Linear, source: str, weight: str) -> None:
    rewrite.emit("MatMul", [source, weight], [linear.matmul.output[0]], linear.matmul.name)
    if linear.add is not None:
        rewrite.nodes.append(linear.add)


def _quantized_input(rewrite: _Rewrite, linear: Linear) -> tuple[str, str, str]:
    """The names of a Linear's input as integers, its scale and its zero point; Linears that agree share them."""
    import numpy as np

    graph, settings = rewrite.graph, rewrite.settings
    prefix = f"{linear.source}.quantized"
    if settings.ranges is None:
        mark: tuple[str, ...] = (linear.source,)
    else:
        scale, zero = input_scale(settings.ranges[linear.key], settings.activation)
        mark = (linear.source, scale.tobytes().hex(), str(zero))
    if mark not in rewrite.quantized_inputs:
        names = tuple(f"{prefix}.{len(rewrite.quantized_inputs)}{part}" for part in ("", ".scale", ".zero"))
        values, x_scale, x_zero = names
        if settings.ranges is None:
            rewrite.emit("DynamicQuantizeLinear", [linear.source], [values, x_scale, x_zero], f"{linear.name}/Quantize")
        else:
            graph.add_constant(x_scale, np.asarray(scale))
            graph.add_constant(x_zero, np.asarray(zero))
            rewrite.emit("QuantizeLinear", [linear.source, x_scale, x_zero], [values], f"{linear.name}/Quantize")
        rewrite.quantized_inputs[mark] = (values, x_scale, x_zero)
    return rewrite.quantized_inputs[mark]


def _dequantized_input(rewrite: _Rewrite, linear: Linear) -> str:
    values, scale, zero = _quantized_input(rewrite, linear)
    restored = f"{values}.dequantized"
    if all(restored not in node.output for node in rewrite.nodes):
        rewrite.emit("DequantizeLinear", [values, scale, zero], [restored], f"{linear.name}/Dequantize")
    return restored
