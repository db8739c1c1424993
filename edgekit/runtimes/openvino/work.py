"""What one call of a session does, and in which precision: from OpenVINO's graph and from its own profile of a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.openvino.library import CPU, Node, Profiled, read_graph
from edgekit.runtimes.openvino.session import Session

if TYPE_CHECKING:
    from edgekit.runtimes.placement import Work
    from edgekit.runtimes.request import Arrays

# How the kinds of a product begin in the CPU's graph, as FullyConnectedCompressed (cpu_types.cpp of the intel_cpu plugin).
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
# Calls of a profile: of the first one all operators are slow.
_CALLS = 3
# What may lie between a constant matrix and the product that reads it.
_THROUGH = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize", "Unsqueeze"}


def work(file: Path, options: Mapping[str, object], prompt: Arrays) -> Work:
    """What one call on a prompt does: see `Work`.

    An operation is a multiplication or an addition; products and bytes are counted in the graph as it was read (products of bytes
    are those whose constant is), precisions (how many products ran in each: i8, f32, ...), nodes and time in what ran.
    """
    session = Session(file, options, count=True)
    for _ in range(_CALLS):
        session.run(prompt)
    ran = session.profile()
    products = [node for node in ran if node.node_type.startswith(_PRODUCTS)]
    operations, of_bytes, weights = _count(file, {name: (1, *array.shape) for name, array in prompt.items()})
    return {
        "provider": CPU,
        "nodes": {CPU: len(ran)},
        "matmul_nodes": {CPU: len(products)},
        "matmul_ops": {CPU: operations},
        "int8_ops": of_bytes,
        "weight_bytes": weights,
        "precisions": dict(Counter(precision(node.exec_type) for node in products)),
        "time_shares": _time_shares(ran),
    }


def precision(kernel: str) -> str:
    """What a kernel computes in, by the end of its name: "jit_gemm_I8" in i8."""
    return kernel.rpartition("_")[2].lower()


def _time_shares(ran: Sequence[Profiled]) -> dict[str, float]:
    """The share of a call's time by operator, the largest first; products are all called MatMul."""
    times: Counter[str] = Counter()
    for node in ran:
        times["MatMul" if node.node_type.startswith(_PRODUCTS) else node.node_type] += round(
            1e6 * node.real_time.total_seconds()
        )
    total = sum(times.values())
    return {name: round(time / total, 3) for name, time in times.most_common()} if total else {}


def _count(file: Path, shapes: Mapping[str, Sequence[int]]) -> tuple[float, float, int]:
    """Operations of the matrix products for inputs of these shapes, those of bytes, and the bytes of the constant matrices."""
    operations, of_bytes, weights = 0.0, 0.0, 0
    for node in read_graph(file, shapes).get_ordered_ops():
        if node.get_type_name() == "MatMul":
            left = list(node.get_input_shape(0))
            inner = left[-2 if node.get_attributes().get("transpose_a") else -1]
            done = 2.0 * prod(node.get_output_shape(0)) * inner
            operations += done
            if (constant := _constant(node.input_value(1).get_node())) is not None:
                weights += constant.get_byte_size()
                of_bytes += done if constant.get_element_type().size == 1 else 0.0
    return operations, of_bytes, weights


def _constant(node: Node) -> Node | None:
    """The constant that a value comes from; None where it is computed."""
    while node.get_type_name() in _THROUGH:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None
