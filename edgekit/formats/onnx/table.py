"""Embedding tables in 8 or 4 bits: nodes that look rows up and dequantize them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgekit.formats.onnx.packing import pack_weighted
from edgekit.runtimes.onnxruntime.operators import MICROSOFT

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.formats.onnx.graph import Graph
    from edgekit.formats.onnx.trained import Trained

Bits = Literal[8, 4]
# Tables smaller than this (token types, short position tables) gain nothing from fewer bits.
SMALLEST_TABLE_ROWS = 1024
FULL_LEVELS = 127
# Values of a row of 4 bits that share a scale: 4.25 bits each with it. The assistant's student (KL of its answers to those of
# its float table, verify prompts): 0.0007 with 32, 0.0011 with 128, 0.0027 with whole rows of 384.
TABLE_BLOCK = 128


def is_table(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node looks up rows of a table that is worth quantizing."""
    import onnx

    if node.op_type != "Gather":
        return False
    tensor = graph.initializers.get(node.input[0])
    if tensor is not None and tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
    return tensor is not None and axis == 0 and len(tensor.dims) == 2 and tensor.dims[0] >= SMALLEST_TABLE_ROWS


def bits_of(columns: int, wanted: Bits) -> Bits:
    """The bits of a table: 8 where two codes of 4 bits would share a byte across rows."""
    return 8 if columns % 2 else wanted


def table_int8(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 [rows, columns] and scales [rows, 1]: symmetric, each row's largest value at the top level."""
    import numpy as np

    scales = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.float32(1e-12)) / np.float32(FULL_LEVELS)
    return np.rint(table / scales).astype(np.int8), scales.astype(np.float32)


def table_int4(table: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes uint8 [rows, bytes], two in a byte and the last block filled up, and scales float32 [rows, blocks]."""
    rows = len(table)
    packed, scales = pack_weighted(table.T, None, block=TABLE_BLOCK)
    return packed.reshape(rows, -1), scales.reshape(rows, -1)


def quantize_table(
    graph: Graph, node: onnx.NodeProto, *, bits: Bits = 8, trained: Trained | None = None
) -> list[onnx.NodeProto]:
    """An embedding's table in integers; the nodes that look its rows up as floats.

    bits: 8, a scale for each row, in ONNX's own operators: one scale for the table would cost an eighth of the whole artifact's
    error on BERT MiniLM, since its rows' lengths differ. 4: a scale for TABLE_BLOCK values of a row, in onnxruntime's
    GatherBlockQuantized. trained: what its rows were trained with.
    """
    import numpy as np
    import onnx

    table = graph.weights(node.input[0])
    bits = bits_of(table.shape[1], bits)
    found = None if trained is None else trained.find(node.input[0], table, table=True)
    make = onnx.helper.make_node
    if bits == 4:
        codes, scales = found or table_int4(table)
        packed = graph.add_constant(f"{node.input[0]}.int4", codes[:, : table.shape[1] // 2].astype(np.uint8))
        factors = graph.add_constant(f"{node.input[0]}.scale", scales)
        return [
            make(
                "GatherBlockQuantized",
                [packed, node.input[1], factors],
                [node.output[0]],
                name=node.name,
                domain=MICROSOFT,
                bits=4,
                block_size=TABLE_BLOCK,
                gather_axis=0,
                quantize_axis=1,
            )
        ]
    levels, scales = found or table_int8(table)
    integers = graph.add_constant(f"{node.input[0]}.int8", levels.astype(np.int8))
    factors = graph.add_constant(f"{node.input[0]}.scale", scales)
    rows, whole, factor = (f"{node.output[0]}.{part}" for part in ("int8", "levels", "scale"))
    return [
        make("Gather", [integers, node.input[1]], [rows], name=node.name, axis=0),
        make("Gather", [factors, node.input[1]], [factor], name=f"{node.name}/Scale", axis=0),
        make("Cast", [rows], [whole], name=f"{node.name}/Cast", to=onnx.TensorProto.FLOAT),
        make("Mul", [whole, factor], [node.output[0]], name=f"{node.name}/Dequantize"),
    ]
