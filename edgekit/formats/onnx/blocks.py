"""Weight-only schemes: blocks of 4 or 8 bits (MatMulNBits), and half precision."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from edgekit.formats.onnx.graph import Graph, import_microsoft
from edgekit.formats.onnx.packing import pack_blocks
from edgekit.formats.onnx.table import Bits, is_table, quantize_table
from edgekit.runtimes.onnxruntime.operators import MICROSOFT

if TYPE_CHECKING:
    import onnx

    from edgekit.formats.onnx.trained import Trained

# onnxruntime's int8 compute path (accuracy_level 4 of MatMulNBits, its ContribOperators.md): 2x as fast as float on a CPU.
ACCURACY_LEVEL = 4


def read_floats(model: onnx.ModelProto) -> None:
    """Have products of blocks compute with inputs as they are (accuracy_level 0), not rounded to 8 bits; in place."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0


def quantize_blocks(
    graph: Graph,
    *,
    bits: int,
    block: int,
    table_bits: Bits = 8,
    keep_float: Collection[str] = (),
    trained: Trained | None = None,
) -> list[str]:
    """Turn Linears into MatMulNBits and large tables into integers in place; returns the keys of the Linears quantized.

    trained: what their weights were trained with, which is written as it is.
    """
    import onnx

    linears = {linear.matmul.name: linear for linear in graph.linears() if linear.key not in keep_float}
    adds = {linear.add.output[0] for linear in linears.values() if linear.add is not None}
    rewritten: list[onnx.NodeProto] = []
    for node in list(graph.model.graph.node):
        linear = linears.get(node.name) if node.op_type == "MatMul" else None
        if linear is not None:
            weight = graph.weights(linear.weight)
            found = None if trained is None else trained.find(f"{linear.path}.weight", weight.T)
            packed, scales = pack_blocks(weight, bits=bits, block=block)
            if found is not None:
                packed, scales = found[0].reshape(packed.shape).astype(packed.dtype), found[1].reshape(-1)
            inputs = [
                linear.source,
                graph.add_constant(f"{linear.weight}.int{bits}", packed),
                graph.add_constant(f"{linear.weight}.scale", scales),
            ]
            if linear.bias:
                inputs += ["", "", linear.bias]
            rewritten.append(
                onnx.helper.make_node(
                    "MatMulNBits",
                    inputs,
                    [linear.result],
                    name=node.name,
                    domain=MICROSOFT,
                    K=weight.shape[0],
                    N=weight.shape[1],
                    bits=bits,
                    block_size=block,
                    accuracy_level=ACCURACY_LEVEL,
                )
            )
        elif is_table(graph, node):
            rewritten += quantize_table(graph, node, bits=table_bits, trained=trained)
        elif not (node.op_type == "Add" and node.output[0] in adds):
            rewritten.append(node)
    graph.replace_nodes(rewritten)
    graph.sort()
    import_microsoft(graph.model)
    return [linear.key for linear in linears.values()]
