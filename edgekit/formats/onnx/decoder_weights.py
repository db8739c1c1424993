"""A decoder's weights in 8 or 4 bits: its Linears as an encoder's are, and a table that embedding and head share kept once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.formats.onnx.blocks import ACCURACY_LEVEL
from edgekit.formats.onnx.graph import Graph, Linear, import_microsoft
from edgekit.formats.onnx.packing import pack_blocks, pack_weighted
from edgekit.formats.onnx.quantize import Int8, quantize_int8, weight_int8
from edgekit.formats.onnx.table import is_table, quantize_table
from edgekit.runtimes.onnxruntime.operators import MICROSOFT

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.formats.onnx.packing import Packed
    from edgekit.formats.onnx.trained import Trained

# The head decides between tokens whose logits are close: 4 bits there cost more than anywhere else for their bytes, and
# llama.cpp's 4-bit mixes keep 6 bits for it too (llama_tensor_get_type, "output.weight").
HEAD_BITS = 8


@dataclass(frozen=True, kw_only=True)
class _Tied:
    """A table that an embedding looks rows up in and a head multiplies by."""

    table: str
    lookup: onnx.NodeProto
    transpose: onnx.NodeProto
    product: onnx.NodeProto


def quantize_decoder_int8(
    graph: Graph, *, reduce_range: bool, trained: Trained | None = None
) -> tuple[list[str], dict[str, str]]:
    """Linears in int8 with ranges taken at run time, in place: the keys of those, and the session entries that they need.

    trained: what their weights were trained with, which is written as it is.
    """
    settings = Int8(ranges=None, reduce_range=reduce_range, trained=trained)
    shared = _share_int8(graph, settings)
    return quantize_int8(graph, settings) + shared, settings.config_entries


def quantize_decoder_blocks(
    graph: Graph,
    head: str,
    importance: Mapping[str, NDArray[np.float32]],
    *,
    bits: int,
    block: int,
    trained: Trained | None = None,
) -> list[str]:
    """Linears in blocks of `bits` bits with a scale each, the head in 8, in place; the keys of the Linears quantized.

    importance: each Linear's mean square input, float32 [inputs], by calibration key; where it has none, all count alike.
    trained: what the weights were trained with, which is written as it is.
    """
    shared = _share_blocks(graph, block, trained)
    linears = {linear.matmul.output[0]: linear for linear in graph.linears()}
    adds = {linear.add.output[0] for linear in linears.values() if linear.add is not None}
    fresh: list[onnx.NodeProto] = []
    for node in graph.model.graph.node:
        linear = linears.get(node.output[0])
        if linear is not None:
            wide = bits == HEAD_BITS or linear.path == head
            packed = _as_trained(trained, f"{linear.path}.weight", graph.weights(linear.weight).T) or _rounded(
                graph, linear, importance, wide=wide, block=block
            )
            fresh.append(_product(graph, linear, packed, HEAD_BITS if wide else bits, block))
        elif is_table(graph, node):
            fresh += quantize_table(graph, node, trained=trained)
        elif node.output[0] not in adds:
            fresh.append(node)
    graph.replace_nodes(fresh)
    graph.sort()
    import_microsoft(graph.model)
    return [linear.key for linear in linears.values()] + shared


def _as_trained(trained: Trained | None, name: str, rows: NDArray[np.float32]) -> Packed | None:
    """A weight [outputs, inputs] with the codes that it was trained with, as `pack_blocks` gives them; None without any."""
    import numpy as np

    found = None if trained is None else trained.find(name, rows)
    if found is None:
        return None
    codes, scales = found
    return codes.reshape(*scales.shape, -1).astype(np.uint8), scales.reshape(-1)


def _rounded(
    graph: Graph, linear: Linear, importance: Mapping[str, NDArray[np.float32]], *, wide: bool, block: int
) -> Packed:
    weight = graph.weights(linear.weight)
    if wide:
        return pack_blocks(weight, bits=HEAD_BITS, block=block)
    return pack_weighted(weight, importance.get(linear.key), block=block)


def _product(graph: Graph, linear: Linear, packed: Packed, bits: int, block: int) -> onnx.NodeProto:
    import onnx

    inputs, outputs = graph.initializers[linear.weight].dims
    operands = [
        linear.source,
        graph.add_constant(f"{linear.weight}.int{bits}", packed[0]),
        graph.add_constant(f"{linear.weight}.scale", packed[1]),
        *(("", "", linear.bias) if linear.bias else ()),
    ]
    return onnx.helper.make_node(
        "MatMulNBits",
        operands,
        [linear.result],
        name=linear.matmul.name,
        domain=MICROSOFT,
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block,
        accuracy_level=ACCURACY_LEVEL,
    )


def _tied(graph: Graph) -> _Tied | None:
    for transpose in graph.model.graph.node:
        if transpose.op_type != "Transpose" or transpose.input[0] not in graph.initializers:
            continue
        table = str(transpose.input[0])
        lookups = [node for node in graph.readers[table] if node.op_type == "Gather"]
        product = graph.only_reader(transpose.output[0])
        if len(lookups) == 1 and product is not None and product.op_type == "MatMul":
            return _Tied(table=table, lookup=lookups[0], transpose=transpose, product=product)
    return None


def _share_int8(graph: Graph, settings: Int8) -> list[str]:
    """The shared table as int8 with a scale for each token, as the head multiplies by it: [width, tokens]."""
    import numpy as np
    import onnx

    tied = _tied(graph)
    if tied is None:
        return []
    weight = graph.weights(tied.table)
    found = None if settings.trained is None else settings.trained.find(tied.table, weight)
    if found is None:
        integers, scales = weight_int8(weight.T, reduce_range=settings.reduce_range)
    else:
        integers, scales = np.ascontiguousarray(found[0].T, np.int8), found[1][:, 0]
    packed = graph.add_constant(f"{tied.table}.int8", integers)
    scale = graph.add_constant(f"{tied.table}.scale", scales)
    node, name, answer = onnx.helper.make_node, tied.lookup.name, tied.lookup.output[0]
    axes = graph.add_constant(f"{tied.table}.axes", np.array([-1]))
    columns, rows, levels, factor, factors = (
        f"{answer}.{part}" for part in ("columns", "int8", "levels", "scale", "scales")
    )
    lookup = [
        node("Gather", [packed, tied.lookup.input[1]], [columns], name=name, axis=1),
        node("Transpose", [columns], [rows], name=f"{name}/Transpose", perm=[1, 2, 0]),
        node("Cast", [rows], [levels], name=f"{name}/Cast", to=onnx.TensorProto.FLOAT),
        node("Gather", [scale, tied.lookup.input[1]], [factor], name=f"{name}/Scale", axis=0),
        node("Unsqueeze", [factor, axes], [factors], name=f"{name}/Unsqueeze"),
        node("Mul", [levels, factors], [answer], name=f"{name}/Dequantize"),
    ]
    product = tied.product
    head = [
        node(
            "DynamicQuantizeMatMul",
            [product.input[0], packed, scale],
            [product.output[0]],
            name=product.name,
            domain=MICROSOFT,
        ),
    ]
    _swap(graph, tied, lookup, head)
    return [f"{product.name.split('/')[0]}#0"]


def _share_blocks(graph: Graph, block: int, trained: Trained | None) -> list[str]:
    """The shared table in blocks of HEAD_BITS bits: a matrix to MatMulNBits, rows to GatherBlockQuantized."""
    import numpy as np
    import onnx

    tied = _tied(graph)
    if tied is None:
        return []
    weight = graph.weights(tied.table)
    tokens, width = weight.shape
    found = _as_trained(trained, tied.table, weight)
    packed_values, scale_values = found or pack_blocks(weight.T, bits=HEAD_BITS, block=block)
    count = packed_values.shape[1]
    packed = graph.add_constant(f"{tied.table}.int{HEAD_BITS}", packed_values)
    scale = graph.add_constant(f"{tied.table}.scale", scale_values.reshape(tokens, count, 1))
    node, name, answer = onnx.helper.make_node, tied.lookup.name, tied.lookup.output[0]
    flat = graph.add_constant(f"{tied.table}.flat", np.array([-1]))
    joined = graph.add_constant(f"{tied.table}.joined", np.array([1, -1, count * block]))
    blocks, rows, scales = f"{answer}.blocks", f"{answer}.rows", f"{tied.table}.scale.flat"
    lookup = [
        node(
            "GatherBlockQuantized",
            [packed, tied.lookup.input[1], scale],
            [blocks],
            name=name,
            domain=MICROSOFT,
            bits=HEAD_BITS,
            block_size=block,
            gather_axis=0,
            quantize_axis=2,
        ),
        node("Reshape", [blocks, joined], [answer if count * block == width else rows], name=f"{name}/Join"),
    ]
    if count * block != width:  # the last block of a row is padded
        cut = [graph.add_constant(f"{tied.table}.{part}", np.array([at])) for part, at in (("from", 0), ("to", width))]
        axes = graph.add_constant(f"{tied.table}.axes", np.array([2]))
        lookup.append(node("Slice", [rows, *cut, axes], [answer], name=f"{name}/Cut"))
    product = tied.product
    head = [
        node("Reshape", [scale, flat], [scales], name=f"{name}/Flatten"),
        node(
            "MatMulNBits",
            [product.input[0], packed, scales],
            [product.output[0]],
            name=product.name,
            domain=MICROSOFT,
            K=width,
            N=tokens,
            bits=HEAD_BITS,
            block_size=block,
            accuracy_level=ACCURACY_LEVEL,
        ),
    ]
    _swap(graph, tied, lookup, head)
    return [f"{product.name.split('/')[0]}#0"]


def _swap(graph: Graph, tied: _Tied, lookup: list[onnx.NodeProto], head: list[onnx.NodeProto]) -> None:
    fresh: list[onnx.NodeProto] = []
    for node in graph.model.graph.node:
        if node.output[0] == tied.lookup.output[0]:
            fresh += lookup
        elif node.output[0] == tied.product.output[0]:
            fresh += head
        elif node.output[0] != tied.transpose.output[0]:
            fresh.append(node)
    graph.replace_nodes(fresh)
    import_microsoft(graph.model)
