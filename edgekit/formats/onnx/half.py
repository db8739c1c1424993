"""A float graph in 16-bit floats, less the nodes whose values do not fit: they are found on the calibrate prompts beforehand.

A 16-bit float ends at 65,504 (IEEE 754, binary16): one value beyond it is infinite, and the answers behind it are no numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.session import Session
from edgekit.runtimes.onnxruntime.library import convert_to_half

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.calibration import Calibration
    from edgekit.modalities.encoded import Arrays, Encoded

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
    indices = range(0, len(encoded), max(1, -(-len(encoded) // PROMPTS)))
    return _converted(model, [encoded.subset([index]).batch() for index in indices], calibrated or {})


def decoder_to_half(
    model: onnx.ModelProto, prompts: Sequence[Sequence[int]], calibrated: Mapping[str, float]
) -> tuple[onnx.ModelProto, list[str]]:
    """The same of a decoder: its keys and values are 16-bit floats, its logits float32. Attention never stays in float32: its
    cache is read and written in place, which a cast would end."""
    import numpy as np

    past = {
        value.name: np.zeros((1, shape[1].dim_value, 0, shape[3].dim_value), np.float32)
        for value in model.graph.input
        if len(shape := value.type.tensor_type.shape.dim) == 4
    }
    some = prompts[:: max(1, -(-len(prompts) // PROMPTS))]
    batches = [
        {"input_ids": np.array([row], np.int64), "attention_mask": np.ones((1, len(row)), np.int64), **past}
        for row in some
    ]
    return _converted(model, batches, calibrated, float32=[model.graph.output[0].name])


def calibrated_inputs(model: onnx.ModelProto, calibration: Calibration) -> dict[str, float]:
    """The largest magnitude of each Linear's input on all calibrate prompts, by the value's name in the graph."""
    return {
        linear.source: float(max(abs(seen.minimum).max(), abs(seen.maximum).max()))
        for linear in Graph(model).linears()
        if (seen := calibration.stats.get(linear.key)) is not None
    }


def _converted(
    model: onnx.ModelProto,
    batches: Sequence[Arrays],
    calibrated: Mapping[str, float],
    *,
    float32: Sequence[str] | None = None,
) -> tuple[onnx.ModelProto, list[str]]:
    """float32: the inputs and outputs that stay so; None for all of them."""
    named = copy_model(model)
    _name(named)
    magnitudes = largest_magnitudes(named, batches, calibrated)
    large = {name for name, largest in magnitudes.items() if largest * MARGIN > LARGEST}
    kept = [
        node.name
        for node in named.graph.node
        if large & {*node.input, *node.output} and node.op_type != "GroupQueryAttention"
    ]
    if not kept:
        return convert_to_half(copy_model(model), float32=float32), []
    _note_types(named, magnitudes)
    half = convert_to_half(named, kept, float32=float32)
    _drop_round_trips(half)
    del half.graph.value_info[:]
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


def largest_magnitudes(
    model: onnx.ModelProto, batches: Sequence[Arrays], calibrated: Mapping[str, float]
) -> dict[str, float]:
    """The largest magnitude of each float32 value: of the graph's own constants, and of what its nodes make of the inputs, each
    batch run by itself."""
    from onnx import numpy_helper

    found = dict(calibrated)
    for tensor in model.graph.initializer:
        if tensor.data_type == _FLOAT:
            _note(found, tensor.name, numpy_helper.to_array(tensor))
    names = [name for node in model.graph.node for name in node.output if name]
    for begin in range(0, len(names), _AT_ONCE):
        for name, seen in _run(model, names[begin : begin + _AT_ONCE], batches):
            _note(found, name, seen)
    return found


def _note(found: dict[str, float], name: str, values: NDArray[np.generic]) -> None:
    import numpy as np

    if values.dtype == np.float32 and values.size:
        sizes = np.abs(values)
        found[name] = max(found.get(name, 0.0), float(np.max(sizes, where=sizes < MASK, initial=0.0)))


def _run(
    model: onnx.ModelProto, names: list[str], batches: Sequence[Arrays]
) -> Iterable[tuple[str, NDArray[np.generic]]]:
    import onnx

    exposing = copy_model(model)
    given = {value.name for value in exposing.graph.output}
    exposing.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    session = Session(exposing)
    for batch in batches:
        yield from zip(names, session.values(names, batch), strict=True)


def _note_types(model: onnx.ModelProto, float32: Iterable[str]) -> None:
    """Say in the graph which values are float32: the converter puts its casts there only, and cannot infer it behind operators of
    onnxruntime's own."""
    import onnx

    del model.graph.value_info[:]
    made = {name for node in model.graph.node for name in node.output} - {value.name for value in model.graph.output}
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, _FLOAT, None) for name in sorted(made.intersection(float32))
    )


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
