"""A classifier reads one token: behind the last attention, no other token needs to be computed.

Where everything that leaves the last block goes through a Gather of the first token, that block's query, output projection
and feed-forward layers work on one row instead of all; its keys and values still see every token. Of a block's twelve units
of work (query, key, value and output one each, feed-forward eight) two are left: a seventh of a 6-layer encoder, more than a
quarter of a 3-layer one. The answers are the same, sum for sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.formats.onnx.graph import Graph, attribute, copy_node

if TYPE_CHECKING:
    import onnx

# Elementwise, or along the last axis: each row of the sequence by itself.
ROW_BY_ROW = {"LayerNormalization", "Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "Add", "Mul", "Sub", "Div", "MatMul"}
BACK_FROM_HEADS = [2, 0, 1, 3]  # [batch, heads, sequence, size] -> [sequence, batch, heads, size]


def first_token_only(graph: Graph) -> None:
    """Cut what a sequence-first graph (attention.py) computes for tokens that nobody reads, in place."""
    axes = _sequence_axes(graph)
    wanted = _read_at_first_only(graph, axes)
    if not any(graph.maker[name].op_type == "MatMul" for name in wanted):
        return
    slices: dict[tuple[str, int], str] = {}
    rewritten: list[onnx.NodeProto] = []
    for node in graph.model.graph.node:
        fresh = copy_node(node)
        if node.output[0] in wanted:
            for place in _row_inputs(graph, node):
                name = node.input[place]
                if name in wanted or name in graph.initializers or name.endswith(".plain"):
                    continue
                # An added bias [., ., sequence or 1, sequence] is cut at the queries too.
                fresh.input[place] = _first_row(graph, rewritten, slices, name, axes.get(name, axes[node.output[0]]))
        rewritten.append(fresh)
    graph.replace_nodes(rewritten)


def _sequence_axes(graph: Graph) -> dict[str, int]:
    """The axis of the sequence (of the queries, for scores) in every value of the encoder: 0 or 2."""
    axes: dict[str, int] = {}
    for node in graph.model.graph.node:
        axis = _axis(graph, node, [axes[name] for name in node.input if name in axes])
        if axis is not None:
            axes[node.output[0]] = axis
    return axes


def _axis(graph: Graph, node: onnx.NodeProto, known: list[int]) -> int | None:
    if node.op_type == "FusedMatMul":
        return 2 if attribute(node, "transBatchB", 0) else None
    if node.op_type == "Gather":
        return 0 if node.input[1] == "input_ids.turned" else None
    if not known:
        return None
    if node.op_type == "Transpose":
        return 0 if known == [2] and list(attribute(node, "perm", list[int]())) == BACK_FROM_HEADS else None
    if node.op_type == "Reshape":
        return 0 if known == [0] and _keeps_rows(graph, node) else None
    if node.op_type == "Softmax":
        return known[0] if attribute(node, "axis", -1) in {-1, 3} else None
    return known[0] if node.op_type in ROW_BY_ROW else None


def _keeps_rows(graph: Graph, reshape: onnx.NodeProto) -> bool:
    shape = graph.constant(reshape.input[1])
    return shape is not None and shape.tolist()[:2] == [0, 0] and not attribute(reshape, "allowzero", 0)


def _read_at_first_only(graph: Graph, axes: dict[str, int]) -> set[str]:
    """Values of the encoder of which every reader wants the first row only."""
    wanted: set[str] = set()
    for node in reversed(graph.model.graph.node):
        name = node.output[0]
        if name not in axes or name in graph.outputs or not graph.readers[name]:
            continue
        if all(_wants_first(graph, axes, wanted, reader, name) for reader in graph.readers[name]):
            wanted.add(name)
    return wanted


def _wants_first(graph: Graph, axes: dict[str, int], wanted: set[str], reader: onnx.NodeProto, name: str) -> bool:
    if reader.op_type == "Gather" and attribute(reader, "axis", 0) == 0 and axes[name] == 0 and reader.input[0] == name:
        place = graph.constant(reader.input[1])
        return place is not None and place.ndim == 0 and int(place) == 0
    places = [place for place, read in enumerate(reader.input) if read == name]
    return reader.output[0] in wanted and set(places) <= set(_row_inputs(graph, reader))


def _row_inputs(graph: Graph, node: onnx.NodeProto) -> list[int]:
    """The inputs of a node whose row r is all that its output's row r needs; keys and values are read whole."""
    if node.op_type in {"FusedMatMul", "Softmax", "Transpose", "Reshape", "LayerNormalization"}:
        return [0]
    if node.op_type == "MatMul":
        return [0] if node.input[1] in graph.initializers else []
    return list(range(len(node.input))) if node.op_type in ROW_BY_ROW else []


def _first_row(
    graph: Graph, rewritten: list[onnx.NodeProto], slices: dict[tuple[str, int], str], name: str, axis: int
) -> str:
    import numpy as np
    import onnx

    if (name, axis) not in slices:
        slices[name, axis] = f"{name}.first"
        ends = [graph.add_constant(f"row.{value}", np.array([value], np.int64)) for value in (0, 1, axis)]
        rewritten.append(onnx.helper.make_node("Slice", [name, *ends], [slices[name, axis]], name=f"first/{name}"))
    return slices[name, axis]
