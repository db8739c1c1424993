"""Every family as GGUF: llama.cpp's logits and embeddings against transformers', and every checkpoint that cannot be one."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from edgekit.architectures import gguf_families
from edgekit.errors import EdgekitError
from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.convert import Converted, Quantization, convert
from edgekit.formats.gguf.file import read_gguf, read_tensor
from edgekit.formats.gguf.metadata import (
    ImatrixOrigin,
    describe_model,
    describe_origin,
    describe_quantization,
    note_context,
    size_label,
)
from edgekit.formats.gguf.tensors import layer_names, plan
from edgekit.formats.gguf.tokenizer import vocabulary
from edgekit.modalities.text import of_tokens
from edgekit.model import Model, load_model
from edgekit.runtimes import llamacpp
from tests.architectures.decoders import DECODERS, make_decoder
from tests.architectures.families import make_family, save_as_v4
from tests.conftest import child_environment

EXACT = {"kv_k": "f32", "kv_v": "f32", "threads": 1}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
# Of heads of 16 channels, 12 turn: six frequencies.
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 3.0, 6.0, 12.0, 24.0],
    "original_max_position_embeddings": 256,
}
PHI4 = {
    "rope_parameters": LONG,
    "original_max_position_embeddings": 256,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "sliding_window": None,
}
# family, changes to the configuration, tokens
SHAPES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama-3": ("llama", {}, 200),
    "llama-2": ("llama", {"rope_parameters": DEFAULT, "num_key_value_heads": 4}, 100),
    "llama-biases-tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, 100),
    "llama-wide-heads": ("llama", {"head_dim": 24, "rope_parameters": DEFAULT}, 100),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, 200),
    "llama-yarn": ("llama", {"rope_parameters": YARN}, 200),
    "llama-yarn-attention": ("llama", {"rope_parameters": YARN | {"attention_factor": 1.4}}, 200),
    "mistral": ("mistral", {"sliding_window": None}, 200),
    "mistral-within-its-window": ("mistral", {"sliding_window": 48}, 48),
    "qwen2": ("qwen2", {}, 200),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN, "max_position_embeddings": 512}, 200),
    "qwen3": ("qwen3", {}, 200),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False}, 60),
    "phi3": ("phi3", {}, 200),
    "phi4-mini-short": ("phi3", PHI4, 200),
    "phi4-mini-long": ("phi3", PHI4, 300),
    "gemma2": ("gemma2", {}, 100),
    "gemma2-cut": ("gemma2", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2}, 100),
    "gemma3_text": ("gemma3_text", {}, 100),
    "gemma3_text-capped": ("gemma3_text", {"final_logit_softcapping": 8.0}, 60),
    "gemma3": ("gemma3", {"final_logit_softcapping": 2.0}, 60),
}
# llama.cpp looks GELU up in a table of f16 (ggml/src/ggml-cpu/vec.h), which Gemma's answers show.
TOLERANCE = {"gemma2": 1e-2, "gemma3": 1e-2, "gemma3_text": 1e-2}


def write(
    folder: Path,
    out: Path,
    kind: str = "f32",
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **more: Any,
) -> Converted:
    """A checkpoint as a GGUF file with matrices of one type; more: of `Quantization`."""
    model = load_model(folder)
    types = {one.name: kind if len(one.shape) > 1 else "f32" for one in plan(model)}
    metadata = {**vocabulary(model), **describe_model(model), **describe_quantization(kind)}
    return convert(model, out, Quantization(types=types, **more), metadata, threads=threads, progress=progress)


def reference(folder: Path, ids: list[int]) -> np.ndarray:
    """transformers' float32 logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = AutoModelForImageTextToText if kind == "gemma3" else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0])


def tokens(count: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(0).integers(5, 500, count)]


def logits(file: Path, ids: list[int], decoded: int = 8) -> np.ndarray:
    """llama.cpp's logits: most tokens at once, the last ones each by itself."""
    generator = llamacpp.generator(file, EXACT | {"context": len(ids)})
    found = [generator.logits(ids[:-decoded]), *(generator.logits([one]) for one in ids[-decoded:])]
    generator.close()
    return np.concatenate(found)


def check_logits(found: np.ndarray, wanted: np.ndarray, tolerance: float = 3e-4) -> None:
    assert np.abs(found - wanted).max() / wanted.std() < tolerance
    top = np.sort(wanted, axis=-1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > max(1e-3, 2 * tolerance * wanted.std())
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(found.argmax(-1)[clear], wanted.argmax(-1)[clear])


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_what_transformers_computes(shape: str, tmp_path: Path) -> None:
    family, changes, count = SHAPES[shape]
    folder = make_decoder(family, tmp_path / "model", **changes)
    write(folder, tmp_path / "model.gguf", threads=2)
    ids = tokens(count)
    found = logits(tmp_path / "model.gguf", ids)
    check_logits(found, reference(folder, ids), TOLERANCE.get(family, 3e-4))


def test_every_decoder_is_compared() -> None:
    assert {family for family, _, _ in SHAPES.values()} == set(DECODERS)
    assert {*DECODERS, "bert", "roberta", "xlm-roberta", "modernbert"} == set(gguf_families())


def test_a_window_limits_the_context(tmp_path: Path) -> None:
    """llama.cpp's Llama and Phi-3 attend to everything: a file promises only the contexts in which that is the same."""
    for family in ("mistral", "phi3"):
        model = load_model(make_decoder(family, tmp_path / family, sliding_window=48))
        name = describe_model(model)["general.architecture"]
        assert describe_model(model)[f"{name}.context_length"] == 48
        assert "the file's context is 48 tokens, not 256" in str(note_context(model))
    assert note_context(load_model(make_decoder("llama", tmp_path / "llama"))) is None
    windowed: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 1}
    model = load_model(make_decoder("qwen2", tmp_path / "qwen2", **windowed))
    assert describe_model(model)["qwen2.context_length"] == 48


def pooled(folder: Path, ids: list[list[int]]) -> np.ndarray:
    """The mean of transformers' last hidden states of each text."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return np.stack([model(torch.tensor([row])).last_hidden_state[0].mean(0).numpy() for row in ids])


@pytest.mark.parametrize("older", [False, True], ids=["v5", "v4"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_encoders_give_the_same_embeddings(family: str, older: bool, tmp_path: Path) -> None:
    folder = make_family(family, tmp_path / "model")
    ids = [[2, *(int(one) for one in np.random.default_rng(0).integers(5, 30, length)), 3] for length in (1, 5, 40)]
    wanted = pooled(folder, ids)
    if older:
        save_as_v4(folder)
    write(folder, tmp_path / "model.gguf")
    found = llamacpp.outputs(tmp_path / "model.gguf", of_tokens(ids, 0).prompts, options=EXACT | {"pooling": "mean"})
    # Two more roundings than Gemma: llama.cpp's GELU is the one with tanh besides.
    assert np.abs(found - wanted).max() / wanted.std() < 2e-2
    cosine = (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert cosine.min() > 0.99995


@pytest.mark.parametrize("family", DECODERS)
def test_a_config_of_transformers_4_gives_the_same_file(family: str, tmp_path: Path) -> None:
    folder = make_decoder(family, tmp_path / "model")
    new = write(folder, tmp_path / "new.gguf")
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    config = whole.get("text_config", whole)
    ropes = config.pop("rope_parameters")
    far = ropes.get("full_attention", ropes)
    config["rope_theta"] = far.pop("rope_theta")
    far.pop("partial_rotary_factor", None)
    config["rope_scaling"] = None if far["rope_type"] == "default" else far
    if "sliding_attention" in ropes:
        config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
    config.pop("layer_types", None)
    whole["torch_dtype"] = whole.pop("dtype")
    path.write_text(json.dumps(whole))
    assert write(folder, tmp_path / "old.gguf") == new


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_shards_of_any_type(dtype: str, tmp_path: Path) -> None:
    """Many shards and one give the same file, and the same logits as transformers reads from them."""
    folder = make_decoder("llama", tmp_path / "one", dtype=dtype)
    sharded = make_decoder("llama", tmp_path / "many", dtype=dtype, shard="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert write(folder, tmp_path / "one.gguf") == write(sharded, tmp_path / "many.gguf")
    ids = tokens(40)
    check_logits(logits(tmp_path / "one.gguf", ids), reference(folder, ids))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "iq4_nl"])
@pytest.mark.parametrize("through", [None, "f16", "bf16"])
def test_threads_and_types(kind: str, through: str | None, tmp_path: Path) -> None:
    """The bytes are those of the rows quantized at once, whatever the threads; vectors and norms stay float32, unrounded."""
    folder = make_decoder("llama", tmp_path / "model", hidden_size=128, intermediate_size=160, dtype="bfloat16")
    seen: list[tuple[int, int]] = []
    weights = {"blk.1.ffn_down.weight": np.linspace(0.1, 2.0, 160, dtype=np.float32)}
    importance = {} if kind in {"f32", "f16", "bf16", "q8_0"} else weights
    more = {"through": through, "importance": importance}
    one = write(folder, tmp_path / "one.gguf", kind, threads=1, progress=lambda *at: seen.append(at), **more)
    assert write(folder, tmp_path / "two.gguf", kind, threads=3, **more) == one
    assert seen[-1] == (one.bytes, one.bytes)
    write(folder, tmp_path / "exact.gguf")
    made, exact = read_gguf(tmp_path / "one.gguf"), read_gguf(tmp_path / "exact.gguf")
    for name, place in made.tensors.items():
        values = read_tensor(exact, name).view(np.float32).reshape(place.shape)
        if len(place.shape) == 1:
            assert place.type == "f32"
            wanted = values.view(np.uint8)
        else:
            if through == "f16":
                values = values.astype(np.float16).astype(np.float32)
            wanted = ggml.quantize(values, kind, importance.get(name))
        np.testing.assert_array_equal(read_tensor(made, name).reshape(-1), wanted.reshape(-1), err_msg=name)


def test_large_tensors_are_converted_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_decoder("llama", tmp_path / "model", attention_bias=True)
    whole = write(folder, tmp_path / "whole.gguf", "q8_0")
    monkeypatch.setattr("edgekit.formats.gguf.convert._VALUES", 3 * 64)
    assert write(folder, tmp_path / "pieces.gguf", "q8_0", threads=2) == whole


def test_importances_follow_the_layers(tmp_path: Path) -> None:
    model = load_model(make_decoder("gemma3", tmp_path / "model"))
    inside = "language_model.layers.3.self_attn.q_proj"
    paths = [f"model.{inside}", "model.language_model.layers.0.mlp.down_proj", "lm_head", "model.vision_tower.x"]
    assert layer_names(model, paths) == {
        f"model.{inside}": "blk.3.attn_q.weight",
        "model.language_model.layers.0.mlp.down_proj": "blk.0.ffn_down.weight",
        "lm_head": "token_embd.weight",
    }


def test_a_head_that_repeats_the_embedding(tmp_path: Path) -> None:
    """It is left out where it is tied and equal; where it differs, transformers keeps both, and so does the file."""
    from safetensors.numpy import load_file, save_file

    folder = make_decoder("qwen2", tmp_path / "model")
    tied = write(folder, tmp_path / "tied.gguf")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert write(folder, tmp_path / "twice.gguf") == tied
    weights["lm_head.weight"] = weights["lm_head.weight"][::-1].copy()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write(folder, tmp_path / "both.gguf")
    assert "output.weight" in read_gguf(tmp_path / "both.gguf").tensors
    ids = tokens(30)
    check_logits(logits(tmp_path / "both.gguf", ids), reference(folder, ids))


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    folder = make_decoder("gemma2", tmp_path / "model")
    card = "---\nlicense: apache-2.0\nlanguage: [en, de]\nbase_model: someone/a-model\ntags: [chat]\n---\n# Card\n"
    (folder / "README.md").write_text(card)
    model = load_model(folder)
    found = describe_model(model, name="A model")
    assert {key: found[key] for key in sorted(found) if key.startswith("general.")} == {
        "general.architecture": "gemma2",
        "general.base_model.0.name": "a-model",
        "general.base_model.0.organization": "someone",
        "general.base_model.count": 1,
        "general.languages": ["en", "de"],
        "general.license": "apache-2.0",
        "general.name": "A model",
        "general.size_label": size_label(model.parameters),
        "general.tags": ["chat"],
        "general.type": "model",
    }
    assert describe_origin({"checkpoint": "ab"}, scheme="q4_0")["edgekit.checkpoint.sha256"] == "ab"
    said = describe_quantization("q4_k_m", imatrix=ImatrixOrigin(file="imatrix.gguf", dataset="", entries=7, chunks=1))
    assert said["general.file_type"] == 15
    assert said["quantize.imatrix.entries_count"] == 7
    assert "quantize.imatrix.dataset" not in said
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert "general.license" not in describe_model(model), "a note; the file is written all the same"
    labels = {950: "950", 15_000_000: "15M", 134_515_008: "135M", 1_100_048_384: "1.1B", 7_241_732_096: "7.2B"}
    assert {count: size_label(count) for count in labels} == labels


# What a damaged or foreign checkpoint is told.


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config.pop(key) if value is ... else config.update({key: value})
    path.write_text(json.dumps(config))


def change(folder: Path, name: str, values: Any) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    if values is ...:
        del weights[name]
    else:
        weights[name] = values(weights[name]) if callable(values) else values
    save_file(weights, folder / "model.safetensors")


def poison(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def put(weights: np.ndarray) -> np.ndarray:
        weights.reshape(-1)[7] = value
        return weights

    return put


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: change(at, Q, ...), r"no tensor layers\.1\.self_attn\.q_proj\.weight"),
        (
            lambda at: change(at, Q, lambda x: x[:32]),
            r"q_proj\.weight has the shape \[32, 64\]; config.json says \[64, 64\]",
        ),
        (
            lambda at: change(at, Q, lambda x: x.astype(np.float64)),
            "is of type F64; save the model in F32, F16 or BF16",
        ),
        (lambda at: change(at, Q, poison(np.nan)), r"q_proj\.weight has NaN or infinite weights"),
        (lambda at: change(at, "model.norm.weight", poison(-np.inf)), r"norm\.weight has NaN or infinite weights"),
        (lambda at: change(at, Q, poison(7e4)), r"weights up to 7e\+04, more than f16 holds"),
        (
            lambda at: change(at, "model.layers.0.new.weight", np.ones(3, np.float32)),
            "GGUF's llama has no place for it",
        ),
        (lambda at: change(at, "layers.1.self_attn.q_proj.weight", np.ones(3, np.float32)), "are the same tensor"),
        (
            lambda at: change(at, "lm_head.weight", ...),
            r"no tensor lm_head\.weight in it, and config\.json does not tie",
        ),
        (
            lambda at: edit(at, model_type="lama"),
            r"no GGUF of the family 'lama'; it does of bert, gemma2",
        ),
        (lambda at: edit(at, model_type="electra"), "no GGUF of the family 'electra'"),
        (
            lambda at: edit(at, rope_parameters={"rope_type": "dynamic"}),
            "rope_type: llama.cpp computes .* not 'dynamic'; export as ONNX",
        ),
        (
            lambda at: edit(at, rope_parameters={"rope_type": "linear"}),
            "rope_parameters: factor: None is not a number above zero",
        ),
        (
            lambda at: edit(at, rope_parameters={"rope_type": "llama3"}),
            "rope_parameters: factor: None is not a number above zero",
        ),
        (
            lambda at: edit(at, rope_parameters=YARN | {"beta_fast": 16}),
            "beta_fast: llama.cpp computes 32 in this family",
        ),
        (
            lambda at: edit(
                at,
                rope_parameters=LONG | {"short_factor": [1.0], "long_factor": [1.0] * 8, "partial_rotary_factor": 1.0},
            ),
            "short_factor: must be a list of 8 numbers",
        ),
        (lambda at: edit(at, hidden_act="gelu"), "hidden_act: llama.cpp computes 'silu' in this family, not 'gelu'"),
        (lambda at: edit(at, num_attention_heads=5), "num_attention_heads|num_key_value_heads"),
        (lambda at: edit(at, num_hidden_layers=2), "has no place for it"),
        (lambda at: edit(at, vocab_size="many"), "vocab_size: 'many' is not a whole number above zero"),
    ],
)
def test_a_checkpoint_that_cannot_be_one(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """Found from headers, or while the rows stream; nothing is left behind."""
    folder = make_decoder("llama", tmp_path / "model")
    damage(folder)
    out = tmp_path / "out"
    out.mkdir()
    model = Model(folder=folder)

    def run() -> None:
        types = {one.name: "q8_0" if len(one.shape) > 1 else "f32" for one in plan(model)}
        convert(model, out / "model.gguf", Quantization(types=types, through="f16"), {}, threads=2)

    with pytest.raises(EdgekitError, match=message) as told:
        run()
    assert str(folder) in str(told.value)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar: llama.cpp computes 24"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "llama3"}},
            "rope_type: llama.cpp computes .* not 'llama3'; export as ONNX",
        ),
        ("phi3", {"head_dim": 24}, "head_dim: heads of 24 channels do not make up hidden_size"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types: must name"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = make_decoder(family, tmp_path / "model")
    edit(folder, **changes)
    with pytest.raises(EdgekitError, match=message):
        plan(Model(folder=folder))


def test_shards_that_contradict_their_index(tmp_path: Path) -> None:
    folder = make_decoder("llama", tmp_path / "model", shard="100KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))

    def told(**changes: Any) -> str:
        path.write_text(json.dumps({"weight_map": index["weight_map"] | changes}))
        with pytest.raises(EdgekitError) as refused:
            plan(Model(folder=folder))
        return str(refused.value)

    assert "tensor made.up is not in" in told(**{"made.up": shards[0]})
    elsewhere = next(name for name in shards if name != index["weight_map"][Q])
    assert f"tensor {Q} is" in told(**{Q: elsewhere})
    short = {name: shard for name, shard in index["weight_map"].items() if name != Q}
    path.write_text(json.dumps({"weight_map": short}))
    with pytest.raises(EdgekitError, match="which the index does not say"):
        plan(Model(folder=folder))
    path.write_text(json.dumps(index))
    (folder / shards[1]).unlink()
    with pytest.raises(EdgekitError, match=f"names {shards[1]}, which is not in the folder"):
        plan(Model(folder=folder))


def test_types_and_importances_of_another_model(tmp_path: Path) -> None:
    model = load_model(make_decoder("llama", tmp_path / "model"))
    types = {one.name: "f32" for one in plan(model)}

    def told(types: dict[str, str], **importance: Any) -> str:
        with pytest.raises(EdgekitError) as refused:
            convert(model, tmp_path / "model.gguf", Quantization(types=types, importance=importance), {})
        return str(refused.value)

    name = "blk.0.attn_q.weight"
    assert "blk.9.attn_q.weight: no such tensor" in told(types | {"blk.9.attn_q.weight": "f32"})
    assert f"{name}: no type was chosen" in told({key: value for key, value in types.items() if key != name})
    assert "rows of 64 values do not fill blocks of 256" in told(types | {name: "q4_k"})
    assert "7 importances for 64 columns" in told(types | {name: "q4_0"}, **{name: np.ones(7, np.float32)})


KILLED = """
import sys
from pathlib import Path
from edgekit.formats.gguf import convert as module
from edgekit.model import Model
model = Model(folder=Path(sys.argv[1]))
types = {one.name: "q8_0" if len(one.shape) > 1 else "f32" for one in module.plan(model)}
print("torch" in sys.modules, flush=True)
def told(done, whole):
    print(done, flush=True)
    if len(sys.argv) > 3:
        sys.stdin.read()
module.convert(model, Path(sys.argv[2]), module.Quantization(types=types), {}, threads=2, progress=told)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_conversion_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    folder, out = make_decoder("llama", tmp_path / "model"), tmp_path / "model.gguf"
    command = [sys.executable, "-c", KILLED, str(folder), str(out)]
    with subprocess.Popen(
        [*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "False\n", "the converter imports torch"
        assert int(child.stdout.readline()) > 0
        child.send_signal(signal.SIGKILL)
    assert not out.exists()
    subprocess.run(command, check=True, env=child_environment(), capture_output=True)
    types = {one.name: "q8_0" if len(one.shape) > 1 else "f32" for one in plan(Model(folder=folder))}
    whole = convert(Model(folder=folder), tmp_path / "whole.gguf", Quantization(types=types), {})
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert whole.bytes == out.stat().st_size
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process without its parent's")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A sparse checkpoint of 0.7 GB in a process of its own peaks below 120 MB, most of which is Python with its libraries."""
    config = json.loads((make_decoder("llama", tmp_path / "small") / "config.json").read_text())
    wide, hidden, words = 4096, 11008, 32000
    config |= {"hidden_size": wide, "intermediate_size": hidden, "head_dim": 128, "tie_word_embeddings": True}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": words, "num_hidden_layers": 1}
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    block = "model.layers.0"
    shapes = {"model.embed_tokens.weight": [words, wide], "model.norm.weight": [wide]}
    shapes |= {f"{block}.self_attn.{one}_proj.weight": [wide, wide] for one in "qkvo"}
    shapes |= {f"{block}.mlp.{one}_proj.weight": [hidden, wide] for one in ("gate", "up")}
    shapes |= {f"{block}.mlp.down_proj.weight": [wide, hidden]}
    shapes |= {f"{block}.{one}_layernorm.weight": [wide] for one in ("input", "post_attention")}
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + place)
    program = f"{KILLED}\nprint(open('/proc/self/status').read())".replace("q8_0", "q4_0")
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "model.gguf")]
    done = subprocess.run(command, check=True, env=child_environment(), capture_output=True, text=True)
    peak = int(done.stdout.partition("VmHWM:")[2].split()[0]) * 1024
    assert place > 0.6e9
    assert peak < 120e6, f"{peak / 1e6:.0f} MB"
