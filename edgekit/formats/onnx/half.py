"""A float graph in 16-bit floats, less the nodes whose values do not fit: they are found on the calibrate prompts beforehand.

A 16-bit float ends at 65,504 (IEEE 754, binary16): one value beyond it is infinite, and the answers behind it are no numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.session import Session
from edgekit.runtimes.onnxruntime.library import convert_to_half

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.modalities.encoded import Encoded

LARGEST = 65504.0
# Prompts that were not seen may go further than those that were.
MARGIN = 2.0
# What is beyond this masks what is not to be attended to, and stays so as the least 16-bit float.
MASK = 1e30
PROMPTS = 32
_FLOAT, _HALF = 1, 10
# Query, key, value, the tables of cosine and sine, a bias and a sink: GroupQueryAttention's, beside cache and lengths.
_FLOAT_INPUTS = (0, 1, 2, 7, 8, 10, 11)
# Values of one session's outputs at once: those of a long prompt are as large as all of a model's activations.
_AT_ONCE = 64


def to_half(
    model: onnx.ModelProto, encoded: Encoded, calibrated: Mapping[str, float] | None = None
) -> tuple[onnx.ModelProto, list[str]]:
    """A copy of a graph in 16-bit floats with float32 output, and the names of the nodes that stay in float32.

    These are the makers and the readers of every value that is beyond `LARGEST` / `MARGIN`: in the file, on some of the prompts,
    or as calibration saw it on all of them. calibrated: the largest magnitudes that it knows, by the value's name.
    """
    named = copy_model(model)
    _name(named)
    large = find_large(named, encoded, calibrated or {})
    kept = [node.name for node in named.graph.node if large.keys() & {*node.input, *node.output}]
    if not kept:
        return convert_to_half(copy_model(model)), []
    half = convert_to_half(named, kept)
    _drop_round_trips(half)
    return half, kept


def halve_caches(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a decoder whose keys and values are 16-bit floats, and its attention: the rest stays as it is."""
    import onnx

    fresh = copy_model(model)
    cached = {value.name: value for value in (*fresh.graph.input, *fresh.graph.output)}
    nodes: list[onnx.NodeProto] = []
    for node in fresh.graph.node:
        if node.op_type != "GroupQueryAttention":
            nodes.append(node)
            continue
        for place in _FLOAT_INPUTS:
            if place < len(node.input) and node.input[place]:
                half = f"{node.input[place]}.half.{node.output[0]}"
                nodes.append(onnx.helper.make_node("Cast", [node.input[place]], [half], to=_HALF, name=f"{half}/Cast"))
                node.input[place] = half
        for name in (*node.input[3:5], *node.output[1:3]):
            cached[name].type.tensor_type.elem_type = _HALF
        wide, node.output[0] = node.output[0], f"{node.output[0]}.half"
        back = onnx.helper.make_node("Cast", [node.output[0]], [wide], to=_FLOAT, name=f"{wide}/Cast")
        nodes += [node, back]
    rewritten = Graph(fresh)
    rewritten.replace_nodes(nodes)
    del fresh.graph.value_info[:]
    return fresh


def find_large(model: onnx.ModelProto, encoded: Encoded, calibrated: Mapping[str, float]) -> dict[str, float]:
    """The largest magnitude of each value that may not fit 16 bits: of the graph's own constants, and of what its nodes make of
    the prompts, each run by itself."""
    from onnx import numpy_helper

    found = dict(calibrated)
    for tensor in model.graph.initializer:
        if tensor.data_type == _FLOAT:
            _note(found, tensor.name, numpy_helper.to_array(tensor))
    names = [name for node in model.graph.node for name in node.output if name]
    some = encoded.subset(range(0, len(encoded), max(1, -(-len(encoded) // PROMPTS))))
    for begin in range(0, len(names), _AT_ONCE):
        for name, seen in _run(model, names[begin : begin + _AT_ONCE], some):
            _note(found, name, seen)
    return {name: largest for name, largest in found.items() if largest * MARGIN > LARGEST}


def _note(found: dict[str, float], name: str, values: NDArray[np.generic]) -> None:
    import numpy as np

    if values.dtype == np.float32 and values.size:
        sizes = np.abs(values)
        found[name] = max(found.get(name, 0.0), float(np.max(sizes, where=sizes < MASK, initial=0.0)))


def _run(model: onnx.ModelProto, names: list[str], encoded: Encoded) -> Iterable[tuple[str, NDArray[np.generic]]]:
    import onnx

    exposing = copy_model(model)
    given = {value.name for value in exposing.graph.output}
    exposing.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    session = Session(exposing)
    for index in range(len(encoded)):
        yield from zip(names, session.values(names, encoded.subset([index]).batch()), strict=True)


def _name(model: onnx.ModelProto) -> None:
    """Give a name to each node that has none of its own: the converter knows them by name."""
    taken = {""}
    for index, node in enumerate(model.graph.node):
        if node.name in taken:
            node.name = f"{node.op_type}.{index}"
        taken.add(node.name)


def _drop_round_trips(model: onnx.ModelProto) -> None:
    """Between two neighbours that stay in float32 the converter goes through 16 bits and back, which is what must not be."""
    graph = Graph(model)
    ends: Mapping[str, int] = {
        node.output[0]: int(next(entry.i for entry in node.attribute if entry.name == "to"))
        for node in model.graph.node
        if node.op_type == "Cast"
    }
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            back = graph.maker.get(name)
            forth = graph.maker.get(back.input[0]) if back is not None and ends.get(name) == _FLOAT else None
            if forth is not None and ends.get(forth.output[0]) == _HALF and forth.op_type == "Cast":
                node.input[place] = forth.input[0]
    graph.refresh()
    graph.sort()
    graph.prune()
