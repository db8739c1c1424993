"""Rewrites of float graphs: the same answers, fewer nodes; and what they leave alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.formats.onnx import simplify
from edgekit.formats.onnx.attention import attentions, sequence_first
from edgekit.formats.onnx.graph import Graph, copy_model
from edgekit.formats.onnx.session import Session
from edgekit.modalities.text import of_tokens

RANDOM = np.random.default_rng(7)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.fixture(scope="module")
def rewritten(exported: onnx.ModelProto, ids: list[list[int]]) -> onnx.ModelProto:
    return simplify.simplified(exported, of_tokens(ids, 0), for_cpu=True)


@pytest.mark.parametrize("batch", [1, 2, 6])
@pytest.mark.parametrize("length", [2, 3, 16, 38])
def test_the_answers_stay_the_same(
    exported: onnx.ModelProto, rewritten: onnx.ModelProto, batch: int, length: int
) -> None:
    rows = [RANDOM.integers(5, 2000, size=max(2, length - 4 * place)).tolist() for place in range(batch)]
    inputs = of_tokens(rows, 0).batch()
    wanted, given = Session(exported).run(inputs), Session(rewritten).run(inputs)
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


def test_attention_needs_one_transpose_per_layer_and_the_mask_three_nodes(
    exported: onnx.ModelProto, rewritten: onnx.ModelProto
) -> None:
    before, after = kinds(exported), kinds(rewritten)
    assert before.count("Transpose") == 4 * 2
    assert after.count("Transpose") == 1 * 2 + 1  # and one for the token ids
    assert after.count("FusedMatMul") == 2 * 2
    assert {"Range", "Expand", "GatherND", "And"} & set(before)
    assert not {"Range", "Expand", "GatherND", "And"} & set(after)
    assert sum(node.name.startswith("mask/") for node in rewritten.graph.node) == 3
    assert len(after) < 0.8 * len(before)


def rows_computed(model: onnx.ModelProto, ids: list[int]) -> dict[str, int]:
    """How many tokens every Linear of an encoder layer computes for one prompt."""
    watched = copy_model(model)
    named = {linear.matmul.output[0]: linear.path for linear in Graph(model).linears() if ".layer." in linear.path}
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in named)
    session = Session(watched)._session
    answers = session.run(list(named), of_tokens([ids], 0).batch())
    return {path: value.shape[0] for path, value in zip(named.values(), answers, strict=True)}


def test_the_last_layer_computes_the_token_that_is_read(rewritten: onnx.ModelProto) -> None:
    rows = rows_computed(rewritten, list(range(5, 14)))
    last = {path: count for path, count in rows.items() if ".layer.1." in path}
    assert {path for path, count in last.items() if count == 9} == {
        "model.bert.encoder.layer.1.attention.self.key",
        "model.bert.encoder.layer.1.attention.self.value",
    }
    assert {count for path, count in last.items() if not path.endswith(("key", "value"))} == {1}
    assert {count for path, count in rows.items() if ".layer.0." in path} == {9}


def test_where_every_token_is_read_every_token_is_computed(exported: onnx.ModelProto, ids: list[list[int]]) -> None:
    mean = copy_model(exported)
    graph = Graph(mean)
    first = next(node for node in reversed(mean.graph.node) if node.op_type == "Gather")
    axis = graph.add_constant("axis.sequence", np.array([1], np.int64))
    pooled = helper.make_node("ReduceMean", [first.input[0], axis], [first.output[0]], name="pool", keepdims=0)
    graph.replace_nodes([pooled if node == first else node for node in mean.graph.node])
    rows = rows_computed(simplify.simplified(mean, of_tokens(ids, 0), for_cpu=True), list(range(5, 14)))
    assert set(rows.values()) == {9}


def test_linears_keep_their_names(exported: onnx.ModelProto, rewritten: onnx.ModelProto) -> None:
    assert [linear.key for linear in Graph(rewritten).linears()] == [linear.key for linear in Graph(exported).linears()]


def test_portable_graphs_have_no_operators_of_onnxruntime(exported: onnx.ModelProto, ids: list[list[int]]) -> None:
    portable = simplify.simplified(exported, of_tokens(ids, 0), for_cpu=False)
    assert not any(node.domain for node in portable.graph.node)
    assert len(kinds(portable)) < len(kinds(exported))


def test_the_model_given_is_not_changed(exported: onnx.ModelProto, ids: list[list[int]]) -> None:
    before = exported.SerializeToString(deterministic=True)
    simplify.simplified(exported, of_tokens(ids, 0), for_cpu=True)
    assert exported.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("damage", ["weight", "nan", "shape", "unknown operator"])
def test_a_rewrite_that_changes_answers_is_left_out(
    damage: str,
    exported: onnx.ModelProto,
    ids: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def spoil(graph: Graph) -> None:
        linear = graph.linears()[-1]
        weight = graph.constant(linear.weight)
        if damage == "unknown operator":
            linear.matmul.op_type = "NoSuchProduct"
        elif damage == "shape":
            graph.add_constant(linear.weight, weight[:, :1])
        else:
            graph.add_constant(linear.weight, weight * np.float32(1.5 if damage == "weight" else np.nan))

    monkeypatch.setattr(simplify, "plain_mask", spoil)
    kept = simplify.simplified(exported, of_tokens(ids, 0), for_cpu=False)
    assert kept.SerializeToString(deterministic=True) == exported.SerializeToString(deterministic=True)
    assert "the graph is used as it was" in caplog.text or "graph, which is used as it was" in caplog.text


def test_another_kind_of_attention_stays(exported: onnx.ModelProto) -> None:
    odd = copy_model(exported)
    graph = Graph(odd)
    softmax = next(node for node in odd.graph.node if node.op_type == "Softmax")
    scaled = helper.make_node("Tanh", [softmax.output[0]], ["odd"], name="odd")  # something between the probabilities
    graph.rename_reads(softmax.output[0], "odd")
    odd.graph.node.append(scaled)
    graph.refresh()
    graph.sort()
    assert len(attentions(graph)) == 1
    sequence_first(graph)
    assert "FusedMatMul" not in kinds(odd)


def masked_model(window: int | None) -> onnx.ModelProto:
    """softmax(scores + mask) of one head whose mask hides padding, and what is further than a window."""
    inf = np.float32(np.finfo(np.float32).min)
    make = helper.make_node
    nodes = [
        make("Cast", ["attention_mask"], ["real"], to=TensorProto.BOOL),
        make("Unsqueeze", ["real", "axes"], ["wide"]),
        make("Shape", ["input_ids"], ["shape"], start=1),
        make("Squeeze", ["shape"], ["length"]),
        make("Range", ["zero", "length", "one"], ["places"]),
        make("Unsqueeze", ["places", "first"], ["row"]),
        make("Unsqueeze", ["places", "last"], ["column"]),
        make("Sub", ["row", "column"], ["apart"]),
        make("Abs", ["apart"], ["distance"]),
        make("LessOrEqual", ["distance", "window"], ["near"]),
        make("And", ["wide", "near"], ["seen"]),
        make("Where", ["seen", "keep", "drop"], ["mask"]),
        make("Cast", ["input_ids"], ["tokens"], to=TensorProto.FLOAT),
        make("Unsqueeze", ["tokens", "axes"], ["scores"]),
        make("Add", ["scores", "mask"], ["sum"]),
        make("Softmax", ["sum"], ["shares"], axis=-1),
        make("ReduceMean", ["shares", "middle"], ["answer"], keepdims=0),
    ]
    constants = {
        "axes": np.array([1, 2]), "first": np.array([0]), "last": np.array([1]), "middle": np.array([1, 2]),
        "zero": np.array(0), "one": np.array(1), "window": np.array(window if window is not None else 10**6),
        "keep": np.float32(0), "drop": inf,
    }  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("window", "plain"), [(None, True), (1, False), (3, False)])
def test_only_a_mask_that_hides_padding_and_nothing_else_is_rewritten(window: int | None, plain: bool) -> None:
    model = masked_model(window)
    before = copy_model(model)
    simplify.plain_mask(Graph(model))
    assert ("Range" not in kinds(model)) == plain
    inputs = of_tokens([[3, 1, 2, 5, 4, 1], [2, 2, 1]], 0).batch()
    np.testing.assert_array_equal(Session(model).run(inputs), Session(before).run(inputs))
