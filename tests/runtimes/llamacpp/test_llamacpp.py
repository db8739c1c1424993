"""llama.cpp against transformers on small real files, what it tells of itself, and what it says when it cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from edgekit.modalities.text import of_tokens
from edgekit.runtimes import llamacpp
from edgekit.runtimes.llamacpp import generation, loaded
from tests.runtimes.gguf_files import write_bert, write_llama

EXACT = {"threads": 1, "kv_k": "f32", "kv_v": "f32"}
Decoder = tuple[Path, np.ndarray, LlamaForCausalLM]
IDS = np.random.default_rng(0).integers(3, 200, 150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    """A Llama with grouped heads of 32 channels, transformers' logits of IDS, and the model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=200, intermediate_size=256, max_position_embeddings=1024, **sizes)
    model = LlamaForCausalLM(config).eval()
    # Random weights of transformers' size give logits that are all alike.
    for weight in model.parameters():
        weight.data *= 4 if weight.ndim == 2 else 1
    with torch.no_grad():
        logits = model(torch.tensor(IDS)[None]).logits[0].numpy()
    return write_llama(model, folder / "decoder.gguf"), logits, model


@pytest.fixture(scope="module")
def encoder(folder: Path) -> tuple[Path, BertModel]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=200, max_position_embeddings=400, **sizes)).eval()
    return write_bert(model, folder / "encoder.gguf"), model


def embed(model: BertModel, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids)[None]).last_hidden_state[0].numpy()


def test_logits_are_those_of_transformers_at_once_and_one_by_one(decoder: Decoder) -> None:
    file, wanted, _ = decoder
    generator = llamacpp.generator(file, EXACT)
    assert (generator.vocabulary, generator.context) == (200, 1024)
    at_once = generator.logits(IDS)
    assert at_once.dtype == np.float32
    assert np.abs(at_once - wanted).max() < 1e-4 * np.abs(wanted).max()
    generator.clear()
    assert generator.logits(IDS[:100], slice(0)).shape == (0, 200)
    one_by_one = [generator.logits([token], slice(-1, None)) for token in IDS[100:]]
    assert np.abs(np.concatenate(one_by_one) - wanted[100:]).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("batch", [7, 512])
def test_rows_are_those_that_are_wanted_whatever_the_batch(decoder: Decoder, batch: int) -> None:
    file, wanted, _ = decoder
    generator = llamacpp.generator(file, EXACT | {"batch": batch})
    near = {"atol": 1e-4 * np.abs(wanted).max(), "rtol": 0}
    assert np.allclose(generator.logits(IDS[:40], slice(-1, None)), wanted[39:40], **near)
    # More rows than llama.cpp has room for, in the middle of a sequence: what was fed is fed again.
    assert np.allclose(generator.logits(IDS[40:120], slice(30, 75)), wanted[70:115], **near)
    assert np.allclose(generator.logits(IDS[120:], slice(None)), wanted[120:], **near)


def test_cache_grows_with_what_is_fed(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    file, wanted, _ = decoder
    monkeypatch.setattr(generation, "_ROOM", 256)
    generator = llamacpp.generator(file, EXACT)
    small = generator.work()["buffers"]["kv"]["CPU"]
    again = np.concatenate([IDS, IDS, IDS])
    generator.logits(again[:200], slice(0))
    rows = np.concatenate([generator.logits(again[200:256], slice(0)), generator.logits(again[256:], slice(-1, None))])
    assert generator.work()["buffers"]["kv"]["CPU"] == pytest.approx(2 * small, abs=0.02)
    fixed = llamacpp.generator(file, EXACT | {"context": 512})
    assert np.allclose(fixed.logits(again, slice(-1, None)), rows, atol=1e-4 * np.abs(wanted).max())


def test_memory_of_the_cache_is_as_computed(decoder: Decoder) -> None:
    """Keys and values of 3 layers, 2 heads of 32 channels and 1024 tokens; q8_0 is 34 bytes for 32 values (ggml-common.h)."""
    for kind, size in {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}.items():
        generator = llamacpp.generator(decoder[0], {"threads": 1, "context": 1024, "kv_k": kind, "kv_v": kind})
        work = generator.work()
        assert work["buffers"]["kv"]["CPU"] == pytest.approx(2 * 3 * 2 * 32 * 1024 * size / (1 << 20), abs=0.01)
        assert work["flash_attention"] is (kind != "f32")
        assert work["kv"] == [kind, kind]
        # A step of one row does not pay for the logits of a whole batch.
        assert work["buffers"]["output"]["CPU"] < 0.01


def test_work_says_where_layers_lie(decoder: Decoder) -> None:
    work = llamacpp.generator(decoder[0], {"threads": 1, "threads_batch": 2, "gpu_layers": -1}).work()
    assert work["layers"] == 4
    assert work["offloaded"] == (4 if llamacpp.providers()[0] == llamacpp.GPU else 0)
    assert work["provider"] == llamacpp.providers()[0]
    assert sum(work["buffers"]["model"].values()) == pytest.approx(work["weights_mb"], abs=0.02)
    assert work["weights_mb"] == pytest.approx(4 * work["parameters"] / (1 << 20), rel=0.01)
    assert work["threads"] == {"decode": 1, "prefill": 2}
    assert work["instructions"]
    # Read from llama.cpp's log: that it still writes these lines is what the figures stand on.
    model = loaded.Loaded(decoder[0], {"gpu_layers": 0})
    assert len([line for line in model._loading if loaded._PLACED.search(line.text)]) == 4


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embeddings_are_those_of_transformers(encoder: tuple[Path, BertModel], pooling: str) -> None:
    file, model = encoder
    session = llamacpp.load(file, EXACT | {"pooling": pooling})
    # Short, too long for the first context, short again.
    for length in (5, 300, 1, 400):
        ids = np.resize(IDS, length)
        states = embed(model, ids)
        wanted = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[pooling]
        assert np.allclose(session.run(of_tokens([ids], 0).prompts[0]), wanted, atol=1e-5)


def test_pooling_is_the_files_unless_the_options_say(encoder: tuple[Path, BertModel], tmp_path: Path) -> None:
    file, model = encoder
    states = embed(model, IDS)
    assert np.allclose(llamacpp.load(file, EXACT).run(of_tokens([IDS], 0).prompts[0]), states.mean(axis=0), atol=1e-5)
    none = write_bert(model, tmp_path / "none.gguf", gguf.PoolingType.NONE)
    with pytest.raises(llamacpp.LlamaError, match=r"none.gguf: it says no pooling.*mean, cls"):
        llamacpp.load(none, EXACT).run(of_tokens([IDS], 0).prompts[0])
    assert np.allclose(
        llamacpp.load(none, EXACT | {"pooling": "cls"}).run(of_tokens([IDS], 0).prompts[0]), states[0], atol=1e-5
    )


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_decoder_may_embed(decoder: Decoder, pooling: str) -> None:
    """What is embedded does not depend on what was before it."""
    session = llamacpp.load(decoder[0], EXACT | {"pooling": pooling})
    first, _, again = (
        session.run(of_tokens([IDS], 0).prompts[0]),
        session.run(of_tokens([IDS[:7]], 0).prompts[0]),
        session.run(of_tokens([IDS], 0).prompts[0]),
    )
    assert np.array_equal(first, again)
    states = decoder[2](torch.tensor(IDS)[None], output_hidden_states=True).hidden_states[-1][0].detach().numpy()
    assert np.allclose(first, states[-1] if pooling == "last" else states.mean(axis=0), atol=1e-4)


def test_an_encoder_does_not_generate(encoder: tuple[Path, BertModel]) -> None:
    with pytest.raises(llamacpp.LlamaError, match=r"encoder.gguf: an encoder, which does not generate"):
        llamacpp.generator(encoder[0], {})


def test_work_of_an_embedder_counts_all_but_its_table(encoder: tuple[Path, BertModel]) -> None:
    work = llamacpp.work(encoder[0], {"threads": 1}, of_tokens([range(3, 13)], 0).prompts[0])
    beside = ("embeddings.word_embeddings", "pooler")
    counted = sum(value.numel() for name, value in encoder[1].named_parameters() if not name.startswith(beside))
    assert work["matmul_ops"] == {"CPU": 2 * 10 * counted}
    assert work["weight_bytes"] == pytest.approx(4 * counted, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 2048}, "2048 tokens of context are needed, the model has 1024"),
        ({"kv_v": "q8_0", "flash_attention": "off"}, "quantized V cache requires flash_attn"),
    ],
)
def test_options_that_do_not_fit_are_explained(decoder: Decoder, options: dict[str, Any], words: str) -> None:
    with pytest.raises(llamacpp.LlamaError, match=rf"decoder.gguf: .*{words}.*\[runtime.llama-cpp\]"):
        llamacpp.generator(decoder[0], options)


def test_sequences_that_do_not_fit_are_explained(decoder: Decoder, encoder: tuple[Path, Any]) -> None:
    generator = llamacpp.generator(decoder[0], {"threads": 1, "context": 100})
    with pytest.raises(llamacpp.LlamaError, match="101 tokens do not fit into a context of 100"):
        generator.logits(IDS[:101])
    with pytest.raises(llamacpp.LlamaError, match=r"invalid token\[1\] = 200"):
        generator.logits([1, 200])
    assert generator.logits(IDS[:100], slice(-1, None)).shape == (1, 200)
    with pytest.raises(llamacpp.LlamaError, match="401 tokens of context are needed, the model has 400"):
        llamacpp.load(encoder[0], {}).run(of_tokens([np.resize(IDS, 401)], 0).prompts[0])


def test_files_that_do_not_load_are_explained_and_nothing_is_printed(
    decoder: Decoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = decoder[0].read_bytes()
    broken = {
        "none": (None, "No such file"),
        "text": (b"a model, or not", "invalid magic"),
        "half": (whole[: len(whole) // 2], "not within the file bounds|corrupted or incomplete"),
        "head": (whole[:100], "failed to read"),
    }
    for name, (content, words) in broken.items():
        file = tmp_path / f"{name}.gguf"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(
            llamacpp.load_errors(), match=rf"{re.escape(name)}.gguf: llama.cpp does not load it: .*({words})"
        ):
            llamacpp.generator(file, {})
    assert capfd.readouterr() == ("", "")


def test_closed_is_closed_and_memory_is_given_back(decoder: Decoder) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def use(close: bool) -> None:
        generator = llamacpp.generator(decoder[0], {"threads": 1, "context": 1024})
        generator.logits(IDS)
        if close:
            generator.close()
            generator.close()
            with pytest.raises(llamacpp.LlamaError, match="closed"):
                generator.logits([1])
            with pytest.raises(llamacpp.LlamaError, match="closed"):
                generator.work()

    use(close=True)
    before = resident()
    for turn in range(60):
        use(close=turn % 2 == 0)
    # Each holds at least its cache of 0.75 MiB and buffers of the same size.
    assert resident() - before < 20 << 20


def test_joined_options_say_what_auto_came_to() -> None:
    """What is verified goes into the bundle's manifest, and its loader knows no "auto" that depends on the cache."""
    exact = {"kv_k": "f32", "kv_v": "f32"}
    assert llamacpp.joined(exact, {})["flash_attention"] == "off"
    assert llamacpp.joined(exact | {"flash_attention": "on"}, {})["flash_attention"] == "on"
    assert llamacpp.joined({"kv_k": "f32"}, {})["flash_attention"] == "auto"


def test_joined_options_are_the_artifacts_where_it_asks() -> None:
    assert llamacpp.joined({"threads": 2}, {"context": 64}) == vars(llamacpp.Options(threads=2, context=64))
    with pytest.raises(TypeError, match="colour"):
        llamacpp.joined({}, {"colour": 1})
