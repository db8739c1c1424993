"""An encoder in sequence-first order: [sequence, batch, width] throughout, so that attention needs no transposed copies.

With the sequence first, heads are a batch dimension that onnxruntime's FusedMatMul strides over (transBatchA, transBatchB):
of the four Transposes around every attention one is left. Query, key and value become one product with one Split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.formats.onnx.graph import Attribute, Graph, Linear, attribute, copy_node, float_array, import_microsoft
from edgekit.runtimes.onnxruntime.operators import OPERATORS

if TYPE_CHECKING:
    import onnx

TO_HEADS = [0, 2, 1, 3]
TO_HEADS_TRANSPOSED = [0, 2, 3, 1]
# Work on each token by itself: the same in any order of the tokens.
TOKENWISE = {
    "LayerNormalization",
    "Gelu",
    "Erf",
    "Tanh",
    "Relu",
    "Sigmoid",
    "Add",
    "Mul",
    "Sub",
    "Div",
    "MatMul",
    "Identity",
}


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The nodes of one attention block, from its three Linears to the value that its output Linear reads."""

    query: Linear
    key: Linear
    value: Linear
    heads: int
    size: int  # channels of a head
    scale: float
    first: onnx.NodeProto  # the score product
    scores: str  # what the Softmax's side reads: the scaled scores
    second: onnx.NodeProto  # the product of probabilities and values
    result: str  # [batch, sequence, width]
    inside: frozenset[str]  # outputs of the nodes that the rewrite replaces


def sequence_first(graph: Graph) -> None:
    """Rewrite an encoder whose attentions are all of the plain kind; one with any other kind stays as it is."""
    blocks = attentions(graph)
    softmaxes = sum(node.op_type == "Softmax" for node in graph.model.graph.node)
    if not blocks or len(blocks) != softmaxes:
        return
    _Turn(graph, blocks).run()
    import_microsoft(graph.model)


def attentions(graph: Graph) -> list[Attention]:
    """Every attention block of the pattern that transformers' eager attention exports to."""
    linears = {linear.result: linear for linear in graph.linears()}
    found = []
    for node in graph.model.graph.node:
        if node.op_type == "Softmax" and attribute(node, "axis", -1) in {-1, 3}:
            block = _attention(graph, linears, node)
            if block is not None:
                found.append(block)
    return found


def _attention(graph: Graph, linears: dict[str, Linear], softmax: onnx.NodeProto) -> Attention | None:
    inside: set[str] = set()
    second = graph.only_reader(softmax.output[0])
    if second is None or second.op_type != "MatMul" or second.input[0] != softmax.output[0]:
        return None
    value = _head_source(graph, linears, second.input[1], TO_HEADS, inside)
    back = graph.only_reader(second.output[0])
    if (
        value is None
        or back is None
        or back.op_type != "Transpose"
        or list(attribute(back, "perm", list[int]())) != TO_HEADS
    ):
        return None
    merged = graph.only_reader(back.output[0])
    if merged is None or merged.op_type != "Reshape":
        return None
    walked = _walk_scores(graph, softmax.input[0], inside)
    if walked is None:
        return None
    first, scale, scores = walked
    scale_q, query_heads = _unscaled(graph, first.input[0], inside)
    scale_k, key_heads = _unscaled(graph, first.input[1], inside)
    query = _head_source(graph, linears, query_heads, TO_HEADS, inside)
    key = _head_source(graph, linears, key_heads, TO_HEADS_TRANSPOSED, inside)
    if query is None or key is None:
        return None
    if not query[1] == key[1] == value[1] or not query[0].source == key[0].source == value[0].source:
        return None
    inside |= {first.output[0], second.output[0], back.output[0], merged.output[0]}
    heads, size = query[1]
    return Attention(
        query=query[0],
        key=key[0],
        value=value[0],
        heads=heads,
        size=size,
        scale=scale * scale_q * scale_k,
        first=first,
        scores=scores,
        second=second,
        result=merged.output[0],
        inside=frozenset(inside),
    )


def _walk_scores(graph: Graph, name: str, inside: set[str]) -> tuple[onnx.NodeProto, float, str] | None:
    """From a Softmax's input back over added masks and a constant factor: the score product, the factor, the scaled scores."""
    node = graph.maker.get(name)
    while node is not None and node.op_type == "Add":
        sides = [graph.maker[side] for side in node.input if _leads_to_scores(graph, side)]
        if len(sides) != 1:
            return None
        node = sides[0]
    if node is None:
        return None
    scores = node.output[0]
    scale, product = _unscaled(graph, scores, inside)
    first = graph.maker.get(product)
    if first is None or first.op_type != "MatMul" or any(side in graph.initializers for side in first.input):
        return None
    return first, scale, scores


def _leads_to_scores(graph: Graph, name: str) -> bool:
    node = graph.maker.get(name)
    if node is None:
        return False
    if node.op_type == "MatMul":
        return all(side not in graph.initializers for side in node.input)
    return node.op_type in {"Add", "Mul", "Div"} and any(_leads_to_scores(graph, side) for side in node.input)


def _unscaled(graph: Graph, name: str, inside: set[str]) -> tuple[float, str]:
    """The constant factor that a value was multiplied by, and the value before; 1 where there is none."""
    node = graph.maker.get(name)
    if node is None or node.op_type not in {"Mul", "Div"} or graph.only_reader(name) is None:
        return 1.0, name
    factor = next((graph.constant(side) for side in node.input if side in graph.initializers), None)
    if factor is None or factor.size != 1 or (node.op_type == "Div" and node.input[1] not in graph.initializers):
        return 1.0, name
    inside.add(name)
    other = next(side for side in node.input if side not in graph.initializers)
    number = float(factor.item())
    return (number if node.op_type == "Mul" else 1.0 / number), other


def _head_source(
    graph: Graph, linears: dict[str, Linear], name: str, perm: list[int], inside: set[str]
) -> tuple[Linear, tuple[int, int]] | None:
    """The Linear whose output was split into heads and transposed to give a value, and (heads, channels of a head)."""
    transpose = graph.maker.get(name)
    if transpose is None or transpose.op_type != "Transpose" or list(attribute(transpose, "perm", list[int]())) != perm:
        return None
    if graph.only_reader(name) is None:
        return None
    reshape = graph.maker.get(transpose.input[0])
    if reshape is None or reshape.op_type != "Reshape" or graph.only_reader(transpose.input[0]) is None:
        return None
    linear = linears.get(reshape.input[0])
    size = _last_extent(graph, reshape.input[1])
    if linear is None or size is None or graph.only_reader(linear.result) is None or linear.bias is None:
        return None
    width = graph.initializers[linear.weight].dims[1]
    if width % size:
        return None
    inside.update((name, transpose.input[0], linear.matmul.output[0], linear.result))
    return linear, (width // size, size)


def _last_extent(graph: Graph, shape: str) -> int | None:
    """The last number of a Reshape's target, constant or joined by a Concat."""
    known = graph.constant(shape)
    if known is None:
        concat = graph.maker.get(shape)
        known = graph.constant(concat.input[-1]) if concat is not None and concat.op_type == "Concat" else None
    return int(known.reshape(-1)[-1]) if known is not None and known.reshape(-1)[-1] > 0 else None


class _Turn:
    """One pass over the nodes in order: what can be sequence-first is, and turned back only where somebody needs it."""

    def __init__(self, graph: Graph, blocks: list[Attention]) -> None:
        self.graph = graph
        self.by_first = {block.first.output[0]: block for block in blocks}
        self.by_second = {block.second.output[0]: block for block in blocks}
        self.inside = {name for block in blocks for name in block.inside}
        self.turned: dict[str, str] = {}  # value -> its sequence-first version
        self.restored: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, str] = {}

    def run(self) -> None:
        """Rewrite the graph."""
        self.emit("Transpose", ["input_ids"], ["input_ids.turned"], "turn/input_ids", perm=[1, 0])
        for node in list(self.graph.model.graph.node):
            if node.output[0] in self.by_first:
                self.score(self.by_first[node.output[0]])
            elif node.output[0] in self.by_second:
                self.mix(self.by_second[node.output[0]])
            elif node.output[0] not in self.inside and not self.turn(node):
                self.keep(node)
        for output in self.graph.model.graph.output:
            self.restore(output.name)
        self.graph.replace_nodes(self.nodes)
        self.graph.sort()

    def emit(self, operator: str, inputs: list[str], outputs: list[str], name: str, **attributes: Attribute) -> None:
        """Append a node."""
        import onnx

        domain = OPERATORS[operator].domain if operator in OPERATORS else ""
        self.nodes.append(onnx.helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))

    def constant(self, name: str, values: list[int]) -> str:
        """An int64 initializer."""
        import numpy as np

        return self.graph.add_constant(name, np.array(values, np.int64))

    def score(self, block: Attention) -> None:
        """The scaled scores [batch, heads, sequence, sequence] of sequence-first queries and keys."""
        sides = [self.split_heads(block, linear) for linear in (block.query, block.key)]
        turned = {"alpha": block.scale, "transB": 1, "transBatchA": 1, "transBatchB": 1}
        self.emit("FusedMatMul", sides, [block.scores], block.first.name, **turned)

    def split_heads(self, block: Attention, linear: Linear) -> str:
        """A Linear of sequence-first input, its output as [sequence, batch, heads, channels of a head]."""
        source, result = self.turned_version(linear.source), f"{linear.result}.turned"
        self.emit("MatMul", [source, linear.weight], [f"{result}.product"], linear.matmul.name)
        self.emit("Add", [f"{result}.product", linear.bias or ""], [result], f"{linear.name}/Add")
        shape = self.constant(f"shape.{block.heads}x{block.size}", [0, 0, block.heads, block.size])
        self.emit("Reshape", [result, shape], [f"{result}.heads"], f"{linear.name}/Reshape")
        return f"{result}.heads"

    def mix(self, block: Attention) -> None:
        """Probabilities times values, back to [sequence, batch, width]."""
        values = self.split_heads(block, block.value)
        mixed, name = block.second.output[0], block.second.name
        self.emit("FusedMatMul", [block.second.input[0], values], [mixed], name, transBatchB=1)
        self.emit("Transpose", [mixed], [f"{mixed}.turned"], f"{name}/Transpose", perm=[2, 0, 1, 3])
        shape = self.constant(f"shape.{block.heads * block.size}", [0, 0, block.heads * block.size])
        self.turned[block.result] = f"{block.result}.turned"
        self.emit("Reshape", [f"{mixed}.turned", shape], [self.turned[block.result]], f"{name}/Reshape")

    def turn(self, node: onnx.NodeProto) -> bool:
        """Append a node's sequence-first version, if it has one."""
        if node.op_type == "Gather" and node.input[1] == "input_ids" and not attribute(node, "axis", 0):
            return self.append_turned(node, [node.input[0], "input_ids.turned"])
        if node.op_type == "Gather" and self.takes_first_token(node):
            fresh = copy_node(node)
            fresh.input[0] = self.turned[node.input[0]]
            for entry in fresh.attribute:
                if entry.name == "axis":
                    entry.i = 0
            self.nodes.append(fresh)
            return True
        if node.op_type == "Slice" and self.graph.constant(node.input[0]) is not None:
            return self.turn_table(node)
        if node.op_type not in TOKENWISE or not any(name in self.turned for name in node.input):
            return False
        inputs = []
        for name in node.input:
            known = self.graph.initializers.get(name)
            if name in self.turned:
                inputs.append(self.turned[name])
            elif known is not None and (len(known.dims) <= 1 or (node.op_type == "MatMul" and name == node.input[1])):
                inputs.append(name)
            else:
                return False
        if node.op_type == "LayerNormalization" and attribute(node, "axis", -1) not in {-1, 2}:
            return False
        return self.append_turned(node, inputs)

    def append_turned(self, node: onnx.NodeProto, inputs: list[str]) -> bool:
        """Append a copy of a node that reads and makes sequence-first values."""
        fresh = copy_node(node)
        for place, name in enumerate(inputs):
            fresh.input[place] = name
        self.turned[node.output[0]] = fresh.output[0] = f"{node.output[0]}.turned"
        for entry in fresh.attribute:
            if node.op_type == "LayerNormalization" and entry.name == "axis":
                entry.i = -1
        self.nodes.append(fresh)
        return True

    def turn_table(self, node: onnx.NodeProto) -> bool:
        """A Slice [1, sequence, width] of a table becomes one [sequence, 1, width], where all its readers are turned."""
        table = self.graph.constant(node.input[0])
        if table is None or table.ndim != 3 or table.shape[0] != 1 or self.graph.constant(node.input[3]) != [1]:
            return False
        fresh = copy_node(node)
        fresh.input[0] = self.graph.add_constant(f"{node.input[0]}.turned", float_array(table.transpose(1, 0, 2)))
        fresh.input[3] = self.constant("axis.0", [0])
        self.turned[node.output[0]] = fresh.output[0] = f"{node.output[0]}.turned"
        self.nodes.append(fresh)
        return True

    def takes_first_token(self, node: onnx.NodeProto) -> bool:
        """Whether a Gather takes one token of a sequence-first value: [batch, width] either way."""
        place = self.graph.constant(node.input[1])
        return (
            node.input[0] in self.turned and attribute(node, "axis", 0) == 1 and place is not None and place.ndim == 0
        )

    def turned_version(self, name: str) -> str:
        """A value's sequence-first version, made by a Transpose where there is none yet."""
        if name not in self.turned:
            self.turned[name] = f"{name}.turned"
            self.emit("Transpose", [name], [self.turned[name]], f"turn/{name}", perm=[1, 0, 2])
            self.restored.add(name)
        return self.turned[name]

    def keep(self, node: onnx.NodeProto) -> None:
        """Append a node as it is; what it reads is turned back where it only exists sequence-first."""
        for name in node.input:
            self.restore(name)
        self.nodes.append(node)

    def restore(self, name: str) -> None:
        """Make the batch-first version of a value that only exists sequence-first."""
        if name in self.turned and name not in self.restored:
            self.restored.add(name)
            self.emit("Transpose", [self.turned[name]], [name], f"turn/{name}", perm=[1, 0, 2])
