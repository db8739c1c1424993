"""Talks through an edgekit bundle: `Bundle("folder")("Tell me a story.")`. Needs onnxruntime, tokenizers, jinja2, numpy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from runpy import run_path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

CHECK = run_path(str(Path(__file__).with_name("check.py")))  # without `check`: no hash, no golden answer


class Bundle:
    """An open bundle; `threads`, or a tuning.json with them, overrides those of its manifest (0: the runtime decides)."""

    def __init__(
        self, folder: str | Path, *, threads: int | Path | None = None, provider: str | None = None, check: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = CHECK["read"](self.folder, "onnxruntime", onnxruntime.__version__, check)
        runtime, settings = self.manifest["runtime"], self.manifest["settings"]
        threads = CHECK["tuned"](self.manifest, threads)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of the input that has a default
        options.intra_op_num_threads = (runtime["threads"] or 0) if threads is None else threads
        for key, value in runtime["config_entries"].items():
            options.add_session_config_entry(key, value)
        wanted = dict.fromkeys([provider or runtime["provider"], "CPUExecutionProvider"])
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        if "CUDAExecutionProvider" in providers:
            onnxruntime.preload_dlls()  # CUDA and cuDNN where pip puts them
        given = {"providers": providers, "disabled_optimizers": runtime["disabled_optimizers"]}
        model, kind = self.folder / self.manifest["model"], onnxruntime.InferenceSession
        self.session = CHECK["opened"](model, lambda file: kind(file, options, **given))
        self.binding, self.logits = self.session.io_binding(), self.session.get_outputs()[0].name
        self.binding.bind_output(self.logits)  # the first to be bound is the first of get_outputs()
        one = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(1, dtype=np.int64))
        self.binding.bind_ortvalue_input("num_logits_to_keep", one)
        facts = self.session.get_modelmeta().custom_metadata_map
        self.context = int(facts["edgekit.context"])
        self.switch = int(facts.get("edgekit.rope_switch", self.context))  # longer texts rotate all keys otherwise
        self.room, self.caches, self.fed = 0, dict[str, np.typing.NDArray[Any]](), list[int]()
        self.tokenizer: Tokenizer = CHECK["opened"](self.folder / "tokenizer.json", Tokenizer.from_file)
        self.tokenizer.no_truncation()
        self.stops = {self.tokenizer.token_to_id(text) for text in settings["stop"]}
        self.special, self.chats, self.parts = settings["special"], bool(settings["chat"]), bool(settings.get("parts"))
        # What a person types is text, also where it looks like a token of the model's own; a template writes tokens.
        self.tokenizer.encode_special_tokens = not self.chats
        self.template = _compile(self.folder / "chat_template.jinja") if self.chats else None
        self.times: dict[str, float] = CHECK["golden"](self, check)  # ms: {"cold": ..., "warm": ...}

    def stream(
        self, said: str | Sequence[Mapping[str, Any]], *, max_tokens: int | None = None, temperature: float = 0.0,
        min_p: float = 0.05, seed: int | None = None, tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[str]:  # fmt: skip
        """The answer piece by piece, as it is made, until the model ends it or the context is full.

        said: a text, or messages of {"role", "content"}; a model without a chat template continues a text. A temperature of 0
        takes the likeliest token each time; else tokens less likely than min_p times the likeliest are never taken.
        """
        ids, random = self.tokens(said, tools), np.random.default_rng(seed)
        if not 0 < len(ids) < self.context:  # without a first token there is nothing to go on with
            raise ValueError(f"{len(ids)} tokens do not fit: this model goes on with 1 to {self.context - 1}")
        begin, end = len(ids) - 1, len(ids)  # what was shown last: a token's text may depend on the one before
        last = self.context if max_tokens is None else min(self.context, len(ids) + max_tokens)
        while len(ids) < last:
            scores: Any = self.read(ids)
            if temperature > 0:
                scores = np.where(scores < scores.max() + np.log(min_p), -np.inf, scores) / temperature
                scores += random.gumbel(size=len(scores))  # the largest is then a sample of the softmax
            ids.append(int(scores.argmax()))
            if ids[-1] in self.stops:
                return
            before, text = self.tokenizer.decode(ids[begin:end]), self.tokenizer.decode(ids[begin:])
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else bytes of a character are missing
                yield text[len(before) :]
                begin, end = end, len(ids)

    def __call__(self, said: str | Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The whole answer; see `stream`."""
        return "".join(self.stream(said, **options))

    def tokens(self, said: str | Sequence[Mapping[str, Any]], tools: Any = None) -> list[int]:
        """The token ids of a text to continue, or of a conversation that the model is to answer."""
        if self.template is None and not isinstance(said, str):
            raise TypeError("this model has no chat template: give it one text to continue")
        if self.template is None:
            return list(self.tokenizer.encode(said).ids)
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        if self.parts:  # the template walks over what a message says
            plain = [said | {"content": [{"type": "text", "text": said["content"]}]}
                     if isinstance(said.get("content"), str) else said for said in plain]  # fmt: skip
        text = self.template.render(messages=plain, tools=tools, add_generation_prompt=True, **self.special)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def read(self, ids: Sequence[int]) -> np.typing.NDArray[np.float32]:
        """The logits [vocabulary] behind the last token; those that the model read before and keeps are not read again."""
        alike = (place for place, (one, other) in enumerate(zip(self.fed, ids, strict=False)) if one != other)
        kept = next(alike, min(len(self.fed), len(ids) - 1))
        if (len(self.fed) > self.switch) != (len(ids) > self.switch):
            kept = 0
        if len(ids) > self.room and self._grow(len(ids)):
            kept = 0
        self.fed = list(ids[:kept])  # should a call fail, no more than this is still in the caches
        step = len(ids) if len(ids) > self.switch else 512  # bounds the memory that attention takes
        for begin in range(kept, len(ids), step):
            piece = np.array([ids[begin : begin + step]], dtype=np.int64)
            self.binding.bind_cpu_input("input_ids", piece)
            self.binding.bind_cpu_input("attention_mask", np.ones((1, begin + piece.size), dtype=np.int64))
            self.binding.bind_output(self.logits)
            self.session.run_with_iobinding(self.binding)
        self.fed = list(ids)
        return np.asarray(self.binding.get_outputs()[0].numpy()[0, -1], dtype=np.float32)

    def _grow(self, total: int) -> bool:
        """Make the key/value caches, read and written in place, hold `total` tokens; True where they are empty then."""
        self.room = min(self.context, max(256, 2 * total))
        pasts = [value for value in self.session.get_inputs() if len(value.shape) == 4]
        memory = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}.get(self.session.get_providers()[0])
        for past, present in zip(pasts, self.session.get_outputs()[1:], strict=True):
            kind = np.float16 if past.type == "tensor(float16)" else np.float32
            cache = np.zeros((1, past.shape[1], self.room, past.shape[3]), dtype=kind)
            old = self.caches.get(past.name, cache[:, :, :0])
            cache[:, :, : old.shape[2]] = old
            value = onnxruntime.OrtValue.ortvalue_from_numpy(cache)  # the same memory
            if memory:  # a GPU reads and writes them in its own
                host, value = value, self.session.create_ortvalue_from_shape_and_type(cache.shape, kind, memory)
                onnxruntime.copy_tensors([host], [value])
            self.binding.bind_ortvalue_input(past.name, value)
            self.binding.bind_ortvalue_output(present.name, value)
            self.caches[past.name] = cache[:, :, :0] if memory else cache
        return memory is not None


def _compile(file: Path) -> Any:
    """A chat template as transformers reads it, in a sandbox: it is code that came with the model."""
    loops = ["jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=loops)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **({"ensure_ascii": False} | options))
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    marked = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")  # training's marks; the text is the same
    return environment.from_string(marked.sub(r"\1\2with\3", file.read_text(encoding="utf-8")))


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)
