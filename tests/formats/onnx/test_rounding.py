"""Codes that an encoder was trained with are written as they are, and onnxruntime reads the trained weights in them."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.formats.onnx.blocks import quantize_blocks
from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.quantize import Int8, quantize_int8
from edgekit.formats.onnx.rounding import pack, split, unpack
from edgekit.formats.onnx.trained import Channel, Trained
from edgekit.inspect.onnx_grid import channel_keys, quantized_channels
from tests.formats.onnx.test_int8 import two_linears


@pytest.mark.parametrize("kind", ["int8", "pairs", "w8/16", "w4/16"])
def test_codes_are_written_as_they_were_trained(kind: str) -> None:
    graph = Graph(two_linears())
    channels: dict[bytes, Channel] = {}
    known: set[bytes] = set()
    for linear in graph.linears():
        weight = np.ascontiguousarray(graph.weights(linear.weight).T)
        data = pack(weight, kind)
        values = unpack(data, kind, weight.shape[1])
        codes, scales = split(data, kind, weight.shape[1])
        assert np.abs(values - weight).max() <= np.abs(scales).max() * (1.0 if kind.startswith("w") else 0.5) + 1e-6
        graph.add_constant(linear.weight, np.ascontiguousarray(values.T))
        for row, code, scale in zip(values, codes, scales, strict=True):
            channels[row.tobytes()] = Channel(code, scale)
        known.update(channel_keys(values))
    held = {
        trained: [
            key in known for key in _written(graph, kind, Trained(channels=channels, rows={}) if trained else None)
        ]
        for trained in (True, False)
    }
    assert len(held[True]) == 45
    assert all(held[True])
    # Rounded anew, what lies on the grid of pairs gets other scales.
    assert kind != "pairs" or not all(held[False])


def _written(graph: Graph, kind: str, trained: Trained | None) -> list[bytes]:
    """The channels of all quantized weights of the graph's file, as onnxruntime reads them."""
    fresh = Graph(copy_model(graph.model))
    if kind.startswith("w"):
        quantize_blocks(fresh, bits=int(kind[1]), block=16, trained=trained)
    else:
        quantize_int8(fresh, Int8(ranges=None, reduce_range=kind == "pairs", trained=trained))
    return [key for _, _, values in quantized_channels(fresh.model) for key in channel_keys(values)]
