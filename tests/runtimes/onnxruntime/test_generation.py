"""A decoder in onnxruntime: fed in any pieces, it answers the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgekit.runtimes.onnxruntime import generation, generator
from edgekit.runtimes.onnxruntime.generation import Generator
from tests.architectures.decoders import make_decoder
from tests.steps import source

OPTIONS = {"threads": 1}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A one-layer llama of 64 tokens' window (mistral), its file, and transformers' logits of 200 tokens."""
    from transformers import AutoModelForCausalLM

    from edgekit.formats.onnx import Options
    from edgekit.formats.onnx.decoder import write_decoder
    from edgekit.model import Model
    from edgekit.tasks.decoders import Decoder

    folder = tmp_path_factory.mktemp("decoder")
    make_decoder("mistral", folder / "model", num_hidden_layers=1, sliding_window=64, max_position_embeddings=210)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")
    given = source(Model(folder=folder / "model"), lambda: Decoder(loaded).eval(), [list(range(5, 15))])
    write_decoder(given, Options(scheme="fp32"), folder)
    ids = np.random.default_rng(1).integers(5, 500, size=200).tolist()
    with torch.inference_mode():
        logits = loaded(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return SimpleNamespace(file=folder / "model.onnx", ids=ids, logits=logits)


def near(given: Any, expected: Any) -> bool:
    return given.shape == expected.shape and bool(np.abs(given - expected).max(initial=0) < 1e-4)


@pytest.mark.parametrize("piece", [7, 512])
@pytest.mark.parametrize("smallest", [2, 256])
def test_any_pieces(decoder: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, piece: int, smallest: int) -> None:
    """Whatever the pieces, and however often the buffers grow on the way."""
    monkeypatch.setattr(generation, "PIECE", piece)
    monkeypatch.setattr(generation, "SMALLEST_CACHE", smallest)
    loaded = generator(decoder.file, OPTIONS)
    rows, done = [], 0
    for cut in (1, 1, 3, 40, 1, 90, 1, 63):
        rows.append(loaded.logits(decoder.ids[done : done + cut]))
        done += cut
    assert near(np.concatenate(rows), decoder.logits)


@pytest.mark.parametrize("piece", [7, 512])
@pytest.mark.parametrize(
    "wanted", [slice(-1, None), slice(0, 0), slice(3, 90, 7), slice(None, None, -1), slice(5), slice(80, 500)]
)
def test_wanted_rows(decoder: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, piece: int, wanted: slice) -> None:
    monkeypatch.setattr(generation, "PIECE", piece)
    loaded = generator(decoder.file, OPTIONS)
    assert near(loaded.logits(decoder.ids[:100], wanted), decoder.logits[:100][wanted])
    assert near(loaded.logits(decoder.ids[100:120], wanted), decoder.logits[100:120][wanted])


def test_clear_forgets(decoder: SimpleNamespace) -> None:
    loaded = generator(decoder.file, OPTIONS)
    loaded.logits(decoder.ids[50:150], slice(0, 0))
    loaded.clear()
    assert near(loaded.logits(decoder.ids[:20]), decoder.logits[:20])
    assert loaded.logits([]).shape == (0, 512)
    assert near(loaded.logits(np.array(decoder.ids[20:30])), decoder.logits[20:30])


def test_answers_belong_to_the_caller(decoder: SimpleNamespace) -> None:
    """The next call does not write over an answer that was given."""
    loaded = generator(decoder.file, OPTIONS)
    first = loaded.logits(decoder.ids[:5])
    kept = first.copy()
    loaded.logits(decoder.ids[5:10])
    assert np.array_equal(first, kept)


def test_context(decoder: SimpleNamespace) -> None:
    loaded = Generator(decoder.file, OPTIONS)
    assert (loaded.vocabulary, loaded.context, loaded.provider) == (512, 210, "CPUExecutionProvider")
    loaded.logits(decoder.ids, slice(0, 0))
    with pytest.raises(ValueError, match="211 tokens do not fit the model's context of 210"):
        loaded.logits(decoder.ids[:11])
    assert loaded.logits(decoder.ids[:10]).shape == (10, 512)
    loaded.close()


def test_another_file_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [other])
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other\.onnx: not a decoder that edgekit wrote"):
        generator(tmp_path / "other.onnx", OPTIONS)


def test_other_runtimes_may_pass_their_own_cache(decoder: SimpleNamespace) -> None:
    """The graph is no more than its names say: past in, present out, and every logit where none is asked for."""
    import onnxruntime

    session = onnxruntime.InferenceSession(decoder.file)
    past = [np.zeros((1, 2, 0, 24), np.float32)] * 2
    rows, done = [], 0
    for cut in (30, 1, 9):
        done += cut
        given = {
            "input_ids": np.array([decoder.ids[done - cut : done]]),
            "attention_mask": np.ones((1, done), np.int64),
        }
        logits, *past = session.run(
            None, given | {"past_key_values.0.key": past[0], "past_key_values.0.value": past[1]}
        )
        rows.append(logits[0])
    assert past[0].shape == (1, 2, 40, 24)
    assert near(np.concatenate(rows), decoder.logits[:40])
