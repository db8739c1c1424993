"""What edgekit writes llama.cpp reads and the other way round, and both measure the same inputs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import GgufWriter, TensorHeader, read_gguf, read_tensor
from edgekit.formats.gguf.imatrix import Entry, Imatrix, check_imatrix, from_calibration, read_imatrix, write_imatrix
from edgekit.formats.gguf.schemes import Chosen, ModelFacts, Shape, choose_types
from edgekit.modalities.text import of_tokens

pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")

from edgekit.formats.gguf.ggml import quantize
from tests.llama_programs import run_program
from tests.runtimes.gguf_files import LLAMA, write_llama

Array = NDArray[np.float32]
TEXT = "".join("abcdefghijklmnop"[(at * at + at // 7) % 16] for at in range(256))
SPECIAL = ("<unk>", "<s>", "</s>")
FACTS = ModelFacts(architecture="llama", layers=2, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def small() -> Any:
    """A random Llama that reads bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It as a float32 GGUF file with a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("model")
    plain = read_gguf(write_llama(small, folder / "plain.gguf"))
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256, np.int32),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    headers = [TensorHeader(name=name, type=one.type, shape=one.shape) for name, one in plain.tensors.items()]
    with GgufWriter(folder / "model.gguf", plain.metadata | tokenizer, headers) as writer:
        for name in plain.tensors:
            writer.append(read_tensor(plain, name).tobytes())
        writer.finish()
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def ours(small: Any) -> Imatrix:
    """The matrix from what edgekit's calibrate step watches while the text goes through the model, 64 tokens at once."""
    import torch
    from torch import nn

    from edgekit.calibrate import Watch

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    ids = [len(SPECIAL) + byte for byte in TEXT.encode()]
    watch = Watch(Decoder())
    watch.feed(of_tokens([ids[at : at + 64] for at in range(0, len(ids), 64)], 0), 4)
    names = {
        f"model.model.layers.{layer}.{theirs}": f"blk.{layer}.{name}.weight"
        for layer in range(2)
        for theirs, name in LLAMA.items()
        if "norm" not in name
    }
    calibration: Any = SimpleNamespace(stats=watch.stats())
    return from_calibration(calibration, names, dataset="the alphabet")


def llama_imatrix(model: Path, out: Path, kind: str) -> Path:
    text = out.with_suffix(".txt")
    text.write_text(TEXT)
    floats = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")
    run_program(
        "llama-imatrix", "-m", model, "-f", text, "-o", out, "-c", "64", "--no-ppl", "--output-format", kind, *floats
    )
    return out


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_llama_imatrix_measures_what_we_measure(model: Path, ours: Imatrix, kind: str, tmp_path: Path) -> None:
    """Names, counts and every channel's mean square, in both formats that llama-imatrix writes."""
    theirs = read_imatrix(llama_imatrix(model, tmp_path / f"imatrix.{kind}", kind))
    assert theirs.entries.keys() == ours.entries.keys()
    assert len(theirs.entries) == 14
    assert theirs.datasets == (str(tmp_path / "imatrix.txt"),)
    assert theirs.chunks == 4
    for name, entry in theirs.entries.items():
        assert entry.count == (256 if kind == "gguf" else 4)
        np.testing.assert_allclose(entry.mean_square, ours.entries[name].mean_square, rtol=2e-3, err_msg=name)


def test_llama_quantize_reads_our_matrix(model: Path, ours: Imatrix, tmp_path: Path) -> None:
    """The file that edgekit writes gives in llama-quantize the bytes that edgekit makes of the matrix itself."""
    write_imatrix(tmp_path / "imatrix.gguf", ours)
    source = read_gguf(model)
    shapes = [
        Shape(name=name, rows=int(np.prod(one.shape[:-1])), columns=one.shape[-1])
        for name, one in source.tensors.items()
    ]
    for scheme in ("q4_0", "iq4_nl", "q4_k_m"):
        run_program("llama-quantize", "--imatrix", tmp_path / "imatrix.gguf", model, tmp_path / "out.gguf", scheme, "1")
        theirs = read_gguf(tmp_path / "out.gguf")
        assert theirs.metadata["quantize.imatrix.dataset"] == "the alphabet"
        assert theirs.metadata["quantize.imatrix.entries_count"] == 14
        importance = ours.importance()
        types = choose_types(shapes, scheme, facts=FACTS, imatrix=importance).types
        changed = 0
        for one in shapes:
            rows = np.frombuffer(read_tensor(source, one.name).tobytes(), np.float32).reshape(one.rows, one.columns)
            assert theirs.tensors[one.name].type == types[one.name]
            data = read_tensor(theirs, one.name).tobytes()
            assert quantize(rows, types[one.name], importance.get(one.name)).tobytes() == data
            changed += quantize(rows, types[one.name]).tobytes() != data
        # Without importance the bytes would be others, so the matrix was used.
        assert changed >= 10


def test_written_and_read_back(ours: Imatrix, tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        write_imatrix(tmp_path / name, ours)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    back = read_imatrix(tmp_path / "one.gguf")
    assert (back.datasets, back.chunks, back.chunk_size) == (ours.datasets, ours.chunks, ours.chunk_size)
    assert back.entries.keys() == ours.entries.keys()
    for name, entry in back.entries.items():
        assert entry.count == ours.entries[name].count
        assert np.array_equal(entry.sums, ours.entries[name].sums)


def stats(mean_square: list[float], count: int) -> SimpleNamespace:
    return SimpleNamespace(mean_square=np.array(mean_square, np.float32), count=count)


def test_calls_of_a_module_are_added_and_unreached_channels_keep_a_little() -> None:
    calibration: Any = SimpleNamespace(
        stats={
            "model.a#0": stats([1, 4, 0], 10),
            "model.a#1": stats([4, 1, 0], 5),
            "model.b#0": stats([0, 0, 0], 10),
            "model.c#0": stats([1, 1, 1], 10),
        }
    )
    made = from_calibration(calibration, {"model.a": "a.weight", "model.b": "b.weight"}, dataset="d")
    # Nothing ever reached b; c has no name.
    assert list(made.entries) == ["a.weight"]
    assert made.entries["a.weight"].count == 15
    np.testing.assert_allclose(made.importance()["a.weight"][:2], [2, 3])
    assert 0 < made.importance()["a.weight"][2] < 1e-5


def matrix(entries: Mapping[str, int], count: int = 3) -> Imatrix:
    return Imatrix(
        entries={name: Entry(sums=np.ones(size, np.float32), count=count) for name, size in entries.items()},
        datasets=("d",),
        chunks=1,
    )


def test_a_matrix_must_be_the_models_and_cover_it() -> None:
    shapes = [
        Shape(name=name, rows=64, columns=64)
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight")
    ]

    def check(found: Imatrix, scheme: str = "q4_0") -> Chosen:
        chosen = choose_types(shapes, scheme, facts=FACTS, imatrix=found.importance())
        check_imatrix(found, shapes, chosen, "i.gguf")
        return chosen

    check(matrix({"blk.0.attn_q.weight": 64, "blk.0.attn_k.weight": 64}))
    with pytest.raises(EdgekitError, match=r"i.gguf: blk.0.attn_q.weight has 32 channels there and 64 in the model"):
        check(matrix({"blk.0.attn_q.weight": 32, "blk.0.attn_k.weight": 64}))
    with pytest.raises(EdgekitError, match=r"i.gguf: it has blk.7.attn_q.weight, which the model has not"):
        check(matrix({"blk.7.attn_q.weight": 64}))
    with pytest.raises(EdgekitError, match=r"does not cover blk.0.attn_k.weight \(1 such tensor\), whose type q4_0"):
        check(matrix({"blk.0.attn_q.weight": 64}))
    check(matrix({"blk.0.attn_q.weight": 64}), "q8_0")
    # Counted, but reached by no token: llama.cpp would take ones and say nothing.
    with pytest.raises(EdgekitError, match="does not cover"):
        check(matrix({"blk.0.attn_q.weight": 64, "blk.0.attn_k.weight": 64}, count=0))


def test_files_that_are_no_matrix_are_refused(model: Path, ours: Imatrix, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    with pytest.raises(EdgekitError, match="no importance matrix"):
        read_imatrix(model)
    with pytest.raises(EdgekitError, match="cannot be read"):
        read_imatrix(bad)
    for data in (b"", b"PK\x03\x04 something else", struct.pack("<iii", 1, 1 << 30, 0), struct.pack("<i", -1)):
        bad.write_bytes(data)
        with pytest.raises(EdgekitError, match="not an importance matrix"):
            read_imatrix(bad)
    for values, what in (([1.0, np.nan], "no sums of squares"), ([1.0, -1.0], "no sums of squares")):
        write_imatrix(
            bad, Imatrix(entries={"a": Entry(sums=np.array(values, np.float32), count=1)}, datasets=("d",), chunks=1)
        )
        with pytest.raises(EdgekitError, match=what):
            read_imatrix(bad)
    for counts, what in (
        (None, "lacks its float32 counts"),
        ([1.0, 1.0], "a mixture of experts"),
        ([np.inf], "finite"),
    ):
        headers = [TensorHeader(name="a.in_sum2", type="f32", shape=(2,))]
        headers += [] if counts is None else [TensorHeader(name="a.counts", type="f32", shape=(len(counts), 1))]
        with GgufWriter(bad, {"general.type": "imatrix"}, headers) as writer:
            writer.append(np.ones(2, np.float32).tobytes())
            if counts is not None:
                writer.append(np.array(counts, np.float32).tobytes())
            writer.finish()
        with pytest.raises(EdgekitError, match=what):
            read_imatrix(bad)
    write_imatrix(tmp_path / "good.gguf", ours)
    whole = (tmp_path / "good.gguf").read_bytes()
    for end in range(0, len(whole) - 1, 97):
        bad.write_bytes(whole[:end])
        with pytest.raises(EdgekitError):
            read_imatrix(bad)


def test_an_old_file_may_end_after_its_entries(tmp_path: Path) -> None:
    """The number of chunks and the data set came later; a count of 0 means that the sums are means."""
    entry = struct.pack("<i", 1) + b"a" + struct.pack("<iiff", 0, 2, 1.5, 2.5)
    (tmp_path / "old.dat").write_bytes(struct.pack("<i", 1) + entry)
    found = read_imatrix(tmp_path / "old.dat")
    assert found.datasets == ()
    assert found.importance()["a"].tolist() == [1.5, 2.5]
