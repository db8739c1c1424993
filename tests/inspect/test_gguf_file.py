"""Inspect on GGUF files, ours and others': types of each layer, bytes that a token reads, and damage in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.cli.described import describe_lines
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import GgufWriter, TensorHeader, Value
from edgekit.inspect import inspect
from tests.llama_programs import run_program

LLAMA: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 4,
    "llama.context_length": 128,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 256,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
    "tokenizer.ggml.scores": np.zeros(259, np.float32),
    "tokenizer.ggml.token_type": np.array([2, 3, 3, *[6] * 256], np.int32),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
WIDE, PIECES = 256, 259


def write(path: Path, metadata: dict[str, Value], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    """A GGUF file whose tensors hold zeros, by name: type and shape."""
    headers = [TensorHeader(name=name, type=kind, shape=shape) for name, (kind, shape) in tensors.items()]
    with GgufWriter(path, metadata, headers) as writer:
        for header in headers:
            if header.bytes:
                writer.append(bytes(header.bytes))
        writer.finish()
    return path


def layer(number: int, **types: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of one layer, in q4_k where no other type is said."""
    shapes = {
        "attn_q": (WIDE, WIDE),
        "attn_k": (64, WIDE),
        "attn_v": (64, WIDE),
        "attn_output": (WIDE, WIDE),
        "ffn_gate": (WIDE, WIDE),
        "ffn_up": (WIDE, WIDE),
        "ffn_down": (WIDE, WIDE),
    }
    norms = {f"blk.{number}.{name}.weight": ("f32", (WIDE,)) for name in ("attn_norm", "ffn_norm")}
    return norms | {f"blk.{number}.{name}.weight": (types.get(name, "q4_k"), shape) for name, shape in shapes.items()}


def decoder(**outside: tuple[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Four layers of which the second and third have a finer ffn_down."""
    found = {"token_embd.weight": ("q6_k", (PIECES, WIDE)), "output_norm.weight": ("f32", (WIDE,)), **outside}
    for number in range(4):
        found |= layer(number, **({"ffn_down": "q6_k"} if number in {1, 2} else {}))
    return found


def told(path: Path) -> tuple[dict[str, Any], str]:
    found = inspect(path)
    json.dumps(found, allow_nan=False)
    text = "\n".join(describe_lines(found))
    text.encode("utf-8")
    return found, text


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return write(tmp_path / "tied.gguf", LLAMA, decoder())


def test_layers_that_are_alike_share_a_row(tied: Path) -> None:
    found, text = told(tied)
    assert found["kind"] == "gguf file"
    assert [row["layers"] for row in found["layers"]] == ["0, 3", "1-2"]
    first, second = found["layers"]
    assert (first["ffn_down"], second["ffn_down"]) == ("q4_k", "q6_k")
    assert {first[name] for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")} == {"q4_k"}
    assert first["other"] == "f32"
    # 256 values take 144 bytes in q4_k and 210 in q6_k.
    assert first["bytes"] == (5 * WIDE + 128) * 144 + 2 * WIDE * 4
    assert second["bytes"] == first["bytes"] + WIDE * (210 - 144)
    assert [row["name"] for row in found["outside_layers"]] == ["token_embd.weight", "output_norm.weight"]
    assert re.search(r"^  0, 3( +q4_k){7} +f32 ", text, re.MULTILINE)
    assert re.search(r"^  1-2( +q4_k)* +q6_k( +q4_k)* +f32 ", text, re.MULTILINE)


def test_it_counts_what_gguf_s_own_reader_counts(tied: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(tied)
    found, _ = told(tied)
    assert found["parameters"] == sum(int(tensor.n_elements) for tensor in reader.tensors)
    size = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert found["bits_per_weight"] == pytest.approx(8 * size / found["parameters"], abs=1e-3)
    assert sum(entry["bytes"] for entry in found["types"].values()) == size
    assert found["tensors"] == len(reader.tensors)
    assert set(found["types"]) == {tensor.tensor_type.name.lower() for tensor in reader.tensors}


def test_a_table_is_read_where_it_is_the_head_too(tied: Path, tmp_path: Path) -> None:
    untied = write(tmp_path / "untied.gguf", LLAMA, decoder(**{"output.weight": ("q8_0", (PIECES, WIDE))}))
    all_bytes = sum(entry["bytes"] for entry in inspect(tied)["types"].values())
    assert inspect(tied)["bytes_per_token"] == all_bytes
    assert inspect(tied)["head"] == "token_embd.weight (tied)"
    found = inspect(untied)
    head, table = PIECES * WIDE // 32 * 34, PIECES * 210
    assert found["bytes_per_token"] == all_bytes - table + head
    assert found["head"] == "output.weight"


def test_of_experts_those_that_are_used_are_read(tmp_path: Path) -> None:
    metadata = LLAMA | {"llama.expert_count": 8, "llama.expert_used_count": 2}
    experts = {"blk.0.ffn_up_exps.weight": ("q8_0", (8, WIDE, WIDE))}
    dense, sparse = (write(tmp_path / f"{name}.gguf", metadata, tensors) for name, tensors in
                     {"dense": decoder(), "sparse": decoder(**experts)}.items())  # fmt: skip
    more = inspect(sparse)["bytes_per_token"] - inspect(dense)["bytes_per_token"]
    assert more == 2 * WIDE * WIDE // 32 * 34
    assert inspect(sparse)["layers"][0]["ffn_up_exps"] == "q8_0"


def test_an_encoder_has_no_figure_per_token(tmp_path: Path) -> None:
    metadata: dict[str, Value] = {"general.architecture": "bert", "bert.attention.causal": False}
    tensors = {"token_embd.weight": ("f16", (10, 32)), "position_embd.weight": ("f32", (10, 32)), **layer(0)}
    found, text = told(write(tmp_path / "encoder.gguf", metadata, tensors))
    assert found["bytes_per_token"] is None
    assert "per token" not in text


def test_the_cache_is_as_large_as_llama_cpp_s(tied: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from edgekit.runtimes.llamacpp import Generator

    wide = LLAMA | {"llama.attention.key_length": 64, "llama.attention.value_length": 64}
    tensors = decoder() | {
        f"blk.{number}.{name}.weight": ("q4_k", shape)
        for number in range(4)
        for name, shape in {"attn_q": (512, 256), "attn_k": (128, 256), "attn_v": (128, 256)}.items()
    } | {f"blk.{number}.attn_output.weight": ("q4_k", (256, 512)) for number in range(4)}  # fmt: skip
    for path in (tied, write(tmp_path / "wide.gguf", wide, tensors)):
        generator = Generator(path, {"context": 128, "threads": 1, "kv_k": "f16", "kv_v": "f16"})
        generator.logits([1, 2, 3])
        cache = sum(generator.work()["buffers"]["kv"].values())
        generator.close()
        # llama.cpp's contexts are multiples of 256 tokens.
        assert inspect(path)["cache_bytes_per_token_f16"] * 256 / (1 << 20) == pytest.approx(cache, abs=0.01)
    by_layer = LLAMA | {"llama.attention.head_count_kv": np.array([2, 2, 1, 0], np.int32)}
    found = inspect(write(tmp_path / "by_layer.gguf", by_layer, decoder()))
    assert found["cache_bytes_per_token_f16"] == 2 * (2 + 2 + 1) * (32 + 32)


def test_metadata_is_told_and_long_arrays_are_counted(tmp_path: Path) -> None:
    metadata = LLAMA | {
        "general.name": "Tiny",
        "general.tags": ["text", "tiny"],
        "general.not_a_number": float("nan"),
        "edgekit.fingerprint": "f" * 200,
        "llama.rope.factors": np.arange(100, dtype=np.float32),
        "tokenizer.chat_template": "{{ messages }}\n" * 100,
    }
    found, text = told(write(tmp_path / "named.gguf", metadata, decoder()))
    assert (found["name"], found["architecture"], found["version"]) == ("Tiny", "llama", 3)
    assert found["metadata"]["general.tags"] == ["text", "tiny"]
    assert found["metadata"]["general.not_a_number"] == "nan"
    assert found["metadata"]["edgekit.fingerprint"].endswith("...")
    assert found["model"]["rope.factors"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, "... (100)"]
    assert found["model"]["attention.head_count"] == 8
    assert found["tokenizer"]["vocabulary"] == PIECES
    assert found["tokenizer"]["bos_token_id"] == "1 <s>"
    assert found["tokenizer"]["chat_template"].startswith("1500 characters: {{ messages }}\\n")
    assert "scores" not in found["tokenizer"]
    assert max(map(len, text.splitlines())) < 200


def test_a_file_s_texts_do_not_reach_the_terminal_as_commands(tmp_path: Path) -> None:
    rude = "\x1b[2Jname\r\n\N{RIGHT-TO-LEFT OVERRIDE}"
    metadata = LLAMA | {"general.name": rude, rude: rude, f"llama.{rude}": rude, f"tokenizer.{rude}": rude}
    tensors = decoder(**{rude: ("f32", (4,)), f"blk.0.{rude}.weight": ("f32", (4, 4))})
    found, text = told(write(tmp_path / "rude.gguf", metadata, tensors))
    assert all(line.isprintable() for line in text.splitlines())
    assert "\x1b" not in text
    assert found["name"] == "\\x1b[2Jname\\r\\n\\u202e"


@pytest.mark.parametrize(
    "changed",
    [
        {"general.architecture": 5},
        {"general.architecture": ["llama"], "general.name": np.arange(3)},
        {"llama.attention.head_count": "eight", "llama.attention.head_count_kv": ["a", "b"]},
        {"llama.attention.head_count_kv": np.array([], np.float32)},
        {"llama.block_count": True, "llama.expert_count": 0, "llama.expert_used_count": -1},
        {"tokenizer.ggml.tokens": 7, "tokenizer.ggml.bos_token_id": -1},
        {"tokenizer.ggml.bos_token_id": 1 << 40, "tokenizer.chat_template": 3},
        {"general.type": "imatrix"},
        {"general.type": ["imatrix"]},
    ],
)
def test_values_of_the_wrong_kind_do_no_harm(changed: dict[str, Value], tmp_path: Path) -> None:
    metadata = {key: value for key, value in (LLAMA | changed).items() if not (isinstance(value, list) and not value)}
    told(write(tmp_path / "odd.gguf", metadata, decoder()))


def test_a_file_without_tensors_is_told(tmp_path: Path) -> None:
    found, _ = told(write(tmp_path / "vocabulary.gguf", LLAMA, {}))
    assert (found["parameters"], found["bits_per_weight"], found["bytes_per_token"]) == (0, None, None)


def test_damage_is_one_clear_line(tied: Path, tmp_path: Path) -> None:
    data = tied.read_bytes()
    broken = tmp_path / "broken.gguf"
    for length in (0, 3, 4, 20, 100, 4000, len(data) - 33):
        broken.write_bytes(data[:length])
        with pytest.raises(EdgekitError, match=r"broken\.gguf: (damaged|not a GGUF file)") as refused:
            inspect(broken)
        assert "\n" not in str(refused.value)
    broken.write_bytes(data[:8] + b"\xff" * 16 + data[24:])
    with pytest.raises(EdgekitError, match="more than fit"):
        inspect(broken)


def test_a_folder_with_one_model_is_that_model(tied: Path, tmp_path: Path) -> None:
    assert inspect(tmp_path) == inspect(tied)
    write(tmp_path / "second.gguf", LLAMA, decoder())
    with pytest.raises(EdgekitError, match="not a kind of folder"):
        inspect(tmp_path)


def test_an_importance_matrix_is_told(tmp_path: Path) -> None:
    metadata: dict[str, Value] = {
        "general.type": "imatrix",
        "imatrix.datasets": ["prompts.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 64,
    }
    names = ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.1.attn_q.weight"]
    headers, data = [], []
    for name, counts in zip(names, ([192], [100, 0, 92], [0]), strict=True):
        headers += [
            TensorHeader(name=f"{name}.counts", type="f32", shape=(len(counts), 1)),
            TensorHeader(name=f"{name}.in_sum2", type="f32", shape=(len(counts), 32)),
        ]
        data += [np.array(counts, np.float32), np.ones((len(counts), 32), np.float32)]
    with GgufWriter(tmp_path / "imatrix.gguf", metadata, headers) as writer:
        for values in data:
            writer.append(values.tobytes())
        writer.finish()
    found, text = told(tmp_path / "imatrix.gguf")
    assert (found["kind"], found["matrices"], found["tokens"]) == ("importance matrix", 3, 192)
    assert found["uncovered"] == names[1:]
    assert found["columns"] == {"32 columns": 3}
    assert found["metadata"]["imatrix.datasets"] == ["prompts.txt"]
    assert "blk.1.attn_q.weight" in text


def test_one_that_llama_imatrix_made_is_told(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = write(tmp_path / "model.gguf", LLAMA, decoder())
    (tmp_path / "texts.txt").write_text("some text to read, " * 20, encoding="utf-8")
    files = ("-m", model, "-f", tmp_path / "texts.txt", "-o", tmp_path / "imatrix.gguf")
    run_program("llama-imatrix", *files, "-c", "64", "-t", "1", "--process-output")
    found, _ = told(tmp_path / "imatrix.gguf")
    assert found["kind"] == "importance matrix"
    assert found["tokens"] == found["metadata"]["imatrix.chunk_count"] * 64
    assert found["matrices"] >= 4 * 7
    assert found["uncovered"] == []
    assert found["without_counts"] == []


def test_no_engine_is_loaded(tied: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgekit.inspect import inspect; inspect(Path(sys.argv[1]));"
        "print([name for name in ('torch', 'llama_cpp', 'onnxruntime', 'transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, tied], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
