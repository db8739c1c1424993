"""What llama.cpp cannot open, or computes otherwise, ends a child process or is told: never edgekit's own process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Running
from edgekit.errors import EdgekitError
from edgekit.formats.gguf import check_reading
from edgekit.formats.gguf.convert import Quantization, convert
from edgekit.formats.gguf.metadata import describe_model
from edgekit.formats.gguf.running import check_running
from edgekit.formats.gguf.tensors import plan
from edgekit.formats.gguf.tokenizer import vocabulary
from edgekit.model import Model, load_model
from edgekit.tasks import text_generation
from tests.architectures.decoders import make_decoder

pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")

IDS = [[0, *range(5, 40)], [0, *range(60, 90)]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    folder = make_decoder(
        "llama", tmp_path_factory.mktemp("model") / "model", num_hidden_layers=2, rope_parameters=rope
    )
    return load_model(folder)


def written(model: Model, out: Path, **changes: Any) -> Path:
    """The model in float32; `changes` are written instead of the keys of these names."""
    metadata = {**describe_model(model, name="test"), **vocabulary(model)}
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    convert(model, out, Quantization(types={one.name: "f32" for one in plan(model)}), metadata)
    return out


def run(model: Model, file: Path, ids: Sequence[Sequence[int]] = IDS) -> Running:
    return check_running(lambda: text_generation.load(model.folder), file, ids, 32.0)


def test_a_file_is_run_beside_the_float_model(model: Model, tmp_path: Path) -> None:
    file = written(model, tmp_path / "model.gguf")
    result = run(model, file)
    assert result.sequences == 2
    assert result.logits is not None
    assert result.logits < 1e-4
    assert run(model, file, [[1]]).sequences == 0, "one token foretells nothing"


def test_a_file_that_computes_otherwise_is_refused(model: Model, tmp_path: Path) -> None:
    file = written(model, tmp_path / "model.gguf", llama__rope__freq_base=500.0)
    with pytest.raises(EdgekitError, match=r"logits are \d\.\d+ of their own spread away .* 32 bits a weight explain"):
        run(model, file)


def test_a_file_that_llama_cpp_does_not_load_is_told(model: Model, tmp_path: Path) -> None:
    file = written(model, tmp_path / "model.gguf", llama__rope__dimension_count=4)
    with pytest.raises(EdgekitError, match=r"model\.gguf: llama\.cpp"):
        run(model, file)


def twice(tokens: list[str]) -> list[str]:
    return [*tokens[:-1], tokens[-2]]


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer__ggml__tokens": twice},
        {"tokenizer__ggml__tokens": lambda tokens: tokens[:-3]},
        {"tokenizer__ggml__model": "no_vocab"},
        {"tokenizer__ggml__model": "rwkv"},
        {"tokenizer__ggml__model": "llama"},
    ],
    ids=["a token twice", "fewer tokens", "no vocabulary", "rwkv", "llama"],
)
def test_a_vocabulary_that_ends_llama_cpp_is_an_error(model: Model, tmp_path: Path, changes: dict[str, Any]) -> None:
    keys = vocabulary(model)
    told = {key: value(keys[key.replace("__", ".")]) if callable(value) else value for key, value in changes.items()}
    file = written(model, tmp_path / "model.gguf", **told)
    with pytest.raises(EdgekitError, match=r"model\.gguf: "):
        check_reading(model, file, ["hello there"], None)


def test_a_token_that_holds_nothing_is_an_error(classifier: Path, tmp_path: Path) -> None:
    """C's texts end at a zero byte."""
    path = classifier / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    piece = next(piece for piece in vocab if piece.isalpha())
    content["model"]["vocab"] = {("\0" if one == piece else one): place for one, place in vocab.items()}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EdgekitError, match=r"the token \d+ \('\\x00'\)"):
        vocabulary(Model(folder=classifier, as_file=True))


def test_logits_are_numbers(model: Model, tmp_path: Path) -> None:
    """What overflows is as far away as can be."""
    file = written(
        model, tmp_path / "model.gguf", llama__attention__layer_norm_rms_epsilon=float(np.finfo(np.float32).max)
    )
    with pytest.raises(EdgekitError, match=r"of their own spread away|does not load|ended the process"):
        run(model, file)
