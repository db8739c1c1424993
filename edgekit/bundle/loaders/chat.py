"""Talks through an edgekit bundle: `Bundle("folder")("Tell me a story.")`. Needs llama-cpp-python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

import llama_cpp

CHECK = run_path(str(Path(__file__).with_name("check.py")))  # without `check`: no hash, no golden answer
GGML_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # ggml.h; llama_cpp names no bf16


class Bundle:
    """An open bundle; `threads`, or a tuning.json with them, and `context` (tokens of all that is said) override its manifest."""

    def __init__(
        self, folder: str | Path, *, threads: int | Path | None = None, context: int | None = None, check: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = CHECK["read"](self.folder, "llama-cpp-python", llama_cpp.__version__, check)
        runtime = self.manifest["runtime"]
        threads = CHECK["tuned"](self.manifest, threads) or runtime["threads"] or os.cpu_count()
        given: dict[str, Any] = dict(
            n_ctx=context or runtime["context"] or self.manifest["max_length"],
            n_threads=threads,
            n_threads_batch=runtime["threads_batch"] or threads,
            **{f"n_{key}": runtime[key] for key in ("batch", "gpu_layers")},
            **{f"type_{key}": GGML_TYPES[runtime[f"kv_{key}"]] for key in "kv"},
            flash_attn=runtime["flash_attention"] != "off",
            chat_format="chat_template.default",  # the file's own; unasked, llama_cpp uses one that looks alike
            verbose=False,
        )
        model = self.folder / self.manifest["model"]
        self.llama: llama_cpp.Llama = CHECK["opened"](model, lambda file: llama_cpp.Llama(file, **given))
        self.chats = "tokenizer.chat_template" in self.llama.metadata
        self.times: dict[str, float] = CHECK["golden"](self, check)  # ms: {"cold": ..., "warm": ...}

    def stream(self, said: str | Sequence[Any], **options: Any) -> Iterator[str]:
        """The answer to a text, messages or tokens, in pieces; options: llama_cpp's (max_tokens, temperature, tools, ...)."""
        options = {"max_tokens": None, "temperature": 0.0, **options, "stream": True}
        if not (ids := [part for part in said if isinstance(part, int)]) and self.chats:
            messages = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
            if self.manifest["settings"].get("parts"):  # the template walks over what a message says
                messages = [turn | {"content": [{"type": "text", "text": turn["content"]}]}
                            if isinstance(turn.get("content"), str) else turn for turn in map(dict, messages)]  # fmt: skip
            for part in self.llama.create_chat_completion(messages, **options):
                yield part["choices"][0]["delta"].get("content") or ""
        elif ids or isinstance(said, str):
            for part in self.llama.create_completion(ids or self.llama.tokenize(str(said).encode()), **options):
                yield part["choices"][0]["text"]
        else:
            raise TypeError("this model has no chat template: give it one text to continue")

    def __call__(self, said: str | Sequence[Any], **options: Any) -> str:
        """The whole answer; see `stream`."""
        return "".join(self.stream(said, **options))
