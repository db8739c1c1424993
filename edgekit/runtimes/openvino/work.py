"""What one call of a session does, and in which precision: from OpenVINO's graph and from its own profile of a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.openvino.library import CPU, Node, read_graph
from edgekit.runtimes.openvino.session import Session

if TYPE_CHECKING:
    from edgekit.runtimes.placement import Work
    from edgekit.runtimes.request import Arrays

# How the kinds of a product begin in the CPU's graph, as FullyConnectedCompressed (cpu_types.cpp of the intel_cpu plugin).
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
# What may lie between a constant matrix and the product that reads it.
_THROUGH = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize", "Unsqueeze"}


def work(file: Path, options: Mapping[str, object], prompt: Arrays) -> Work:
    """What one call on a prompt does: {provider, nodes, matmul_nodes, matmul_ops, weight_bytes, precisions}.

    An operation is a multiplication or an addition; products and bytes are counted in the graph as it was read, precisions (how
    many products ran in each: i8, f32, ...) and nodes in what ran.
    """
    session = Session(file, options, count=True)
    session.run(prompt)
    ran = session.profile()
    products = [node for node in ran if node.node_type.startswith(_PRODUCTS)]
    operations, weights = _count(file, {name: (1, *array.shape) for name, array in prompt.items()})
    return {
        "provider": CPU,
        "nodes": {CPU: len(ran)},
        "matmul_nodes": {CPU: len(products)},
        "matmul_ops": {CPU: operations},
        "weight_bytes": weights,
        "precisions": dict(Counter(precision(node.exec_type) for node in products)),
    }


def precision(kernel: str) -> str:
    """What a kernel computes in, by the end of its name: "jit_gemm_I8" in i8."""
    return kernel.rpartition("_")[2].lower()


def _count(file: Path, shapes: Mapping[str, Sequence[int]]) -> tuple[float, int]:
    """Operations of the matrix products for inputs of these shapes, and the bytes of the constant matrices that they read."""
    operations, weights = 0.0, 0
    for node in read_graph(file, shapes).get_ordered_ops():
        if node.get_type_name() == "MatMul":
            left = list(node.get_input_shape(0))
            inner = left[-2 if node.get_attributes().get("transpose_a") else -1]
            operations += 2.0 * prod(node.get_output_shape(0)) * inner
            weights += _constant_bytes(node.input_value(1).get_node())
    return operations, weights


def _constant_bytes(node: Node) -> int:
    """The bytes of the constant that a value comes from; 0 where it is computed."""
    while node.get_type_name() in _THROUGH:
        node = node.input_value(0).get_node()
    return node.get_byte_size() if node.get_type_name() == "Constant" else 0
