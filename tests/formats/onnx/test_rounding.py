"""Codes that an encoder was trained with are written as they are, and onnxruntime reads the trained weights in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.formats.gptq import feedback
from edgekit.formats.onnx.blocks import quantize_blocks
from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.options import Options
from edgekit.formats.onnx.quantize import Int8, quantize_int8
from edgekit.formats.onnx.rounding import make_grid, make_layouts, pack, pack_fitted, split, unpack
from edgekit.formats.onnx.trained import ByValues, Channel
from edgekit.inspect.onnx_grid import channel_keys, quantized_channels
from edgekit.model import load_model
from edgekit.tasks import TASKS
from tests.conftest import LABELS, make_checkpoint
from tests.formats.gguf.mixed.test_gptq import gram, loss, matrix
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
            key in known for key in _written(graph, kind, ByValues(channels=channels, rows={}) if trained else None)
        ]
        for trained in (True, False)
    }
    assert len(held[True]) == 45
    assert all(held[True])
    # Rounded anew, what lies on the grid of pairs gets other scales.
    assert kind != "pairs" or not all(held[False])


def _written(graph: Graph, kind: str, trained: ByValues | None) -> list[bytes]:
    """The channels of all quantized weights of the graph's file, as onnxruntime reads them."""
    fresh = Graph(copy_model(graph.model))
    if kind.startswith("w"):
        quantize_blocks(fresh, bits=int(kind[1]), block=16, trained=trained)
    else:
        quantize_int8(fresh, Int8(ranges=None, reduce_range=kind == "pairs", trained=trained))
    return [key for _, _, values in quantized_channels(fresh.model) for key in channel_keys(values)]


@pytest.mark.parametrize(("kind", "columns"), [("w4/16", 96), ("w4/32", 100), ("w4/128", 384)])
def test_errors_are_made_up_for(kind: str, columns: int) -> None:
    """Also where the last block is not filled; codes are those next to what was wanted, which a training goes on from."""
    values, told = matrix(24, columns), gram(columns, 16)
    wanted = np.empty_like(values)
    packed = pack_fitted(values, kind, feedback(told), np.ascontiguousarray(told.diagonal()), wanted)
    plain = unpack(pack(values, kind), kind, columns)
    assert loss(told, unpack(packed, kind, columns), values) < 0.4 * loss(told, plain, values)
    layout = make_layouts([kind])[kind]
    coded = layout.split(packed, columns)
    blocks = np.pad(wanted, ((0, 0), (0, -columns % coded.codes.shape[2]))).reshape(coded.codes.shape)
    nearest = np.clip(np.rint(blocks / coded.scales[..., None]), layout.low, layout.high)
    assert np.mean(nearest == coded.codes) > 0.9999
    np.testing.assert_array_equal(layout.join(coded), packed)


def test_every_linear_of_an_encoder_begins_so(tmp_path: Path) -> None:
    """In 4 bits: 8 lose too little."""
    folder = make_checkpoint(tmp_path / "model", labels=LABELS)
    module = TASKS["text-classification"].load(folder)
    for scheme in ("w4", "w8"):
        grid = make_grid("onnx", load_model(folder), Options(scheme=scheme))
        assert (grid.fit is None) == (scheme == "w8")
        if grid.fit is not None:
            found = dict(grid.fit(module, [[2, 5, 7, 3], [2, 9, 3]]))
            assert found.keys() == {name for name, kind in grid.kinds.items() if not kind.startswith("table")}
            assert len(found) == 14
            assert all(one.packed.shape == grid.pack(one.wanted, grid.kinds[name]).shape for name, one in found.items())
