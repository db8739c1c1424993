"""A graph divides its inputs as its weights were trained to read them, and computes what it did."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.graph import Graph
from edgekit.formats.onnx.quantize import input_scale
from edgekit.formats.onnx.session import Session
from edgekit.formats.onnx.trained_inputs import TrainedInputs
from edgekit.grid import Read
from tests.formats.onnx.test_int8 import two_linears


def rows(graph: Graph, name: str) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(graph.weights(name).T)]


def test_a_graph_reads_as_it_was_trained() -> None:
    model = two_linears()
    graph = Graph(model)
    channels = len(graph.weights("a.weight"))
    read = Read(divisor=np.linspace(0.3, 4, channels, dtype=np.float32), scale=np.float32(0.0123), zero=57)
    rounded = graph.weights("a.weight").T * read.divisor
    first = {row: {0: values} for row, values in zip(rows(graph, "a.weight"), rounded, strict=True)}
    trained = TrainedInputs(reads=[read], rows=first)
    prepared = trained.prepare(model)
    assert prepared.floats == ("b#0",)
    assert prepared.ranges.keys() == {"a#0"}
    for kind, zero in (("uint8", 57), ("int8", -71)):
        assert input_scale(prepared.ranges["a#0"], kind) == (np.float32(0.0123), zero)
    ids = {"input_ids": np.array([[1, 5, 2], [3, 3, 0]])}
    before, after = (Session(one).values(["answer"], ids)[0] for one in (model, prepared.model))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert [node.op_type for node in prepared.model.graph.node].count("Mul") == 1


def test_channels_that_read_in_different_ways_are_refused() -> None:
    model = two_linears()
    names = rows(Graph(model), "a.weight")
    reads = [Read(divisor=np.full(len(Graph(model).weights("a.weight")), size, np.float32)) for size in (1, 2)]
    none = np.zeros(len(reads[0].divisor), np.float32)
    mixed = {row: {place % 2: none} for place, row in enumerate(names)}
    with pytest.raises(EdgekitError, match=r"a#0: its channels .* make the step qad again"):
        TrainedInputs(reads=reads, rows=mixed).prepare(model)
    # Where rows are alike, what all of them may be is taken.
    alike = {names[0]: {0: none, 1: none}} | {row: {1: none} for row in names[1:]}
    assert not TrainedInputs(reads=reads, rows=alike).prepare(model).ranges
