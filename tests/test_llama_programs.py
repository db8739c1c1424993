"""llama.cpp's own programs and edgekit agree: what one writes the other reads, and what both compute is the same."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.formats.gguf.file import read_gguf, read_tensor
from edgekit.formats.gguf.imatrix import read_imatrix, write_imatrix
from edgekit.runtimes import scores
from tests.architectures.decoders import TEMPLATE, make_decoder
from tests.conftest import ROOT
from tests.llama_files import write_llama
from tests.llama_programs import PROGRAMS, Server, programs, run_program, serve

llama_cpp = pytest.importorskip("llama_cpp")

CONTEXT = 64
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRICT = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{%- else %}{% set loop_messages = messages %}"
    "{% set system = '' %}{%- endif %}\n{%- for message in loop_messages -%}\n"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}\n"
    "{%- if message['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{%- else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TALKS = [
    [{"role": "user", "content": "turn on the light"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " caf\N{LATIN SMALL LETTER E WITH ACUTE}\t{{ 1 }}\n"},
    ],
    [
        {"role": "user", "content": "turn on the light"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "and <|end|> off"},
    ],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Rows of 256 values, so that every type of block fits.
    return make_decoder(
        "llama",
        tmp_path_factory.mktemp("llama") / "checkpoint",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
    )


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    return write_llama(checkpoint, checkpoint.with_name("model.gguf"), template=TEMPLATE)


@pytest.fixture(scope="module")
def texts(model: Path) -> Path:
    path = model.with_name("texts.txt")
    path.write_text((ROOT / "LICENSE").read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def imatrix(model: Path, texts: Path) -> Path:
    """An importance matrix that llama-imatrix made."""
    path = model.with_name("imatrix.gguf")
    run_program("llama-imatrix", "-m", model, "-f", texts, "-o", path, "-c", str(CONTEXT), "-t", "1")
    return path


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("-c", "256", "-t", "1", "-np", "1", "-ctk", "f32", "-ctv", "f32", "-fa", "off")
    with serve(model, tmp_path_factory.mktemp("server") / "log", *options) as running:
        yield running


def test_all_programs_are_there_and_built_once() -> None:
    folder = programs()
    assert {path.name for path in folder.iterdir()} >= set(PROGRAMS)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    programs.cache_clear()
    assert programs() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"nothing\.gguf"):
        run_program("llama-quantize", tmp_path / "nothing.gguf", tmp_path / "out.gguf", "Q4_0")
    refused = pytest.raises(pytest.fail.Exception, match=r"(?s)did not start.*nothing\.gguf")
    with refused, serve(tmp_path / "nothing.gguf", tmp_path / "log"):
        pass


def test_the_server_answers_openai_s_requests(server: Server, checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    asked = TALKS[2]
    answer = server.ask("/v1/chat/completions", messages=asked, max_tokens=12, temperature=0)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] in {"length", "stop"}
    ids = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        asked, add_generation_prompt=True, return_dict=False
    )
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert 0 < answer["usage"]["completion_tokens"] <= 12


def test_the_server_continues_a_text_as_transformers_does(server: Server, checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(checkpoint)("Licensed under the").input_ids
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    said: list[int] = []
    with torch.inference_mode():
        for _ in range(12):
            said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    request = {"n_predict": 12, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    answer = server.ask("/completion", prompt="Licensed under the", **request)
    assert answer["tokens_evaluated"] == len(ids)
    assert answer["tokens"] == said


def test_the_server_tokenizes_as_transformers_does(server: Server, checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for text in (
        "Licensed under the Apache License",
        "a\tb\n\n  c",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{ROCKET}",
    ):
        answer = server.ask("/tokenize", content=text, add_special=True, parse_special=False)
        assert answer["tokens"] == tokenizer(text).input_ids


@pytest.mark.parametrize("template", [TEMPLATE, CHATML, STRICT], ids=["plain", "chatml", "strict"])
def test_the_server_s_template_equals_transformers(template: str, checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = write_llama(checkpoint, tmp_path / "model.gguf", template=template)
    with serve(model, tmp_path / "log", "-c", "64", "-t", "1", "-np", "1") as running:
        for talk in TALKS:
            wanted = tokenizer.apply_chat_template(
                talk, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            # The server takes a BOS off the text, since its tokenizer puts one there.
            rendered = running.ask("/apply-template", messages=talk)["prompt"]
            assert rendered == wanted.removeprefix(tokenizer.bos_token)
            tokens = running.ask("/tokenize", content=rendered, add_special=True, parse_special=True)["tokens"]
            begun = wanted if wanted.startswith(tokenizer.bos_token) else tokenizer.bos_token + wanted
            assert tokens == tokenizer(begun, add_special_tokens=False).input_ids


def figures(printed: str, name: str) -> tuple[float, float]:
    """A figure of llama-perplexity's summary and its standard error."""
    found = re.search(rf"{re.escape(name)}\s*:\s*(-?[\d.]+)\s*±\s*([\d.]+)", printed)
    assert found, f"no {name} in:\n{printed}"
    return float(found[1]), float(found[2])


def test_llama_perplexity_measures_the_same_divergence(model: Path, texts: Path, tmp_path: Path) -> None:
    """The same tokens, read from the file of reference logits, through edgekit's runtime and scores."""
    from edgekit.runtimes.llamacpp import Generator

    quantized = tmp_path / "q4_0.gguf"
    run_program("llama-quantize", model, quantized, "Q4_0", "1")
    kept, options = tmp_path / "logits", ("-c", str(CONTEXT), "-b", str(CONTEXT), "-t", "1", "-fa", "off")
    run_program("llama-perplexity", "-m", model, "-f", texts, *options, "--kl-divergence-base", kept)
    ran = run_program("llama-perplexity", "-m", quantized, *options, "--kl-divergence-base", kept, "--kl-divergence")
    data = kept.read_bytes()
    assert data[:8] == b"_logits_"
    context, _, chunks = np.frombuffer(data, "<i4", 3, 8).tolist()
    tokens = np.frombuffer(data, "<i4", context * chunks, 20).reshape(chunks, context).copy()
    tokens[:, 0] = 0  # the first of each chunk is replaced by BOS, and its second half is scored
    said = slice(context // 2, context - 1)
    rows = []
    for file in (model, quantized):
        generator = Generator(file, {"threads": 1, "flash_attention": "off"})
        parts = []
        for chunk in tokens:
            generator.clear()
            parts.append(generator.logits(chunk, said))
        generator.close()
        rows.append(np.concatenate(parts))
    reference, other = rows
    labels = tokens[:, context // 2 + 1 :].reshape(-1)
    assert len(labels) > 500
    measured = {
        "Mean    KLD": scores.kl(reference, other).mean(),
        "Mean ln(PPL(Q)/PPL(base))": (scores.nll(other, labels) - scores.nll(reference, labels)).mean(),
        "Mean PPL(base)": np.exp(scores.nll(reference, labels).mean()),
        "Same top p": 100 * (scores.top1(reference) == scores.top1(other)).mean(),
    }
    for name, ours in measured.items():
        theirs, error = figures(ran.stdout, name)
        # Within a twentieth of the error that they state: they keep the reference in 16 bits.
        assert abs(ours - theirs) <= max(error / 20, 2e-4 * abs(theirs)), f"{name}: {ours}, llama-perplexity {theirs}"
    assert measured["Mean    KLD"] > 1e-3


def test_llama_imatrix_s_file_is_readable(imatrix: Path, model: Path, texts: Path) -> None:
    file, of_model = read_gguf(imatrix), read_gguf(model)
    assert file.metadata["general.type"] == "imatrix"
    assert file.metadata["imatrix.chunk_size"] == CONTEXT
    assert file.metadata["imatrix.datasets"] == [str(texts)]
    matrices = {name.removesuffix(".in_sum2") for name in file.tensors if name.endswith(".in_sum2")}
    assert matrices >= {name for name in of_model.tensors if re.search(r"(attn|ffn)_(?!norm)", name)}
    tokens = file.metadata["imatrix.chunk_count"] * CONTEXT
    for name in matrices:
        assert file.tensors[f"{name}.in_sum2"].shape[-1] == of_model.tensors[name].shape[-1]
        assert read_tensor(file, f"{name}.counts").view("<f4").item() == tokens


def quantize_in_process(model: Path, out: Path, scheme: str, importance: Mapping[str, Any]) -> None:
    """llama_model_quantize of the installed library, with importance by tensor."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{scheme}"), 1
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()  # one without a name ends it
    kept = [(name.encode(), np.ascontiguousarray(values, np.float32)) for name, values in importance.items()]
    for entry, (name, values) in zip(entries, kept, strict=False):
        entry.name, entry.size = name, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    settings.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data)) if importance else None
    assert llama_cpp.llama_model_quantize(str(model).encode(), str(out).encode(), ctypes.byref(settings)) == 0


@pytest.mark.parametrize("scheme", ["Q4_0", "Q4_K_M", "IQ4_XS"])
def test_llama_quantize_takes_an_imatrix_and_equals_the_library(
    scheme: str, model: Path, imatrix: Path, tmp_path: Path
) -> None:
    ran = run_program("llama-quantize", "--imatrix", imatrix, model, tmp_path / "theirs.gguf", scheme, "1")
    assert "importance matrix" in ran.stdout + ran.stderr
    quantize_in_process(model, tmp_path / "ours.gguf", scheme, read_imatrix(imatrix).importance())
    theirs, ours = read_gguf(tmp_path / "theirs.gguf"), read_gguf(tmp_path / "ours.gguf")
    assert theirs.metadata["quantize.imatrix.entries_count"] == len(read_imatrix(imatrix).entries)
    assert {name: place.type for name, place in theirs.tensors.items()} == {
        name: place.type for name, place in ours.tensors.items()
    }
    for name in theirs.tensors:
        np.testing.assert_array_equal(read_tensor(theirs, name), read_tensor(ours, name), err_msg=name)
    quantize_in_process(model, tmp_path / "without.gguf", scheme, {})
    without = read_gguf(tmp_path / "without.gguf")
    name = "blk.0.attn_q.weight"
    assert (read_tensor(without, name) != read_tensor(ours, name)).any(), "the importance matrix changed nothing"


def test_llama_quantize_takes_an_imatrix_that_edgekit_writes(model: Path, imatrix: Path, tmp_path: Path) -> None:
    """Read and written again by edgekit, llama-imatrix's statistics give the same model, to the byte but for the file's name."""
    (tmp_path / "ours").mkdir()
    write_imatrix(tmp_path / "ours" / imatrix.name, read_imatrix(imatrix))
    made = {}
    for name, statistics in {"theirs": imatrix, "ours": tmp_path / "ours" / imatrix.name}.items():
        out = tmp_path / f"{name}.gguf"
        run_program("llama-quantize", "--imatrix", statistics, model, out, "Q4_K_M", "1")
        made[name] = read_gguf(out)
    theirs, ours = made["theirs"], made["ours"]
    for name in theirs.tensors:
        np.testing.assert_array_equal(read_tensor(theirs, name), read_tensor(ours, name), err_msg=name)
    for key in ("dataset", "entries_count", "chunks_count"):
        assert ours.metadata[f"quantize.imatrix.{key}"] == theirs.metadata[f"quantize.imatrix.{key}"]
