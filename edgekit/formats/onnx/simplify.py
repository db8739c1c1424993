"""Rewrites of a float graph that change its speed and not its answers: fewer nodes around the same matrix products.

Each rewrite is exact in real numbers and looks for one pattern; where it does not find it, the graph stays as it was.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.graph import Graph, attribute, copy_model, float_array, tensor_attribute
from edgekit.formats.onnx.session import Session
from edgekit.modalities.text import IDS, MASK

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.modalities.encoded import Encoded

log = logging.getLogger("edgekit")

# Float32 sums in another order; every rewrite measured 0 to 4e-7 on the families of the tests.
LARGEST_REORDERING = 1e-4


def simplified(model: onnx.ModelProto, encoded: Encoded, *, for_cpu: bool) -> onnx.ModelProto:
    """A copy of a float model with every rewrite that finds its pattern.

    for_cpu: also those that need onnxruntime's own CPU operators. The copy answers some of the prompts as the model does,
    alone and in a padded batch; where a rewrite changed the answers, the model is returned as it was, with a warning.
    """
    from edgekit.formats.onnx.attention import sequence_first
    from edgekit.formats.onnx.first_row import first_token_only

    fresh = copy_model(model)
    graph = Graph(fresh)
    fold_constant_rows(graph)
    slice_positions(graph)
    fold_row_into_table(graph)
    reads_text = {IDS, MASK} <= {value.name for value in fresh.graph.input}
    if reads_text:
        plain_mask(graph)
    if reads_text and for_cpu:
        sequence_first(graph)
        first_token_only(graph)
    try:
        error = _difference(Session(model), Session(fresh), encoded)
    except EdgekitError as failed:
        log.warning("export: a rewrite broke the graph, which is used as it was (slower): %s", failed.message)
        return copy_model(model)
    if not error < LARGEST_REORDERING:
        log.warning("export: a rewrite changed the answers by %.2g; the graph is used as it was (slower)", error)
        return copy_model(model)
    return fresh


def _difference(before: Session, after: Session, encoded: Encoded) -> float:
    """The worst difference of two graphs' answers over the largest answer; infinite for NaN and other shapes."""
    import numpy as np

    by_size = encoded.by_size()
    shortest, longest = by_size[0], by_size[-1]
    batches = [encoded.subset([shortest]), encoded.subset([longest]), encoded.subset([longest]).cut(2)]
    batches.append(encoded.subset([longest, shortest, *range(min(3, len(encoded)))]))
    worst = 0.0
    for batch in batches:
        inputs = batch.batch()
        wanted, given = (session.run(inputs) for session in (before, after))
        if wanted.shape != given.shape or not np.isfinite(given).all():
            return float("inf")
        worst = max(worst, float(np.abs(wanted - given).max() / max(1e-6, float(np.abs(wanted).max()))))
    return worst


def fold_constant_rows(graph: Graph) -> None:
    """A row of a table gathered by a constant that was spread over the batch (token types) is that row."""
    import numpy as np

    for node in list(graph.model.graph.node):
        if node.op_type != "Gather" or attribute(node, "axis", 0) != 0:
            continue
        table, spread = graph.constant(node.input[0]), graph.maker.get(node.input[1])
        if table is None or spread is None or spread.op_type not in {"Expand", "ConstantOfShape"}:
            continue
        place = _spread_value(graph, spread)
        if place is None:
            continue
        row = graph.add_constant(f"{node.input[0]}.row", float_array(np.asarray(table[place])))
        # Broadcasting puts the row where the Gather had spread it; only an elementwise reader broadcasts.
        if all(reader.op_type == "Add" for reader in graph.readers[node.output[0]]):
            graph.rename_reads(node.output[0], row)
            graph.refresh()
    graph.prune()


def _spread_value(graph: Graph, spread: onnx.NodeProto) -> int | None:
    from onnx import numpy_helper

    if spread.op_type == "ConstantOfShape":
        tensor = tensor_attribute(spread, "value")
        return 0 if tensor is None else int(numpy_helper.to_array(tensor).item())
    value = graph.constant(spread.input[0])
    return int(value.item()) if value is not None and value.size == 1 else None


def slice_positions(graph: Graph) -> None:
    """Rows gathered at 0, 1, ..., sequence - 1 are the table's beginning: a Slice of it."""
    import numpy as np
    import onnx

    rewritten = []
    for node in graph.model.graph.node:
        table = graph.constant(node.input[0]) if node.op_type == "Gather" and not attribute(node, "axis", 0) else None
        places = graph.maker.get(node.input[1]) if table is not None else None
        counted = graph.constant(places.input[0]) if places is not None and places.op_type == "Slice" else None
        if table is None or places is None or counted is None or not _counts_from_first(graph, places, counted):
            rewritten.append(node)
            continue
        first = int(counted.reshape(-1)[0])
        rows = graph.add_constant(f"{node.input[0]}.rows", float_array(table[first : first + counted.size][None]))
        axis = graph.add_constant("axis.1", np.array([1], np.int64))
        rewritten.append(
            onnx.helper.make_node(
                "Slice", [rows, places.input[1], places.input[2], axis], [node.output[0]], name=f"{node.name}/Slice"
            )
        )
    graph.replace_nodes(rewritten)


def _counts_from_first(graph: Graph, places: onnx.NodeProto, counted: NDArray[np.generic]) -> bool:
    """Whether a Slice takes the beginning of a constant [1, n] that counts up by one."""
    import numpy as np

    if counted.ndim != 2 or counted.shape[0] != 1 or not np.array_equal(np.diff(counted[0]), np.ones(counted.size - 1)):
        return False
    start, axes = graph.constant(places.input[1]), graph.constant(places.input[3]) if len(places.input) > 3 else None
    step = graph.constant(places.input[4]) if len(places.input) > 4 and places.input[4] else None
    return (
        start is not None
        and start.tolist() == [0]
        and axes is not None
        and axes.tolist() in ([1], [-1])
        and (step is None or step.tolist() == [1])
    )


def fold_row_into_table(graph: Graph) -> None:
    """(words + row) + positions = words + (positions + row): the row is added to the position table once, here."""
    for node in list(graph.model.graph.node):
        if node.op_type != "Add":
            continue
        inner = next((graph.maker.get(name) for name in node.input if _adds_row(graph, graph.maker.get(name))), None)
        if inner is None or graph.only_reader(inner.output[0]) is None:
            continue
        sliced = next((graph.maker[name] for name in node.input if _is_table_slice(graph, graph.maker.get(name))), None)
        if sliced is None:
            continue
        row_name = next(name for name in inner.input if name in graph.initializers)
        row, table = graph.weights(row_name), graph.weights(sliced.input[0])
        if row.ndim != 1 or row.shape[0] != table.shape[-1]:
            continue
        sliced.input[0] = graph.add_constant(f"{sliced.input[0]}.with_row", float_array(table + row))
        words = next(name for name in inner.input if name != row_name)
        for place, name in enumerate(node.input):
            if name == inner.output[0]:
                node.input[place] = words
        graph.refresh()
    graph.prune()


def _adds_row(graph: Graph, node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "Add" and sum(name in graph.initializers for name in node.input) == 1


def _is_table_slice(graph: Graph, node: onnx.NodeProto | None) -> bool:
    return (
        node is not None
        and node.op_type == "Slice"
        and node.input[0] in graph.initializers
        and graph.only_reader(node.output[0]) is not None
    )


def plain_mask(graph: Graph) -> None:
    """What is added to attention scores where it is `lowest * (1 - attention_mask)`: three nodes instead of twenty.

    Exporters write the mask as index arithmetic of [batch, 1, sequence, sequence]. Whether it is this formula is found by
    running that part of the graph on random masks of several shapes; a mask of another kind (a sliding window) is left.
    """
    import numpy as np
    import onnx

    masks = {name for node in graph.model.graph.node if node.op_type == "Softmax" for name in _added(graph, node)}
    for name in sorted(masks):
        lowest = _mask_value(graph, name)
        if lowest is None:
            continue
        zero = graph.add_constant("mask.keep", np.zeros((), np.float32))
        value = graph.add_constant("mask.drop", np.asarray(lowest, np.float32))
        axes = graph.add_constant("mask.axes", np.array([1, 2], np.int64))
        make = onnx.helper.make_node
        added = [
            make("Cast", ["attention_mask"], [f"{name}.bool"], name="mask/Cast", to=onnx.TensorProto.BOOL),
            make("Unsqueeze", [f"{name}.bool", axes], [f"{name}.wide"], name="mask/Unsqueeze"),
            make("Where", [f"{name}.wide", zero, value], [f"{name}.plain"], name="mask/Where"),
        ]
        graph.rename_reads(name, f"{name}.plain")
        graph.replace_nodes([*added, *graph.model.graph.node])


def _added(graph: Graph, softmax: onnx.NodeProto) -> list[str]:
    """What is added to scores before a Softmax."""
    add = graph.maker.get(softmax.input[0])
    found = []
    while add is not None and add.op_type == "Add":
        found += [name for name in add.input if name not in graph.initializers]
        add = next(
            (graph.maker[name] for name in add.input if name in graph.maker and graph.maker[name].op_type == "Add"),
            None,
        )
    return found


def _mask_value(graph: Graph, name: str) -> float | None:
    """The number that a mask adds where attention_mask is 0, if it adds 0 where that is 1, whatever the query."""
    import numpy as np
    import onnx

    needed = _ancestors(graph, name)
    if needed is None:
        return None
    part = type(graph.model)()
    part.CopyFrom(graph.model)
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(node for node in graph.model.graph.node if set(node.output) & needed)
    part.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = Session(part)
    random = np.random.default_rng(0)
    lowest: float | None = None
    for batch, sequence in ((1, 2), (1, 9), (3, 7), (4, 12), (2, 33)):
        mask = (random.random((batch, sequence)) < 0.7).astype(np.int64)
        mask[:, 0], mask[0, 1:] = 1, 1 - mask[0, 1:] * (batch > 1)
        mask[-1, -1] = 0
        added = session.run({"input_ids": np.ones_like(mask), "attention_mask": mask})
        if added.ndim != 4 or added.shape[0] not in {1, batch} or added.shape[3] != sequence:
            return None
        lowest = float(added.min()) if lowest is None else lowest
        expected = np.where(mask[:, None, None, :] == 1, np.float32(0), np.float32(lowest))
        if not np.array_equal(
            np.broadcast_to(added, np.broadcast_shapes(added.shape, expected.shape)),
            np.broadcast_to(expected, np.broadcast_shapes(added.shape, expected.shape)),
        ):
            return None
    return lowest if lowest is not None and lowest < -1e4 else None


def _ancestors(graph: Graph, name: str) -> set[str] | None:
    """Every value that one depends on; None where that includes a Linear or a table (then it is no mask)."""
    known: set[str] = set()
    waiting = [name]
    while waiting:
        value = waiting.pop()
        maker = graph.maker.get(value)
        if value in known or maker is None:
            continue
        if maker.op_type in {"MatMul", "LayerNormalization", "Softmax"}:
            return None
        known.add(value)
        waiting.extend(maker.input)
    return known or None
