"""What ships with a GGUF bundle: its loaders say what transformers says, and its command lines and Modelfile are true."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.manifest import MANIFEST_FORMAT, Manifest, read_manifest
from edgekit.bundle.sidecars.llama import command_line, modelfile
from edgekit.runtimes.llamacpp.infill import infill_tokens
from edgekit.runtimes.llamacpp.library import LlamaError
from tests.architectures.decoders import END, SPECIAL, TEMPLATE, make_decoder
from tests.bundle.faults import write_sealed
from tests.conftest import ROOT, make_checkpoint
from tests.llama_files import write_bert, write_llama
from tests.llama_programs import programs, serve

llama_cpp = pytest.importorskip("llama_cpp")

LOADERS = ROOT / "edgekit" / "bundle" / "loaders"
STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "hf"
RUNTIME = {
    "name": "llama-cpp",
    "minimum": "0.3",
    "threads": 1,
    "threads_batch": None,
    "context": 0,
    "batch": 512,
    "kv_k": "f32",
    "kv_v": "f32",
    # Flash attention on a CPU rounds to 16 bits: enough to flip tokens of random weights.
    "flash_attention": "off",
    "gpu_layers": 0,
    "pooling": None,
}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    SYSTEM,
    {"role": "user", "content": "turn the kitchen light on"},
    {"role": "assistant", "content": "done"},
    {"role": "user", "content": "and the hall?"},
]


def make_manifest(output: str = "tokens", **changes: Any) -> dict[str, Any]:
    """What of bundle.json the loaders, the Modelfile and the command lines read."""
    settings = {"chat": True, "stop": ["<|end|>"]}
    return {
        "name": "chat-board",
        "model": "model.gguf",
        "output": output,
        "max_length": 256,
        "settings": settings,
        "runtime": dict(RUNTIME),
    } | changes


def read_as_whole(table: dict[str, Any]) -> Manifest:
    """A manifest that says all that any does, and of the rest what a table says."""
    texts = dict.fromkeys(("edgekit", "recipe", "target", "target_title", "task"), "")
    none = dict.fromkeys(("out_of_scope", "threshold", "tokenizer"))
    empty = {"labels": [], "lineage": {}, "fingerprints": {}, "versions": {}, "licences": {}}
    of_onnx = dict.fromkeys(("opset", "ir_version", "operators"))
    artifact = {"format": "gguf", "scheme": "q8_0", "bytes": 1, "sha256": "", "quantized": {}, "choices": {}, **of_onnx}
    whole = {"format_version": MANIFEST_FORMAT, "pad_id": 0, "artifact": artifact, **texts, **none, **empty}
    return read_manifest(whole | table, "bundle.json")


def write_manifest(folder: Path, **changes: Any) -> Path:
    return write_sealed(folder, make_manifest(**changes))


def shipped(name: str) -> ModuleType:
    """A loader as an app has it: the file with check.py beside it, without edgekit around it."""
    module = ModuleType("load")
    module.__file__ = str(LOADERS / name)
    exec(compile((LOADERS / name).read_text(encoding="utf-8"), name, "exec"), vars(module))
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_decoder(
        "llama",
        tmp_path_factory.mktemp("llama") / "checkpoint",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    write_llama(checkpoint, folder / "model.gguf", template=TEMPLATE)
    return write_manifest(folder)


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a chat template."""
    folder = tmp_path_factory.mktemp("plain")
    write_llama(checkpoint, folder / "model.gguf")
    return write_manifest(folder, settings={"chat": False, "stop": []})


def greedy(checkpoint: Path, ids: list[int], count: int) -> list[int]:
    """The tokens that transformers puts behind `ids`, up to the end token."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    said: list[int] = []
    with torch.inference_mode():
        while len(said) < count:
            token = int(model(torch.tensor([ids + said])).logits[0, -1].argmax())
            if token == model.config.eos_token_id:
                break
            said.append(token)
    return said


def shown(tokenizer: Any, ids: list[int]) -> str:
    """Without bytes that are no characters: random weights say many, and llama-cpp-python leaves them out."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.replace("\N{REPLACEMENT CHARACTER}", "")


@pytest.mark.parametrize(("name", "lines"), [("chat.py", 60), ("embed.py", 60)])
def test_a_loader_is_short_and_imports_little(name: str, lines: int) -> None:
    source = (LOADERS / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= lines
    imported = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) <= {"llama_cpp", "numpy"}


@pytest.mark.parametrize(("name", "output"), [("chat.py", "tokens"), ("embed.py", "embedding")])
def test_a_runtime_that_is_too_old_is_told(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, output: str
) -> None:
    (tmp_path / "model.gguf").symlink_to(bundle / "model.gguf")
    write_manifest(tmp_path, output=output, runtime=RUNTIME | {"minimum": "0.3.36"})
    monkeypatch.setattr(llama_cpp, "__version__", "0.3.9")
    with pytest.raises(RuntimeError, match=r"llama-cpp-python 0.3.9 is too old for this bundle: it needs 0.3.36"):
        shipped(name).Bundle(tmp_path)
    monkeypatch.setattr(llama_cpp, "__version__", "0.4.0")
    assert shipped(name).Bundle(tmp_path).manifest["output"] == output


def test_a_conversation_is_answered_as_transformers_answers_it(checkpoint: Path, bundle: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    opened = shipped("chat.py").Bundle(bundle)
    asked: Any
    for asked in ("turn the light on", TALK):
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        said = greedy(checkpoint, ids, 24)
        assert len(said) > 4
        # llama-cpp-python says one token more than asked where a character is still missing bytes.
        assert opened(asked, max_tokens=24).startswith(shown(tokenizer, said))
        # One BOS: the template writes it, so the tokenizer must not.
        assert opened.llama.input_ids[: len(ids) + len(said) - 1].tolist() == ids + said[:-1]


def test_an_answer_comes_piece_by_piece(bundle: Path) -> None:
    opened = shipped("chat.py").Bundle(bundle)
    pieces = [piece for piece in opened.stream(TALK, max_tokens=16) if piece]
    assert len(pieces) > 4
    assert "".join(pieces) == opened(TALK, max_tokens=16)
    assert opened(TALK, max_tokens=16, temperature=2.0, seed=1) != opened(TALK, max_tokens=16)


def test_without_a_template_a_text_is_continued(checkpoint: Path, plain: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    opened = shipped("chat.py").Bundle(plain)
    ids = tokenizer("some jazz on the").input_ids
    said = greedy(checkpoint, ids, 24)
    # Of a letter that two byte tokens make, as random weights say them, llama-cpp-python's stream may lose both.
    text, wanted = (
        one.encode("ascii", "ignore") for one in (opened("some jazz on the", max_tokens=24), shown(tokenizer, said))
    )
    assert len(wanted) > 20
    assert text.startswith(wanted)
    assert opened.llama.input_ids[: len(ids) + len(said) - 1].tolist() == ids + said[:-1]
    # What a person types is text, also where it looks like a token of the model's own.
    opened(SPECIAL[END], max_tokens=1)
    assert END not in opened.llama.input_ids[: opened.llama.n_tokens].tolist()
    with pytest.raises(TypeError, match="no chat template"):
        opened(TALK)


def test_what_is_missing_between_two_texts_is_asked_for_by_tokens_of_its_own(
    checkpoint: Path, plain: Path, bundle: Path, tmp_path: Path
) -> None:
    """As transformers reads prefix, suffix and middle with the markers written out; of a model without them it is told."""
    from transformers import AutoTokenizer

    written = (checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    for old, new in zip(("<|pad|>", "<|user|>", "<|assistant|>"), marks, strict=True):
        written = written.replace(old, new)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(written, encoding="utf-8")
    write_llama(tmp_path, tmp_path / "model.gguf")
    before, behind = "def add(a, <|end|> b):\n", "    return total\n"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(before.replace("<|end|>", "") + marks[1] + behind + marks[2]).input_ids
    for manifest in ({"chat": False, "stop": []}, {"chat": True, "stop": []}):
        opened = shipped("chat.py").Bundle(write_manifest(tmp_path, settings=manifest))
        said = opened(infill_tokens(opened.llama, before.replace("<|end|>", ""), behind), max_tokens=12)
        read = opened.llama.input_ids[: opened.llama.n_tokens].tolist()
        assert read[: len(ids) + 1] == [ids[0], tokenizer.convert_tokens_to_ids(marks[0]), *ids[1:]]
        wanted = shown(tokenizer, greedy(checkpoint, read[: len(ids) + 1], 12)).encode("ascii", "ignore")
        assert said.encode("ascii", "ignore").startswith(wanted)
    # What is around the middle is text, whatever it looks like.
    opened(infill_tokens(opened.llama, before, behind), max_tokens=1)
    assert END not in opened.llama.input_ids[: opened.llama.n_tokens].tolist()
    for folder in (plain, bundle):
        with pytest.raises(LlamaError, match="no tokens for what is missing"):
            infill_tokens(shipped("chat.py").Bundle(folder).llama, before, behind)


def test_the_end_token_ends_an_answer(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    """With the head's row of the end token made the largest, nothing is said; the text of the token is not shown."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    opened = shipped("chat.py").Bundle(plain)
    said = opened("some jazz", max_tokens=8)
    third = opened.llama.input_ids[: opened.llama.n_tokens].tolist()[-6]
    head = tensors["lm_head.weight"].copy()
    head[[third, END]] = head[[END, third]]
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    write_llama(tmp_path, tmp_path / "model.gguf")
    shorter = shipped("chat.py").Bundle(write_manifest(tmp_path))("some jazz", max_tokens=8)
    assert len(shorter) < len(said)
    assert said.startswith(shorter)
    assert SPECIAL[END] not in shorter


def test_the_manifest_sets_the_context_and_an_argument_overrides_it(bundle: Path, tmp_path: Path) -> None:
    loader = shipped("chat.py")
    assert loader.Bundle(bundle).llama.n_ctx() == 256
    assert loader.Bundle(bundle, context=512).llama.n_ctx() == 512
    (tmp_path / "model.gguf").symlink_to(bundle / "model.gguf")
    write_manifest(tmp_path, runtime=RUNTIME | {"context": 256 * 2, "threads": 2, "kv_k": "f16", "kv_v": "bf16"})
    opened = loader.Bundle(tmp_path)
    assert (opened.llama.n_ctx(), opened.llama.n_threads, opened.llama.n_threads_batch) == (512, 2, 2)
    types = (opened.llama.context_params.type_k, opened.llama.context_params.type_v)
    assert types == (llama_cpp.GGML_TYPE_F16, 30)
    with pytest.raises(ValueError, match="context window"):
        opened("light " * 600)


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data")
def test_a_story_is_told_as_transformers_tells_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_llama(STORIES, tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    ids = tokenizer("Once upon a time").input_ids
    told = tokenizer.decode(greedy(STORIES, ids, 120))
    assert shipped("chat.py").Bundle(write_manifest(tmp_path))("Once upon a time", max_tokens=120) == told


def test_an_embedder_gives_what_sentence_transformers_would(tmp_path: Path) -> None:
    """Mean over tokens, length 1, float32; a long text ends with [SEP] as the verified ones did."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    write_bert(checkpoint, tmp_path / "model.gguf")
    opened = shipped("embed.py").Bundle(write_manifest(tmp_path, output="embedding", max_length=16, settings={}))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint).eval()
    for text in (
        "please turn the kitchen light on",
        "",
        "jazz",
        "switch off every lamp in the attic " * 5,
        "[SEP] hall",
    ):
        ids = tokenizer(text, truncation=True, max_length=16).input_ids
        assert opened.tokens(text) == ids
        with torch.inference_mode():
            wanted = model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        embedding = opened(text)
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(embedding, wanted / np.linalg.norm(wanted), atol=2e-4)
    _, _, _, *options = shlex.split(command_line(read_as_whole(opened.manifest)))
    with serve(tmp_path / "model.gguf", tmp_path / "log", *options) as server:
        served = server.ask("/v1/embeddings", input="switch off the hall lamp")["data"][0]["embedding"]
    np.testing.assert_allclose(served, opened("switch off the hall lamp"), atol=1e-5)
    raw = shipped("embed.py").Bundle(write_manifest(tmp_path, output="embedding", settings={"normalize": False}))
    np.testing.assert_allclose(raw("jazz") / np.linalg.norm(raw("jazz")), opened("jazz"), atol=1e-6)
    assert np.linalg.norm(raw("jazz")) > 2


def test_the_modelfile_says_what_was_verified() -> None:
    manifest = make_manifest(settings={"chat": True, "stop": ["<|end|>", 'say "no"', "\n\n"]})
    assert modelfile(read_as_whole(manifest)).splitlines()[1:] == [
        "FROM ./model.gguf",
        "PARAMETER num_ctx 256",
        "PARAMETER num_thread 1",
        "PARAMETER temperature 0",
        'PARAMETER stop "<|end|>"',
        'PARAMETER stop """say "no""""',
        'PARAMETER stop """',
        "",
        '"""',
        "# Ollama writes conversations with a template of its own, where it knows one that is like the model's, and else with none;",
        "# what was verified is the file's. See `ollama show --template`; llama-server (in the model card) runs the file's own.",
    ]
    plain = modelfile(read_as_whole(make_manifest(settings={}, runtime=RUNTIME | {"threads": None, "context": 64})))
    assert "TEMPLATE {{ .Prompt }}" in plain
    assert "num_ctx 64" in plain
    assert "num_thread" not in plain
    assert "temperature" not in modelfile(read_as_whole(make_manifest("embedding", settings={})))


def run_line(line: str, folder: Path, *more: str, said: str = "") -> str:
    """What a command line prints when a person runs it in the bundle's folder, with llama.cpp on the PATH."""
    program, *arguments = shlex.split(line)
    ran = subprocess.run(
        [programs() / program, *arguments, *more],
        input=said,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def test_the_command_line_continues_a_text_as_the_loader_does(plain: Path) -> None:
    line = command_line(read_as_whole(json.loads((plain / "bundle.json").read_text())))
    assert line.startswith("llama-completion -m model.gguf -c 256 ")
    told = shipped("chat.py").Bundle(plain)("Once upon a time", max_tokens=8)
    assert letters(run_line(line, plain, "-n", "32")).startswith(letters(f"Once upon a time{told}"))


def test_the_command_line_talks(bundle: Path) -> None:
    line = command_line(read_as_whole(json.loads((bundle / "bundle.json").read_text())))
    assert line.startswith("llama-cli -m model.gguf -c 256 ")
    answer = shipped("chat.py").Bundle(bundle)("turn the light on", max_tokens=8)
    # More tokens than the loader says: the program keeps back what may yet become a character.
    printed = run_line(line, bundle, "-n", "32", "--single-turn", "--simple-io", "-p", "turn the light on")
    assert letters(answer) in letters(printed)


def letters(text: str) -> str:
    """What every program prints alike: programs differ in how they show control characters and incomplete ones."""
    return "".join(one for one in text if one.isascii() and one.isprintable() and not one.isspace())


def test_the_server_s_command_line_serves(bundle: Path, tmp_path: Path) -> None:
    _, _, model, *options = shlex.split(
        command_line(read_as_whole(json.loads((bundle / "bundle.json").read_text())), serve=True)
    )
    with serve(bundle / model, tmp_path / "log", *options) as server:
        assert server.ask("/props")["default_generation_settings"]["n_ctx"] == 256


def test_golden_tokens_are_asked_first(plain: Path, tmp_path: Path) -> None:
    """What llama_cpp itself says of a text passes; another token, and a text that is read otherwise, is named."""
    (tmp_path / "model.gguf").symlink_to(plain / "model.gguf")
    free = shipped("chat.py").Bundle(plain)
    asked = free.llama.tokenize(b"some jazz")
    greedy_tokens = free.llama.generate(asked, temp=0.0)
    row = {"text": "some jazz", "asked": asked, "tokens": [next(greedy_tokens) for _ in range(4)]}

    def lay(**changes: Any) -> Any:
        content = {"format": 1, "of": "", "tolerance": 0.0, "rows": [row | changes]}
        (tmp_path / "golden.json").write_text(json.dumps(content), encoding="utf-8")
        return shipped("chat.py").Bundle(write_manifest(tmp_path, settings={}))

    assert set(lay().times) == {"cold", "warm"}
    with pytest.raises(RuntimeError, match=r"golden answer to 'some jazz': tokens \["):
        lay(tokens=[*row["tokens"][:3], row["tokens"][3] + 1])
    with pytest.raises(RuntimeError, match=r"golden answer to 'some jazz': read as tokens \["):
        lay(asked=[1, 2])
