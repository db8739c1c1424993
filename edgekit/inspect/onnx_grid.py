"""Whether an .onnx file holds the weights that its student was trained with: read by onnxruntime, compared channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from edgekit.grid import read_packed
from edgekit.model import load_model
from edgekit.runtimes.onnxruntime.operators import MICROSOFT, OPERATORS

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_OPSET = 21
# What rounds a product's input, and stands between it and what divides it.
_ROUNDING = {"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"}


def compare_onnx(file: Path, student: Path) -> Iterator[tuple[str, str, int, int]]:
    """Each quantized weight of an .onnx file: name, type, how many values it has, and how many are a student's to the last bit.

    onnxruntime dequantizes the file; edgekit's rounding has no part in it. A product of the file may be several of the student's
    (query, key and value), so each output channel, and each row of a table, is looked for among all of the student's. Where a
    file multiplies a product's input with one over what the student divided it by, its weight is divided as the student's was. Of
    a student that was trained with fixed ranges of inputs, each scale and zero point of the file is one more row, and is looked
    for among those that were trained. Raises EdgekitError for a file that is not ONNX.
    """
    from safetensors import safe_open

    from edgekit.formats.onnx.files import read

    known: set[bytes] = set()
    model = load_model(student)
    for name, info in model.tensors.items():
        if len(info.shape) == 2 and info.dtype == "F32":
            with safe_open(info.file, framework="numpy") as opened:
                known.update(channel_keys(opened.get_tensor(name)))
    graph = read(file)
    factors = _input_factors(graph)
    packed = read_packed(model.folder)
    reads = [] if packed is None else [packed.read(name) for name in sorted(packed.reads or ())]
    divisors = {(1 / read.divisor).tobytes(): read.divisor for read in reads}
    for name, kind, channels in quantized_channels(graph):
        factor = factors.get(name)
        divisor = None if factor is None else divisors.get(factor.tobytes())
        values = channels if divisor is None else channels / divisor
        same = sum(key in known for key in channel_keys(values)) * channels.shape[1]
        yield name, kind, channels.size, same
    if ranges := {(read.scale.tobytes(), read.zero) for read in reads if read.scale is not None}:
        for name, kind, scale, zero in _input_ranges(graph):
            yield name, kind, 1, int((scale.tobytes(), zero) in ranges)


def _input_factors(model: onnx.ModelProto) -> dict[str, Floats]:
    """What the input of a product is multiplied with before it is rounded, float32 [channels], by the name of its weight."""
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    found = {}
    for node in model.graph.node:
        operator = OPERATORS.get(node.op_type)
        paired = node.op_type == "MatMul" and (weight := makers.get(node.input[1])) is not None
        if paired and weight is not None and weight.op_type == "DequantizeLinear":
            name = weight.input[0]
        elif operator is not None and operator.kind == "matmul" and operator.weight is not None:
            name = node.input[operator.weight]
        else:
            continue
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in _ROUNDING:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type == "Mul" and maker.input[1] in held:
            found[name] = numpy_helper.to_array(held[maker.input[1]])
    return found


def _input_ranges(model: onnx.ModelProto) -> Iterator[tuple[str, str, np.float32, int]]:
    """The fixed ranges of inputs: name, type, scale, and zero point among the codes 0 to 255."""
    import numpy as np
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in held:
            scale, zero = (numpy_helper.to_array(held[name]) for name in node.input[1:3])
            signed = zero.dtype == np.int8
            yield node.input[1], str(zero.dtype), np.float32(scale.item()), int(zero.item()) + (128 if signed else 0)


def channel_keys(channels: Floats) -> list[bytes]:
    """The bytes of each channel, with one zero: a product gives 0 where the code stands for -0."""
    import numpy as np

    return [row.tobytes() for row in np.ascontiguousarray(channels) + np.float32(0)]


def quantized_channels(model: onnx.ModelProto) -> Iterator[tuple[str, str, Floats]]:
    """The quantized weights of a file that edgekit wrote: name, type, and float32 [channels or rows, values]."""
    for read in quantized_weights(model).values():
        yield read()


def quantized_weights(model: onnx.ModelProto) -> dict[str, Callable[[], tuple[str, str, Floats]]]:
    """How each quantized weight of a file that edgekit wrote is read (see `quantized_channels`), by its name."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    # A decoder's table that is its head too keeps its scales in the shape of one of both.
    shaped = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Reshape"}
    found: dict[str, Callable[[], tuple[str, str, Floats]]] = {}
    for node in model.graph.node:
        operator = OPERATORS.get(node.op_type)
        if node.op_type == "MatMulNBits":
            found[node.input[1]] = partial(_product, node, held, shaped)
        elif operator is not None and operator.weight is not None and operator.scale is not None:
            weight, scale = held[node.input[operator.weight]], held[node.input[operator.scale]]
            found[weight.name] = partial(_matrix, weight, scale)
        elif node.op_type == "DequantizeLinear" and node.input[0] in held and len(held[node.input[0]].dims) == 2:
            found[node.input[0]] = partial(_matrix, held[node.input[0]], held[node.input[1]])
        elif node.op_type == "GatherBlockQuantized" and len(held[node.input[0]].dims) == 2:
            found[node.input[0]] = partial(_looked_up, node, held)
        elif node.op_type == "Gather" and node.input[0] in held and node.input[0].endswith(".int8"):
            table, scale = held[node.input[0]], held[f"{node.input[0].removesuffix('.int8')}.scale"]
            found[table.name] = partial(_table, table, scale)
    return found


def _matrix(weight: onnx.TensorProto, scale: onnx.TensorProto) -> tuple[str, str, Floats]:
    """A matrix with a scale for each column; its columns are the channels."""
    from onnx import numpy_helper

    return weight.name, str(numpy_helper.to_array(weight).dtype), _dequantized(weight, scale, axis=1).T


def _table(weight: onnx.TensorProto, scale: onnx.TensorProto) -> tuple[str, str, Floats]:
    """A table with a scale for each row."""
    return weight.name, "int8", _dequantized(weight, scale, axis=0)


def _dequantized(weight: onnx.TensorProto, scale: onnx.TensorProto, *, axis: int) -> Floats:
    """onnxruntime's DequantizeLinear of a matrix with one scale a column (axis 1) or a row (0)."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    codes, flat = numpy_helper.to_array(weight), numpy_helper.to_array(scale).reshape(-1)
    zero = numpy_helper.from_array(np.full(len(flat), 128 if codes.dtype == np.uint8 else 0, codes.dtype), "zero")
    held = [weight, numpy_helper.from_array(flat, "scales"), zero]
    node = onnx.helper.make_node("DequantizeLinear", [weight.name, "scales", "zero"], ["values"], axis=axis)
    return _asked(node, held, tuple(codes.shape))


def _product(
    node: onnx.NodeProto, held: dict[str, onnx.TensorProto], shaped: dict[str, str]
) -> tuple[str, str, Floats]:
    """What a MatMulNBits multiplies by: onnxruntime's product of it with the identity, in float32."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    told = {entry.name: entry.i for entry in node.attribute}
    weight, found = held[node.input[1]], held[shaped.get(node.input[2], node.input[2])]
    scale = numpy_helper.from_array(numpy_helper.to_array(found).reshape(-1), found.name)
    one = numpy_helper.from_array(np.eye(told["K"], dtype=np.float32), "one")
    plain = {**told, "accuracy_level": 0}
    inputs = ["one", weight.name, scale.name]
    product = onnx.helper.make_node("MatMulNBits", inputs, ["values"], domain=MICROSOFT, **plain)
    values = _asked(product, [one, weight, scale], (told["K"], told["N"]))
    return weight.name, f"int{told['bits']}", values.T


def _looked_up(node: onnx.NodeProto, held: dict[str, onnx.TensorProto]) -> tuple[str, str, Floats]:
    """The rows that a GatherBlockQuantized finds: onnxruntime's answer for every row of its table."""
    import copy

    import numpy as np
    from onnx import numpy_helper

    told = {entry.name: entry.i for entry in node.attribute}
    table, scale = held[node.input[0]], held[node.input[2]]
    count, width = table.dims[0], table.dims[1] * 8 // told["bits"]
    every = numpy_helper.from_array(np.arange(count), "every")
    asked = copy.deepcopy(node)
    asked.input[1], asked.output[0] = "every", "values"
    return table.name, f"int{told['bits']}", _asked(asked, [table, scale, every], (count, width))


def _asked(node: onnx.NodeProto, held: list[onnx.TensorProto], shape: tuple[int, ...]) -> Floats:
    """What onnxruntime computes in a graph of one node."""
    import onnx

    from edgekit.formats.onnx.session import Session

    answer = onnx.helper.make_tensor_value_info("values", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph([node], "weight", [], [answer], held)
    domains = [onnx.helper.make_opsetid("", _OPSET), onnx.helper.make_opsetid(MICROSOFT, 1)]
    return Session(onnx.helper.make_model(graph, opset_imports=domains, ir_version=10), fuse=False).values(
        ["values"], {}
    )[0]
