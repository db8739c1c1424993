"""SmoothQuant: move the outliers of a Linear's input into its weight, channel by channel.

x W = (x / s) (s W) with s_j = max|x_j|^a / max|W_j|^(1-a), Xiao et al. 2022 (arXiv:2211.10438, equation 4). Exact in real
numbers; afterwards x / s has a narrower range, so that eight bits lose less of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.formats.onnx.graph import Graph, Linear, attribute, float_array

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

# Channels that are never used must not get a scale of 0 or infinity.
SMALLEST = 1e-5
LARGEST_SCALE = 1e3
# How probabilities and values are multiplied and brought back: batch first, and sequence first (attention.py).
MIXES = (("MatMul", [0, 2, 1, 3]), ("FusedMatMul", [2, 0, 1, 3]))


@dataclass(frozen=True, kw_only=True)
class Range:
    """What was calibrated of each channel of a Linear's input: least, greatest and mean square value, float32 [channels]."""

    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    mean_square: NDArray[np.float32]
    steps: tuple[np.float32, int] | None = None
    """Scale and zero point among the codes 0 to 255, where those were trained."""

    def divided(self, scale: NDArray[np.float32]) -> Range:
        """The range after the channels were divided by positive scales."""
        return Range(
            minimum=self.minimum / scale, maximum=self.maximum / scale, mean_square=self.mean_square / scale**2
        )


def groups(graph: Graph) -> dict[str, list[Linear]]:
    """The graph's Linears by the value that they read, in graph order."""
    found: dict[str, list[Linear]] = {}
    for linear in graph.linears():
        found.setdefault(linear.source, []).append(linear)
    return found


def after_activation(graph: Graph, source: str) -> bool:
    """Whether a value comes from a nonlinearity that widened it (a block's second Linear reads such a value)."""
    maker = graph.maker.get(source)
    return maker is not None and maker.op_type in {"Gelu", "Relu", "Mul"}


def smooth(graph: Graph, ranges: Mapping[str, Range], alpha: float, *, skip: Sequence[str] = ()) -> dict[str, Range]:
    """Smooth the graph's Linears in place; returns the ranges of their inputs afterwards, by calibration key.

    A value that several Linears read is scaled once. The scale is folded into the value projection where the input is an
    attention's output (which is linear in it), else it is one Mul. Inputs in `skip`, and Linears without a calibrated
    range or with a weight that others read too, stay as they are.
    """
    changed = dict(ranges)
    rewritten = list(graph.model.graph.node)
    for source, linears in groups(graph).items():
        keys = [linear.key for linear in linears]
        if source in skip or any(key not in ranges for key in keys):
            continue
        if any(len(graph.readers[linear.weight]) > 1 for linear in linears):
            continue
        scale = smoothing_scale(graph, linears, ranges[keys[0]], alpha)
        inverse = float_array(1.0 / scale)
        for linear in linears:
            weight = graph.weights(linear.weight)
            graph.add_constant(linear.weight, float_array(weight * scale[:, None]))
            changed[linear.key] = ranges[linear.key].divided(scale)
        value = value_projection(graph, source, linears)
        if value is not None and value.key in ranges:
            _scale_outputs(graph, value, inverse)
            continue
        multiply_input(graph, rewritten, linears, inverse)
    graph.replace_nodes(rewritten)
    return changed


def multiply_input(
    graph: Graph, nodes: list[onnx.NodeProto], linears: Sequence[Linear], factor: NDArray[np.float32], mark: str = ""
) -> None:
    """Let Linears that read one value read it times a factor [channels]: one more of the graph's nodes, before theirs.

    mark: tells several factors of one value apart.
    """
    import onnx

    source = linears[0].source
    first = min(nodes.index(linear.matmul) for linear in linears)
    constant = graph.add_constant(f"{source}.smoothing{mark}", factor)
    made, name = f"{source}.smoothed{mark}", f"{linears[0].name}/smoothing"
    nodes.insert(first, onnx.helper.make_node("Mul", [source, constant], [made], name=name))
    for linear in linears:
        linear.matmul.input[0] = made


def smoothing_scale(graph: Graph, linears: Sequence[Linear], seen: Range, alpha: float) -> NDArray[np.float32]:
    """s [channels] of the value that these Linears read, with geometric mean 1."""
    weights = [graph.constant(linear.weight) for linear in linears]
    return balance([float_array(weight) for weight in weights if weight is not None], seen, alpha)


def balance(weights: Sequence[NDArray[np.float32]], seen: Range, alpha: float) -> NDArray[np.float32]:
    """s [channels] of a value that these weights [channels, outputs] multiply, with geometric mean 1 (equation 4)."""
    import numpy as np

    heaviest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    loudest = np.maximum(np.abs(seen.minimum), np.abs(seen.maximum))
    log_scale = alpha * np.log(np.maximum(loudest, SMALLEST)) - (1 - alpha) * np.log(np.maximum(heaviest, SMALLEST))
    log_scale -= log_scale.mean()
    bound = np.log(LARGEST_SCALE)
    return float_array(np.exp(np.clip(log_scale, -bound, bound)))


def value_projection(graph: Graph, source: str, linears: Sequence[Linear]) -> Linear | None:
    """The Linear whose output channels are the channels of an attention's output, where these Linears alone read that.

    Pattern: value -> Reshape [-> Transpose] -> product with probabilities -> Transpose -> Reshape -> source, where the first
    order of axes and the last are [.., .., heads, channels], so that channels stay in their places.
    """
    if len(graph.readers[source]) != len(linears):
        return None
    back = _maker(graph, _maker(graph, source, "Reshape"), "Transpose")
    mixed = graph.maker.get(back.input[0]) if back is not None else None
    if back is None or mixed is None or (mixed.op_type, list(attribute(back, "perm", list[int]()))) not in MIXES:
        return None
    split = graph.maker.get(mixed.input[1])
    if mixed.op_type == "MatMul":
        if split is None or split.op_type != "Transpose" or list(attribute(split, "perm", list[int]())) != [0, 2, 1, 3]:
            return None
        split = graph.maker.get(split.input[0])
    elif not attribute(mixed, "transBatchB", 0):
        return None
    if split is None or split.op_type != "Reshape":
        return None
    return next(
        (
            linear
            for linear in graph.linears()
            if linear.result == split.input[0]
            and len(graph.readers[linear.result]) == 1
            and len(graph.readers[linear.weight]) == 1
        ),
        None,
    )


def _maker(graph: Graph, reader: onnx.NodeProto | str | None, operator: str) -> onnx.NodeProto | None:
    if reader is None:
        return None
    name = reader if isinstance(reader, str) else reader.input[0]
    maker = graph.maker.get(name)
    return maker if maker is not None and maker.op_type == operator else None


def _scale_outputs(graph: Graph, linear: Linear, factor: NDArray[np.float32]) -> None:
    """Multiply a Linear's output channels: its weight's columns and its bias."""
    weight = graph.weights(linear.weight)
    graph.add_constant(linear.weight, float_array(weight * factor))
    if linear.bias is not None:
        bias = graph.weights(linear.bias)
        # A bias may be shared by Linears; this one gets its own.
        own = linear.bias if len(graph.readers[linear.bias]) == 1 else f"{linear.bias}.{linear.call}.scaled"
        graph.add_constant(own, float_array(bias * factor))
        if linear.add is not None:
            for place, name in enumerate(linear.add.input):
                if name == linear.bias:
                    linear.add.input[place] = own
