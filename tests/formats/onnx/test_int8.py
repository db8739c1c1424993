"""Smoothing, the ladder and 8-bit arithmetic on graphs small enough to check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.formats.onnx.candidates import Recipe8, Source, Trial, better, choose, trial
from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.outliers import add_rungs, rungs
from edgekit.formats.onnx.packing import pack_blocks
from edgekit.formats.onnx.quantize import Int8, input_scale, quantize_int8, rounding_noise, weight_int8
from edgekit.formats.onnx.session import Session
from edgekit.formats.onnx.smooth import Range, smooth
from edgekit.modalities.text import of_tokens

VOCABULARY, CHANNELS, HIDDEN = 50, 12, 40


def two_linears(activation: str = "Gelu", outlier: float = 1.0) -> onnx.ModelProto:
    """Embedding -> Linear -> activation -> Linear -> sum over tokens; the hidden channel 3 is `outlier` times as large."""
    random = np.random.default_rng(1)
    make = helper.make_node
    nodes = [
        make("Gather", ["table", "input_ids"], ["x"], name="table"),
        make("MatMul", ["x", "a.weight"], ["a.product"], name="a"),
        make("Add", ["a.product", "a.bias"], ["a.out"], name="a/Add"),
        make(activation, ["a.out"], ["h"], name="act"),
        make("MatMul", ["h", "b.weight"], ["b.product"], name="b"),
        make("Add", ["b.product", "b.bias"], ["b.out"], name="b/Add"),
        make("ReduceSum", ["b.out", "axis"], ["answer"], keepdims=0),
    ]
    into = random.normal(size=(CHANNELS, HIDDEN)) * 0.5
    into[:, 3] *= outlier
    constants: dict[str, Any] = {
        "table": random.normal(size=(VOCABULARY, CHANNELS)),
        "a.weight": into,
        "a.bias": random.normal(size=HIDDEN) * 0.1,
        "b.weight": random.normal(size=(HIDDEN, 5)),
        "b.bias": random.normal(size=5),
    }
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()]
    tensors.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


IDS = [list(range(place, place + 5)) for place in range(VOCABULARY - 5)]


def ranges(model: onnx.ModelProto) -> dict[str, Range]:
    """Each Linear's input range over all tokens."""
    open_model = copy_model(model)
    names = [linear.source for linear in Graph(model).linears()]
    found = {}
    for linear, name in zip(Graph(model).linears(), names, strict=True):
        del open_model.graph.output[:]
        open_model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        seen = np.concatenate([Session(open_model).run(of_tokens([row], 0).batch())[0] for row in IDS])
        found[linear.key] = Range(minimum=seen.min(0), maximum=seen.max(0), mean_square=(seen**2).mean(0))
    return found


def answers(model: onnx.ModelProto) -> np.ndarray:
    return Session(model, entries={"session.disable_quant_qdq": "1"}).outputs(of_tokens(IDS, 0))


def error(model: onnx.ModelProto, reference: np.ndarray) -> float:
    return float(np.linalg.norm(answers(model) - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_smoothing_is_exact_in_float_and_moves_the_ranges(alpha: float) -> None:
    model = two_linears(outlier=6.0)
    seen, reference = ranges(model), answers(model)
    after = smooth(Graph(model), seen, alpha)
    np.testing.assert_allclose(answers(model), reference, rtol=1e-4, atol=1e-4)
    for key, again in ranges(model).items():
        np.testing.assert_allclose(again.maximum, after[key].maximum, rtol=1e-4, atol=1e-5)
    spread = [np.abs(one["b#0"].maximum).max() / np.median(np.abs(one["b#0"].maximum)) for one in (seen, after)]
    assert spread[1] < spread[0], "the outlier has moved into the weight"


def test_smoothing_is_folded_into_the_value_projection(exported: onnx.ModelProto, calibration: Any) -> None:
    model = copy_model(exported)
    graph = Graph(model)
    seen = {
        linear.key: Range(
            **{name: getattr(calibration.stats[linear.key], name) for name in ("minimum", "maximum", "mean_square")}
        )
        for linear in graph.linears()
    }
    smooth(graph, seen, 0.5)
    smoothed = {node.name.removesuffix("/smoothing") for node in model.graph.node if node.name.endswith("/smoothing")}
    assert smoothed
    assert not any(name.endswith("attention.output.dense") for name in smoothed)
    ids = [[5, 6, 7, 8], [9, 10]]
    np.testing.assert_allclose(
        Session(model).outputs(of_tokens(ids, 0)), Session(exported).outputs(of_tokens(ids, 0)), rtol=1e-3, atol=1e-4
    )


def test_rungs_cut_the_largest_channels_and_stay_few() -> None:
    maximum = np.full(256, 2.0, np.float32)
    maximum[[7, 9]] = 5.9, 3.5
    top, channels, steps = rungs(maximum)
    assert top == pytest.approx(2.95)  # 5.9 in two parts; a lower one would need a second rung for channel 9 as well
    assert channels.tolist() == [7, 9]
    assert steps.tolist() == [1, 1]
    assert rungs(np.ones(256, np.float32))[1].size == 0
    assert rungs(np.zeros(4, np.float32))[1].size == 0


@pytest.mark.parametrize(("activation", "exact"), [("Relu", 1e-5), ("Gelu", 2e-2)])
def test_clipped_rungs_add_up_to_the_activation(activation: str, exact: float) -> None:
    values = np.linspace(-4, 12, 2001, dtype=np.float32)

    def function(u: np.ndarray) -> np.ndarray:
        from scipy.special import erf

        return np.maximum(u, 0) if activation == "Relu" else u * 0.5 * (1 + erf(u / np.sqrt(2)))

    top = 3.0
    total = sum(np.minimum(function(values - step * top), top) for step in range(4))
    off = np.abs(total - function(values))
    assert off.max() <= (0.21 if activation == "Gelu" else exact)
    assert off[values < 0].max() <= max(exact, 1e-6)


def test_the_ladder_narrows_what_fixed_ranges_lose() -> None:
    model = two_linears(outlier=6.0)
    seen, reference = ranges(model), answers(model)
    plain, ladder = copy_model(model), copy_model(model)
    quantize_int8(Graph(plain), Int8(ranges=seen, layout="emulated"))
    graph = Graph(ladder)
    import edgekit.formats.onnx.outliers as module

    saved, module.MOST_RUNGS = module.MOST_RUNGS, 0.1
    try:
        after = add_rungs(graph, seen)
    finally:
        module.MOST_RUNGS = saved
    assert after["b#0"].maximum.max() < 0.6 * seen["b#0"].maximum.max()
    assert len(after["b#0"].maximum) > HIDDEN
    quantize_int8(graph, Int8(ranges=after, layout="emulated"))
    assert error(ladder, reference) < error(plain, reference)


@pytest.mark.parametrize("layout", ["operators", "qdq", "emulated"])
@pytest.mark.parametrize("fixed", [True, False])
def test_every_layout_computes_the_same(layout: Any, fixed: bool) -> None:
    model = two_linears()
    reference = answers(model)
    seen = ranges(model) if fixed else None
    keys = quantize_int8(Graph(model), Int8(ranges=seen, layout=layout))
    assert keys == ["a#0", "b#0"]
    assert error(model, reference) < 0.03
    emulated = two_linears()
    quantize_int8(Graph(emulated), Int8(ranges=seen, layout="emulated"))
    np.testing.assert_allclose(answers(model), answers(emulated), rtol=2e-2, atol=5e-2)


def test_linears_without_a_range_stay_float() -> None:
    model = two_linears()
    seen = ranges(model)
    assert quantize_int8(Graph(model), Int8(ranges={"a#0": seen["a#0"]})) == ["a#0"]
    assert "MatMul" in [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("rows", [7, 64])
def test_safe_weights_never_saturate_sixteen_bits(rows: int) -> None:
    weight = np.random.default_rng(rows).normal(size=(rows, 33)).astype(np.float32)
    integers, scales = weight_int8(weight, reduce_range=True)
    assert np.abs(integers * scales - weight).max() <= scales.max() / 2 + 1e-6
    padded = np.concatenate([integers, np.zeros((rows % 2, 33), np.int8)]).astype(np.int64)
    pairs = padded.reshape(-1, 2, 33)
    assert (255 * np.maximum(pairs, 0).sum(axis=1)).max() <= 32767
    assert (255 * np.minimum(pairs, 0).sum(axis=1)).min() >= -32768
    finer = weight_int8(weight, reduce_range=False)[1]
    assert (scales >= finer).all()
    assert np.mean(scales / finer) < 1.9  # 7 bits for every weight would be 127 / 64


def test_an_inputs_zero_is_exact() -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0)):
        bounds = Range(minimum=np.float32([low]), maximum=np.float32([high]), mean_square=np.float32([1]))
        for kind, lowest in (("uint8", 0), ("int8", -128)):
            scale, zero = input_scale(bounds, kind)
            assert zero.dtype == kind
            assert (lowest - int(zero)) * scale <= min(low, 0.0) + scale
            assert (lowest + 255 - int(zero)) * scale >= max(high, 0.0) - scale


def test_rounding_noise_grows_with_the_outlier() -> None:
    weight = np.ones((4, 2), np.float32)
    narrow = Range(
        minimum=-np.ones(4, np.float32), maximum=np.ones(4, np.float32), mean_square=np.ones(4, np.float32) / 3
    )
    wide = Range(minimum=narrow.minimum, maximum=np.float32([1, 1, 1, 9]), mean_square=narrow.mean_square)
    assert rounding_noise(weight, wide) == pytest.approx(25 * rounding_noise(weight, narrow))


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_unpack_to_the_weight(bits: int) -> None:
    weight = np.random.default_rng(bits).normal(size=(70, 9)).astype(np.float32)
    packed, scales = pack_blocks(weight, bits=bits, block=32)
    assert packed.shape == (9, 3, 32 * bits // 8)
    levels = packed.astype(np.int64)
    if bits == 4:
        levels = np.stack([levels & 15, levels >> 4], axis=-1).reshape(9, 3, 32)
    restored = (levels - (1 << (bits - 1))) * scales.reshape(9, 3, 1)
    np.testing.assert_allclose(
        restored.reshape(9, 96)[:, :70].T, weight, atol=np.abs(scales).max() * (0.51 if bits == 8 else 1.01)
    )


def make_source(outlier: float) -> tuple[Source, Trial]:
    model = two_linears(outlier=outlier)

    def score(reference: np.ndarray, given: np.ndarray) -> float:
        return 1.0 - float(np.mean((reference - given) ** 2))

    on = trial(model, of_tokens(IDS, 0), score=score, most=20)
    return Source(model=model, ranges=ranges(model), settings=Int8(ranges=None)), on


def test_the_choice_is_recorded_and_repeatable() -> None:
    source, on = make_source(outlier=5.0)
    first, again = (choose(source, on, "static", float_layers=1) for _ in range(2))
    assert first == again
    assert first.loss == min(first.tried.values()) or first.alpha is None or first.keep_float == ()
    assert len(first.tried) >= 8
    assert first.describe()["mode"] == "static"
    assert len(on.encoded) <= 20


def test_without_smoothing_nothing_is_swept() -> None:
    source, on = make_source(outlier=1.0)
    assert choose(source, on, "dynamic", float_layers=0, smoothing=False).alpha is None


def test_scores_decide_only_where_they_can_tell() -> None:
    source, on = make_source(outlier=1.0)
    static = Recipe8(mode="static", alpha=None, loss=1.0)
    dynamic = Recipe8(mode="dynamic", alpha=None, loss=1.01)
    assert better(source, on, static, dynamic)[0].mode == "static"
    clearly = Recipe8(mode="static", alpha=None, loss=9.0)
    chosen, scores = better(source, on, clearly, dynamic)
    assert set(scores) == {"static", "dynamic"}
    assert chosen.mode in scores
