"""Embedding files as sentence-transformers, optimum and others export them, fitted to edgekit's interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto as Kind
from onnx import helper, numpy_helper

from edgekit.embedding_files import POOLING_MODES, Embedding, Step
from edgekit.errors import EdgekitError
from edgekit.formats.onnx import describe_file
from edgekit.formats.onnx.fit import Wanted, fit
from edgekit.modalities.text import of_tokens
from edgekit.runtimes import onnxruntime
from edgekit.tasks.pooling import POOLINGS

TABLE = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
MEAN = Embedding()
IDS = [[3, 7, 9, 11], [5], [30, 31, 32, 33, 34, 35, 36]]


def make(
    path: Path,
    outputs: list[str],
    *,
    kind: int = Kind.INT64,
    shape: list[Any] | None = None,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
) -> Path:
    """Token vectors that are a table's rows, and as sentence_embedding the row of the first token, doubled."""
    shape = shape or ["b", "s"]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Gather", ["rows", "zero"], ["first"], axis=1),
        helper.make_node("Add", ["first", "first"], ["sentence_embedding"]),
    ]
    nodes += [helper.make_node("Identity", ["rows"], [name]) for name in outputs if name != "sentence_embedding"]
    sizes = {"sentence_embedding": [shape[0], 8]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info(name, Kind.FLOAT, sizes.get(name, [*shape, 8])) for name in outputs],
        [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(np.array(0), "zero")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def fitted(path: Path, embedding: Embedding = MEAN, *, longest: int = 12) -> tuple[list[str], np.ndarray]:
    """What `fit` says, and what the file answers then, one text at a time."""
    told = fit(path, Wanted(output="embedding", embedding=embedding, pad_id=39, max_length=longest), path)
    assert describe_file(path).onnx.opset == 17
    return told, onnxruntime.outputs(path, of_tokens(IDS, 39).prompts, options={"threads": 1})


def pooled(modes: tuple[str, ...]) -> np.ndarray:
    rows = [torch.tensor(TABLE[ids])[None] for ids in IDS]
    return np.stack([
        torch.cat([POOLINGS[mode](row, torch.ones(1, row.shape[1], 1)) for mode in modes], dim=-1)[0].numpy() for row in rows
    ])  # fmt: skip


DOUBLED = np.stack([2 * TABLE[ids[0]] for ids in IDS])


def test_a_file_that_fits_stays_as_it_is(tmp_path: Path) -> None:
    path = make(tmp_path / "a.onnx", ["sentence_embedding", "token_embeddings"])
    before = path.read_bytes()
    told, answers = fitted(path)
    assert (told, path.read_bytes()) == ([], before)
    np.testing.assert_array_equal(answers, DOUBLED)


def test_the_sentence_embedding_is_taken_by_its_name(tmp_path: Path) -> None:
    """As optimum exports a sentence-transformers model: token_embeddings first."""
    told, answers = fitted(make(tmp_path / "a.onnx", ["token_embeddings", "sentence_embedding"]))
    assert told == ["its output sentence_embedding answers, not token_embeddings, its first"]
    np.testing.assert_array_equal(answers, DOUBLED)


@pytest.mark.parametrize("output", ["token_embeddings", "last_hidden_state"])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_token_vectors_are_pooled(mode: str, output: str, tmp_path: Path) -> None:
    told, answers = fitted(make(tmp_path / "a.onnx", [output]), Embedding(modes=(mode,)))
    assert told == [f"its {output} are pooled ({mode}) by nodes that edgekit put behind it"]
    np.testing.assert_allclose(answers, pooled((mode,)), atol=1e-6)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_fixed_length_is_padded_and_masked(mode: str, tmp_path: Path) -> None:
    """int32 ids of 12 tokens each: padding changes no answer."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    path = make(tmp_path / "a.onnx", ["last_hidden_state"], kind=Kind.INT32, shape=[1, 12], inputs=names)
    told, answers = fitted(path, Embedding(modes=(mode,)))
    assert [line.split(":")[0] for line in told[:2]] == ["it takes 12 tokens", "it takes int32"]
    np.testing.assert_allclose(answers, pooled((mode,)), atol=1e-6)


def test_several_poolings_and_a_length_of_one(tmp_path: Path) -> None:
    said = Embedding(modes=("mean", "max"), steps=(Step(kind="Normalize", folder=tmp_path, settings={}),))
    _, answers = fitted(make(tmp_path / "a.onnx", ["token_embeddings"], inputs=("input_ids",)), said)
    wanted = pooled(("mean", "max"))
    np.testing.assert_allclose(answers, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)


def test_what_cannot_be_fitted_is_named(tmp_path: Path) -> None:
    short = make(tmp_path / "a.onnx", ["sentence_embedding"], shape=[1, 12])
    with pytest.raises(
        EdgekitError, match=r"a\.onnx: takes texts of 12 tokens, data\.max_length is 48: set data\.max_length = 12"
    ):
        fitted(short, longest=48)
    bare = make(tmp_path / "b.onnx", ["sentence_embedding"], shape=[1, 12], inputs=("input_ids",))
    with pytest.raises(EdgekitError, match=r"b\.onnx: takes 12 tokens and no attention_mask"):
        fitted(bare)
    dense = Embedding(steps=(Step(kind="Dense", folder=tmp_path, settings={}),))
    with pytest.raises(EdgekitError, match=r"c\.onnx: gives token vectors \(token_embeddings\) .* a module Dense"):
        fitted(make(tmp_path / "c.onnx", ["token_embeddings"]), dense)
