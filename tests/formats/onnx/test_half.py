"""16-bit floats: values that do not fit are found beforehand, and exactly their nodes stay in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest

from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.half import LARGEST, MARGIN, largest_magnitudes, to_half
from edgekit.formats.onnx.session import Session
from edgekit.modalities.text import of_tokens
from edgekit.runtimes.onnxruntime.library import convert_to_half

# Twice this is beyond 16 bits for any value that is worth one, and once is not.
FACTOR = 2.0**12


def in_16_bits(model: onnx.ModelProto, ids: list[list[int]]) -> np.ndarray:
    """The answers where each value is rounded to its type, as on a GPU: onnxruntime's CPU computes several nodes of 16 bits in
    float32 and rounds behind the last."""
    with np.errstate(all="ignore"):
        rows = [onnx.reference.ReferenceEvaluator(model).run(None, dict(of_tokens([row], 0).batch()))[0] for row in ids]
    return np.concatenate(rows)


@pytest.fixture
def overflowing(exported: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of the same answers, one of whose Linears' results is large between two nodes."""
    model = copy_model(exported)
    graph = Graph(model)
    result = graph.linears()[2].result
    up, down = (
        onnx.numpy_helper.from_array(np.array(factor, np.float32), name)
        for name, factor in (("up", FACTOR), ("down", 1 / FACTOR))
    )
    model.graph.initializer.extend([up, down])
    for reader in graph.readers[result]:
        reader.input[:] = ["small" if name == result else name for name in reader.input]
    steps = [("grow", "up"), ("overflow", "up"), ("back", "down"), ("shrink", "down")]
    for (name, factor), value, made in zip(
        steps, [result, "grown", "large", "smaller"], ["grown", "large", "smaller", "small"], strict=True
    ):
        model.graph.node.append(onnx.helper.make_node("Mul", [value, factor], [made], name=name))
    graph.refresh()
    graph.sort()
    return model


def test_a_planted_overflow_stays_in_float32(overflowing: onnx.ModelProto, ids: list[list[int]]) -> None:
    encoded = of_tokens(ids, 0)
    expected = Session(overflowing).outputs(encoded)
    assert not np.isfinite(in_16_bits(convert_to_half(copy_model(overflowing)), ids[:2])).all()
    half, kept = to_half(overflowing, encoded)
    assert kept == ["overflow", "back"]
    for given in (Session(half).outputs(encoded)[:2], in_16_bits(half, ids[:2])):
        assert np.abs(given - expected[:2]).mean() <= 1e-2 * np.abs(expected[:2]).mean()
    # The rest is in 16 bits: all weights but the two numbers.
    floats = [tensor for tensor in half.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(tensor.dims)) for tensor in floats) <= 4


def test_nothing_stays_where_all_fits(exported: onnx.ModelProto, ids: list[list[int]]) -> None:
    half, kept = to_half(exported, of_tokens(ids, 0))
    assert kept == []
    assert half.SerializeToString() == convert_to_half(copy_model(exported)).SerializeToString()


def test_what_only_calibration_saw_counts(exported: onnx.ModelProto, ids: list[list[int]]) -> None:
    """It reads all prompts, of which some are run here."""
    linear = Graph(exported).linears()[2]
    half, kept = to_half(exported, of_tokens(ids, 0), {linear.source: LARGEST})
    readers = [node.name for node in Graph(exported).readers[linear.source]]
    assert set(readers) < set(kept)
    assert np.isfinite(Session(half).outputs(of_tokens(ids, 0))).all()


def test_a_mask_is_no_large_value(exported: onnx.ModelProto, ids: list[list[int]]) -> None:
    model = copy_model(exported)
    least = onnx.numpy_helper.from_array(np.array([np.finfo(np.float32).min], np.float32), "least")
    model.graph.initializer.append(least)
    found = largest_magnitudes(model, [of_tokens(ids[:1], 0).batch()], {})
    assert max(found.values()) * MARGIN < LARGEST


def test_an_export_says_what_stayed(
    overflowing: onnx.ModelProto,
    ids: list[list[int]],
    module: Any,
    calibration: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    from edgekit.formats import onnx as format_onnx
    from edgekit.formats.onnx import float_graph
    from tests.formats.onnx.test_onnx import encoder_source

    monkeypatch.setattr(float_graph, "export_float", lambda *_, **__: copy_model(overflowing))
    made = format_onnx.write_encoder(
        encoder_source(module, ids, calibration), format_onnx.Options(scheme="fp16"), tmp_path
    )
    kept = made.choices["float32_nodes"]
    assert isinstance(kept, list)
    assert 1 <= len(kept) <= 3
    assert np.isfinite(Session(tmp_path / made.name).outputs(of_tokens(ids, 0))).all()
