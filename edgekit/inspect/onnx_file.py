"""What is in an ONNX file, whoever wrote it: operators, weights, and which products are quantized how."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.formats.onnx import ort
from edgekit.inspect.tensors import by_type, largest
from edgekit.runtimes.onnxruntime.operators import OPERATORS, Operator
from edgekit.schema import refuse_pointer

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

PRODUCTS = ("MatMul", "Gemm", "Conv", "Gather")
# Between a weight and its product these change no value that matters here.
PASSING = ("Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze")
# A Gather from fewer numbers than this picks from a shape, not from an embedding.
SMALLEST_EMBEDDING = 256


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A model's nodes and weights, subgraphs included, with who makes which value."""

    nodes: list[onnx.NodeProto]
    weights: dict[str, onnx.TensorProto]
    makers: dict[str, onnx.NodeProto]

    def weight(self, name: str) -> onnx.TensorProto | None:
        """The weight that a value is, but for what `PASSING` does to it."""
        node = self.makers.get(name)
        while name not in self.weights and node is not None and node.op_type in PASSING and node.input:
            name = node.input[0]
            node = self.makers.get(name)
        return self.weights.get(name)

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value, looking through `PASSING`."""
        node = self.makers.get(name)
        while node is not None and node.op_type in PASSING and node.input:
            node = self.makers.get(node.input[0])
        return node


def inspect_onnx(path: Path) -> dict[str, object]:
    """Everything that can be told of an .onnx or .ort file. EdgekitError where it is not a whole one."""
    own = path.suffix == ort.SUFFIX
    model = ort.read_ort(path) if own else _read_onnx(path)
    graph = graph_of(model)
    weights = {name: tensor for name, tensor in graph.weights.items() if tensor.dims}
    sized = [
        (name, tensor_type(tensor), tuple(tensor.dims), tensor_bytes(tensor))
        for name, tensor in sorted(weights.items())
    ]
    products = _products(graph)
    operators = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.nodes)
    initialized = set(graph.weights)
    return {
        "kind": "ort file" if own else "onnx file",
        "path": str(path),
        "bytes": path.stat().st_size,
        "external_files": _external(path, graph),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opset": {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        "inputs": {value.name: _value_type(value) for value in model.graph.input if value.name not in initialized},
        "outputs": {value.name: _value_type(value) for value in model.graph.output},
        "nodes": len(graph.nodes),
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "quantized": _quantized(products),
        "products": [asdict(product) for product in products],
        "parameters": sum(math.prod(shape) for _, _, shape, _ in sized),
        "types": by_type((kind, shape, size) for _, kind, shape, size in sized),
        "largest": largest(sized),
        "metadata": {entry.key: entry.value[:120] for entry in model.metadata_props},
    }


def _read_onnx(path: Path) -> onnx.ModelProto:
    import importlib

    import onnx

    undecodable = importlib.import_module("google.protobuf.message").DecodeError
    try:
        refuse_pointer(path)
        model = onnx.load(str(path), load_external_data=False)
    except (undecodable, OSError) as bad:
        raise EdgekitError(f"{path}: not a whole ONNX file: {bad}; export or fetch it again") from bad
    if not model.ir_version or not model.graph.node:
        raise EdgekitError(f"{path}: no ONNX model in it; export or fetch it again")
    return model


def graph_of(model: onnx.ModelProto) -> Graph:
    """All nodes and weights of a model."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, onnx.TensorProto] = {}
    waiting = [model.graph]
    for function in model.functions:
        nodes += function.node
    while waiting:
        graph = waiting.pop()
        nodes += graph.node
        weights |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    for node in nodes:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            weights[node.output[0]] = node.attribute[0].t
    makers = {output: node for node in nodes for output in node.output if output}
    return Graph(nodes=nodes, weights=weights, makers=makers)


@dataclass(frozen=True, kw_only=True)
class Product:
    """A way in which products hold their weights, and how many do."""

    count: int
    operator: str
    weights: str
    activations: str


def _products(graph: Graph) -> list[Product]:
    """Every way in which products hold their weights, with how many there are: the answer to "quantized how?"."""
    ways: Counter[tuple[str, str, str]] = Counter()
    for node in graph.nodes:
        operator = OPERATORS.get(node.op_type)
        if operator is not None and operator.blocks:
            options = {attribute.name: attribute.i for attribute in node.attribute}
            held = f"{options.get('bits', 4)}-bit, blocks of {options.get('block_size', 0)}"
            inputs = "none" if operator.kind == "gather" else f"accuracy level {options.get('accuracy_level', 0)}"
            ways[node.op_type, held, inputs] += 1
        elif operator is not None and operator.quantized:
            ways[_integer_product(graph, node, operator)] += 1
        elif node.op_type in PRODUCTS and (way := _float_product(graph, node)):
            ways[way] += 1
    ranked = sorted(ways.items(), key=lambda item: (-item[1], item[0]))
    return [
        Product(count=count, operator=operator, weights=weights, activations=activations)
        for (operator, weights, activations), count in ranked
    ]


def _integer_product(graph: Graph, node: onnx.NodeProto, operator: Operator) -> tuple[str, str, str]:
    weight = graph.weight(node.input[operator.weight or 0])
    has_scale = operator.scale is not None and len(node.input) > operator.scale
    scale = graph.weight(node.input[operator.scale or 0]) if has_scale else None
    held = "none" if weight is None else f"{tensor_type(weight)}, {_granularity(scale, None)}"
    static = operator.static
    made = graph.maker(node.input[0])
    if node.op_type == "MatMulIntegerToFloat" and (made is None or made.op_type != "DynamicQuantizeLinear"):
        static = True
    return node.op_type, held, "static" if static else "dynamic"


def _float_product(graph: Graph, node: onnx.NodeProto) -> tuple[str, str, str] | None:
    for index in [0] if node.op_type == "Gather" else [1, 0]:
        name = node.input[index]
        weight, maker = graph.weight(name), graph.maker(name)
        if weight is None and maker is not None and maker.op_type == "DequantizeLinear":
            weight = graph.weight(maker.input[0])
            if weight is not None:
                held = f"{tensor_type(weight)}, {_granularity(graph.weight(maker.input[1]), maker)}"
                return (
                    node.op_type,
                    held,
                    "none" if node.op_type == "Gather" else _activation(graph, node.input[1 - index]),
                )
        elif weight is not None:
            if node.op_type == "Gather" and (len(weight.dims) < 2 or math.prod(weight.dims) < SMALLEST_EMBEDDING):
                return None
            return (
                node.op_type,
                tensor_type(weight),
                "none" if node.op_type == "Gather" else _activation(graph, node.input[1 - index]),
            )
    if node.op_type == "Gather":
        return None
    return node.op_type, "none", _activation(graph, node.input[0])


def _activation(graph: Graph, name: str) -> str:
    maker = graph.maker(name)
    if maker is None or maker.op_type != "DequantizeLinear":
        return "float"
    zero = graph.weight(maker.input[2]) if len(maker.input) > 2 else None
    return f"{tensor_type(zero) if zero is not None else 'uint8'}, static"


def _granularity(scale: onnx.TensorProto | None, node: onnx.NodeProto | None) -> str:
    block = next((attribute.i for attribute in node.attribute if attribute.name == "block_size"), 0) if node else 0
    if block:
        return f"blocks of {block}"
    return "per channel" if scale is not None and math.prod(scale.dims) > 1 else "per tensor"


def _quantized(products: list[Product]) -> str:
    """How many of the products that have weights have integer ones."""
    weighed = [product for product in products if product.weights != "none" and "Gather" not in product.operator]
    integer = sum(product.count for product in weighed if "float" not in product.weights)
    return f"{integer} of {sum(product.count for product in weighed)} products with weights"


def _external(path: Path, graph: Graph) -> dict[str, int | str]:
    """The bytes of each file of weights beside this one, or what is wrong with it."""
    files: dict[str, int | str] = {}
    for tensor in graph.weights.values():
        for entry in tensor.external_data:
            if entry.key == "location":
                file = path.parent / entry.value
                inside = file.resolve().is_relative_to(path.parent.resolve())
                size = file.stat().st_size if inside and file.is_file() else None
                files[entry.value] = ("missing" if inside else "outside the folder") if size is None else size
    return files


def tensor_type(tensor: onnx.TensorProto) -> str:
    """The type of a tensor's numbers: float32, int8, ..."""
    import onnx

    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return "float32" if name == "float" else name


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes a tensor's numbers take."""
    import re

    kind = tensor_type(tensor)
    named = re.search(r"\d+", kind)
    bits = {"double": 64, "bool": 8, "string": 0}.get(kind) or int(named.group() if named else 0)
    return math.ceil(int(math.prod(tensor.dims)) * bits / 8)


def _value_type(value: onnx.ValueInfoProto) -> str:
    import onnx

    tensor = value.type.tensor_type
    extents = [
        entry.dim_param or (str(entry.dim_value) if entry.HasField("dim_value") else "?") for entry in tensor.shape.dim
    ]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{', '.join(extents)}]"
