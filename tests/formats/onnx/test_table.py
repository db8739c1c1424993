"""Tables of 4 bits: what onnxruntime looks up in them is what their codes and scales say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.formats.onnx.graph import Graph, minimum_runtime
from edgekit.formats.onnx.rounding import pack, split, unpack
from edgekit.formats.onnx.session import Session
from edgekit.formats.onnx.table import TABLE_BLOCK, quantize_table
from edgekit.formats.onnx.trained import ByValues, Channel
from edgekit.inspect.onnx_file import inspect_onnx
from edgekit.inspect.onnx_grid import channel_keys, quantized_channels
from edgekit.release.quantization import Sources, record

ROWS = 1100


def lookup(table: np.ndarray, trained: ByValues | None = None) -> onnx.ModelProto:
    """Token ids -> rows of the table, which is rounded to 4 bits."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table.weight", "input_ids"], ["x"], name="table")],
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", table.shape[1]])],
        [numpy_helper.from_array(table, "table.weight")],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    made = Graph(helper.make_model(graph, opset_imports=domains, ir_version=10))
    made.replace_nodes(quantize_table(made, made.model.graph.node[0], bits=4, trained=trained))
    made.sort()
    return made.model


def found(model: onnx.ModelProto, width: int) -> np.ndarray:
    return Session(model, fuse=False).values(["x"], {"input_ids": np.arange(ROWS).reshape(2, -1)})[0].reshape(-1, width)


@pytest.mark.parametrize("width", [384, 128, 64, 130, 200])
def test_rows_are_their_codes_times_their_scales(width: int) -> None:
    """Whole blocks, a last one that is short, and rows shorter than a block."""
    table = np.random.default_rng(width).normal(size=(ROWS, width)).astype(np.float32)
    table[7] = 0
    model = lookup(table)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    codes, scales = held["table.weight.int4"], held["table.weight.scale"]
    assert (codes.shape, scales.shape) == ((ROWS, width // 2), (ROWS, -(-width // TABLE_BLOCK)))
    levels = np.stack([codes & 15, codes >> 4], axis=-1).reshape(ROWS, width).astype(np.float32) - 8
    wanted = levels * np.repeat(scales, TABLE_BLOCK, axis=1)[:, :width]
    values = found(model, width)
    np.testing.assert_array_equal(values, wanted)
    assert not values[7].any()
    # Uniform steps of 1/16 of a normal row's range (about 6 deviations) err by 6 / 16 / sqrt(12) of a deviation.
    assert 0.05 < np.linalg.norm(values - table) / np.linalg.norm(table) < 0.12
    assert minimum_runtime(model) == "1.23"


def test_rows_that_were_trained_are_written_as_they_are() -> None:
    kind = f"table/w4/{TABLE_BLOCK}"
    data = pack(np.random.default_rng(1).normal(size=(ROWS, 200)).astype(np.float32), kind)
    values = unpack(data, kind, 200)
    codes, scales = split(data, kind, 200)
    rows = {row.tobytes(): Channel(code, scale) for row, code, scale in zip(values, codes, scales, strict=True)}
    np.testing.assert_array_equal(found(lookup(values, ByValues(channels={}, rows=rows)), 200), values)


def test_odd_rows_stay_in_eight_bits() -> None:
    """Two codes of 4 bits would share a byte across rows."""
    table = np.random.default_rng(2).normal(size=(ROWS, 33)).astype(np.float32)
    model = lookup(table)
    assert "GatherBlockQuantized" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(found(model, 33), table, atol=np.abs(table).max() / 127)


def test_what_reads_files_says_what_such_a_table_is(tmp_path: Path) -> None:
    table = np.random.default_rng(3).normal(size=(ROWS, 256)).astype(np.float32)
    model = lookup(table)
    onnx.save(model, tmp_path / "model.onnx")
    way = {"operator": "GatherBlockQuantized", "weights": f"4-bit, blocks of {TABLE_BLOCK}", "activations": "none"}
    assert inspect_onnx(tmp_path / "model.onnx")["products"] == [{"count": 1, **way}]
    ((name, kind, values),) = quantized_channels(model)
    assert (name, kind) == ("table.weight.int4", "int4")
    assert channel_keys(values) == channel_keys(found(model, 256))
    artifact = SimpleNamespace(sha256="0" * 64, format="onnx", scheme="int8-dynamic")
    bundle = SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(model="model.onnx", artifact=artifact))
    rows = {row["name"]: row for row in record(bundle, Sources())["tensors"]}
    assert (rows["table.weight.int4"]["type"], rows["table.weight.int4"]["block"]) == ("int4", TABLE_BLOCK)
