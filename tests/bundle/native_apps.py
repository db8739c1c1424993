"""Apps in C around bundles, for tests: bundles that programs in C can read, and what compiles an app."""

from __future__ import annotations

import codecs
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgekit.bundle.golden import GOLDEN, answers
from edgekit.bundle.manifest import FileEntry, Manifest
from edgekit.bundle.open import Bundle
from edgekit.bundle.package import Packaged
from edgekit.bundle.platforms import find_embedding
from edgekit.devices.native import llama as llama_cpp
from edgekit.tasks.text_generation import TEMPLATE
from edgekit.workspace import file_sha256, write_product
from tests.architectures.decoders import make_decoder
from tests.artifacts import MAX_LENGTH, WORDS, make_artifact, make_report
from tests.bundle.faults import table_of
from tests.bundle.test_chat import read_as_whole, write_manifest
from tests.bundle.test_generate import make_bundle
from tests.bundle.test_golden import pack_golden
from tests.conftest import ROOT
from tests.devices.ort_headers import header_folder, library_folder
from tests.llama_files import write_llama

EXAMPLE = ROOT / "examples" / "embed-c"
FLAGS = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]

# A program in C: ends the reading of a first question, then writes behind each text, and a zero.
WRITES = r"""
#include <stdio.h>
#include "generate.h"
static int show(void *ends, const char *piece, size_t length) { return fwrite(piece, 1, length, stdout) == length && !*(int *)ends; }
int main(int count, char **words) {
  ek_error error;
  ek_writer *writer = ek_open_writer(ek_verified(), words[1], &error);
  int ends = 1;
  if (writer && !ek_write(writer, "jazz", 64, show, &ends, &error)) return fprintf(stderr, "%s\n", error.text), 1;
  ends = 0;
  for (int at = 2; writer && at < count; ++at, putchar(0))
    if (!ek_write(writer, words[at], 64, show, &ends, &error)) return fprintf(stderr, "%s\n", error.text), 1;
  if (!writer) return fprintf(stderr, "%s\n", error.text), 1;
  ek_close_writer(writer);
  return 0;
}
"""


def pack_words(folder: Path, **made: object) -> Packaged:
    """The bundle of `pack_golden`, whose tokenizer is one of BERT's: WordPiece of the same words, some of them in pieces."""
    artifact = folder / "artifact"
    make_artifact(artifact, **made)  # type: ignore[arg-type]
    pieces = {"some": "##s", "jazz": "##light"}
    vocabulary = {pieces.get(word, word): place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.save(str(artifact / "tokenizer.json"))
    facts = json.loads((artifact / "export.json").read_text())["facts"]
    (artifact / "export.json").unlink()
    write_product(artifact, "export", key="test", inputs={"student": "a test"}, facts=facts)
    make_report(folder / "report", artifact)
    return pack_golden(folder)


def writing_bundle(folder: Path, template: str | None = None) -> Bundle:
    """A bundle that writes in llama.cpp, with golden answers."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    write_llama(
        make_decoder("llama", folder / "checkpoint", rope_parameters=rope), folder / "model.gguf", template=template
    )
    settings = {"chat": template is not None, "stop": ["<|end|>"]}
    whole = read_as_whole(json.loads((write_manifest(folder, settings=settings) / "bundle.json").read_text()))
    whole = replace(whole, task="text-generation")
    (folder / "bundle.json").write_text(whole.to_json(), encoding="utf-8")
    return _with_golden(folder, whole, "model.gguf")


def decoder_bundle(
    folder: Path, family: str = "mistral", *, chats: bool = False, scheme: str = "fp32", **changes: Any
) -> Bundle:
    """A bundle that writes in onnxruntime, with golden answers. changes: of the model's configuration."""
    table = table_of(make_bundle(family, folder, scheme=scheme, **changes))
    said: dict[str, Any] = {"name": "writer", "recipe": "writer", "output": "tokens", "tokenizer": "tokenizer.json"}
    said |= {key: table[key] for key in ("model", "max_length", "settings", "runtime")}
    said["settings"] |= {"chat": chats}
    whole = replace(read_as_whole(said), task="text-generation")
    (folder / "bundle.json").write_text(whole.to_json(), encoding="utf-8")
    return _with_golden(folder, whole, "model.onnx", "tokenizer.json", *([TEMPLATE] if chats else []))


def _with_golden(folder: Path, whole: Manifest, *names: str) -> Bundle:
    """A bundle of these files, and of its golden answers."""
    rows = answers(str(folder), ["turn the kitchen light on", "play"])
    (folder / GOLDEN).write_text(json.dumps({"format": 1, "of": "", "tolerance": 0.0, "rows": rows}))
    files = {name: folder / name for name in (*names, GOLDEN)}
    whole = whole.with_files(
        {name: FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path)) for name, path in files.items()}
    )
    (folder / "bundle.json").write_text(whole.to_json(), encoding="utf-8")
    return Bundle(folder=folder, manifest=whole)


def written(llama: Any, asked: str, template: str | None = None, most: int = 64) -> str:
    """What llama.cpp's likeliest tokens are as text: bytes of no character as U+FFFD, without a character's first bytes at the end.

    llama: llama-cpp-python's. The template is rendered by jinja2, its special tokens are read as such.
    """
    llama.reset()  # else what two texts begin with is read once, in another order of additions
    said = asked
    if template is not None:
        bos = llama.detokenize([llama.token_bos()], special=True).decode()
        messages = [{"role": "user", "content": asked}]
        said = jinja2.Template(template).render(messages=messages, bos_token=bos, add_generation_prompt=True)
    tokens = []
    for token in llama.generate(llama.tokenize(said.encode(), template is None, template is not None), temp=0.0):
        if token == llama.token_eos() or len(tokens) == most:
            break
        tokens.append(token)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(llama.detokenize(tokens))


def lay_app(bundle: Bundle, app: Path, platform: str = "c") -> Path:
    """What `edgekit embed` lays out, without its record."""
    embedding = find_embedding(bundle.manifest, platform)
    assert embedding is not None
    shutil.copytree(bundle.folder, app / "bundle", ignore=shutil.ignore_patterns("checkpoint", "__pycache__"))
    scratch = app / "made"
    scratch.mkdir()
    for name, source in {**embedding.files, **(embedding.make(bundle, scratch) if embedding.make else {})}.items():
        shutil.copyfile(source, app / name)
    shutil.rmtree(scratch)
    return app


def compile_app(app: Path, *more: str, compiler: str = "gcc", library: Path | None = None) -> Path:
    """The program of an app's sources over onnxruntime; library: a folder with another libonnxruntime.so than this system's."""
    found = library or library_folder(app / "lib")
    sources = sorted(path for path in app.glob("*.c"))
    command = [
        compiler,
        *FLAGS,
        *more,
        *map(str, sources),
        f"-I{header_folder()}",
        f"-L{found}",
        "-lonnxruntime",
        "-lm",
    ]
    return _compiled([*command, f"-Wl,-rpath,{found}", "-Wl,--allow-shlib-undefined"], app / "app")


def compile_writer(app: Path, *more: str, compiler: str = "gcc", library: Path | None = None) -> Path:
    """The program of an app's sources over llama.cpp; library: a folder with another libllama.so than that which is installed."""
    headers, found = llama_cpp.headers(), library or llama_cpp.installed()
    assert headers is not None
    assert found is not None
    sources = map(str, sorted(app.glob("*.c")))
    command = [
        compiler,
        *FLAGS,
        *more,
        *sources,
        f"-I{headers}",
        f"-L{found}",
        "-lllama",
        "-lggml",
        "-lggml-base",
        "-lm",
    ]
    return _compiled([*command, f"-Wl,-rpath,{found}", "-Wl,--allow-shlib-undefined"], app / "app")


def run_app(
    program: str | Path, *words: str | Path, said: str = "", before: Sequence[str | Path] = ()
) -> tuple[int, str, str]:
    """A program's exit code, what it writes (as loaders in Python show it: bytes that are no text are left out), and its last words."""
    command = [*before, program, *words]
    done = subprocess.run(command, input=said.encode(), capture_output=True, timeout=300, check=False)
    return done.returncode, done.stdout.decode(errors="ignore"), done.stderr.decode().strip()


def _compiled(command: Sequence[str], program: Path) -> Path:
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return program
