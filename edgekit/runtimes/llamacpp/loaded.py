"""A GGUF model in llama.cpp's memory, with one context: what it computes, and where.

llama-cpp-python's high-level class is not used: that one holds context x vocabulary floats.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes import machine
from edgekit.runtimes.llamacpp.library import (
    CPU,
    GPU,
    WARNING,
    Library,
    Line,
    LlamaError,
    Options,
    messages,
    open_library,
    resolved_attention,
)
from edgekit.runtimes.request import read_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Work

# Numbers of llama.h and ggml.h.
_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_POOLING = {None: -1, "mean": 1, "cls": 2, "last": 3}
_NO_POOLING, _RANK = 0, 4
_MOST_WARNINGS = 20

_BUFFER = re.compile(r":\s+(\S+)\s+(model|KV|RS|output|compute) buffer size =\s*([\d.]+) MiB")
_PLACED = re.compile(r"layer\s+(\d+) assigned to device ([^,]+),")


class _Handles:
    """What llama.cpp has allocated; freed once, by `close` or when its owner is forgotten."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.model: object = None
        self.context: object = None

    def free(self) -> None:
        if self.context or self.model:
            self._library.listen()
        if self.context:
            self._library.functions.llama_free(self.context)
        if self.model:
            self._library.functions.llama_model_free(self.model)
        self.context = self.model = None


class Loaded:
    """A model in memory with one context, which `reserve` replaces. Raises LlamaError for a file that llama.cpp does not load."""

    def __init__(self, file: Path, options: Mapping[str, object]) -> None:
        self.file, self.options = file, read_options(Options, options)
        self._log = open_library()
        self._library, self._handles = self._log.functions, _Handles(self._log)
        self._handles.model = self._log.load_model(file, gpu_layers=self.options.gpu_layers)
        if not self._handles.model:
            raise self._log.failure(file, "does not load it", "`edgekit inspect` on the file says what is in it")
        self._free = weakref.finalize(self, self._handles.free)
        self._loading, self._reserving = list(self._log.log), list[Line]()
        model = self._handles.model
        self.vocabulary: int = self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(model))
        self.width: int = self._library.llama_model_n_embd(model)
        self.longest: int = self._library.llama_model_n_ctx_train(model)
        self.most_sequences = int(self._library.llama_max_parallel_sequences())

    def reserve(self, *, context: int, batch: int, rows: int, embeddings: bool = False, sequences: int = 1) -> None:
        """A new, empty context of so many tokens, `batch` of them in one step and `rows` (at least 1) of those with logits.

        sequences: how many texts may share its tokens.

        Raises LlamaError where the model's own context is shorter, or llama.cpp cannot make it.
        """
        if context > self.longest > 0:
            raise LlamaError(
                f"{self.file}: {context} tokens of context are needed, the model has {self.longest}; shorten the prompts"
                " (data.max_length) or the answers, or lower context in [runtime.llama-cpp]"
            )
        library, wanted = self._library, self.options
        if self._handles.context:
            library.llama_free(self._handles.context)
            self._handles.context = None
        self._log.listen()
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_outputs_max = context, batch, batch, rows
        if sequences > 1:
            settings.n_seq_max, settings.kv_unified = sequences, True
        settings.n_threads = wanted.threads or int(machine.describe()["cores"])
        settings.n_threads_batch = wanted.threads_batch or settings.n_threads
        settings.type_k, settings.type_v = _KV_TYPES[wanted.kv_k], _KV_TYPES[wanted.kv_v]
        settings.flash_attn_type = _FLASH_ATTENTION[self.flash_attention]
        settings.embeddings = embeddings
        settings.pooling_type = _POOLING[wanted.pooling] if embeddings else -1
        # As in bundles' loaders: what slid out of a window is kept, and the next turn of a conversation goes on from it.
        settings.swa_full = True
        settings.offload_kqv = settings.op_offload = wanted.gpu_layers != 0
        self._handles.context = library.llama_init_from_model(self._model, settings)
        if not self._handles.context:
            raise self._log.failure(
                self.file,
                f"makes no context of {context} tokens",
                "see kv_k, kv_v and flash_attention in [runtime.llama-cpp], and free some memory",
            )
        self.threads = (int(settings.n_threads), int(settings.n_threads_batch))
        self._reserving = list(self._log.log)

    @property
    def flash_attention(self) -> str:
        """As asked, or what "auto" comes to."""
        return resolved_attention(self.options)

    @property
    def _model(self) -> object:
        if not self._handles.model:
            raise LlamaError(f"{self.file}: it was closed; open it again")
        return self._handles.model

    @property
    def _context(self) -> object:
        if not self._handles.context:
            raise LlamaError(f"{self.file}: it was closed, or its last context could not be made; open it again")
        return self._handles.context

    @property
    def memory(self) -> object:
        """What keeps the tokens that were fed; None for an encoder."""
        return self._library.llama_get_memory(self._context)

    def clear(self) -> None:
        """Forget all tokens."""
        if self.memory:
            self._library.llama_memory_clear(self.memory, False)

    def decode(self, ids: NDArray[np.int32], marked: NDArray[np.int8]) -> None:
        """Feed ids, at most a batch, behind those before; those that are marked give an output. Waits until all is done."""
        # llama.cpp tracks positions itself, of the one sequence that there is.
        batch = self._library.llama_batch(n_tokens=len(ids))
        batch.token = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.logits = marked.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._log.log.clear()
        if self._library.llama_decode(self._context, batch) != 0:
            raise self._log.failure(
                self.file, f"does not take {len(ids)} tokens", "do they come from this model's tokenizer?"
            )
        self._library.llama_synchronize(self._context)

    def decode_branches(self, prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> None:
        """Feed a text, and behind it each branch as a sequence of its own, in one step of an empty context.

        The prefix's last token gives an output, and then every token of the branches, in their order.
        """
        every = (ctypes.c_int32 * len(branches))(*range(len(branches)))
        own = [(ctypes.c_int32 * 1)(index) for index in range(len(branches))]
        fed = [(token, place, every, place == len(prefix) - 1) for place, token in enumerate(prefix)]
        fed += [
            (token, len(prefix) + place, own[index], True)
            for index, branch in enumerate(branches)
            for place, token in enumerate(branch)
        ]
        pointer = ctypes.POINTER(ctypes.c_int32)
        tokens, places, sequences, marked = zip(*fed, strict=True)
        batch = self._library.llama_batch(n_tokens=len(fed))
        batch.token = (ctypes.c_int32 * len(fed))(*tokens)
        batch.pos = (ctypes.c_int32 * len(fed))(*places)
        batch.n_seq_id = (ctypes.c_int32 * len(fed))(*map(len, sequences))
        batch.seq_id = (pointer * len(fed))(*(ctypes.cast(one, pointer) for one in sequences))
        batch.logits = (ctypes.c_int8 * len(fed))(*marked)
        self._log.log.clear()
        if self._library.llama_decode(self._context, batch) != 0:
            raise self._log.failure(
                self.file,
                f"does not take {len(fed)} tokens of {len(branches)} texts",
                "do they come from this model's tokenizer?",
            )
        self._library.llama_synchronize(self._context)

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The logits [rows, vocabulary] of the last step's marked tokens; llama.cpp's memory, until the next step."""
        import numpy as np

        found = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (rows, self.vocabulary))

    def embedding(self) -> NDArray[np.float32]:
        """The last step's pooled output [width], not normalized."""
        import numpy as np

        library, model, context = self._library, self._model, self._context
        pooling = library.llama_pooling_type(context)
        if pooling == _NO_POOLING:
            raise LlamaError(
                f"{self.file}: it says no pooling, so it gives a row per token; set pooling in [runtime.llama-cpp] ("
                + ", ".join(str(name) for name in _POOLING if name)
                + ")"
            )
        width = library.llama_model_n_cls_out(model) if pooling == _RANK else library.llama_model_n_embd_out(model)
        return np.ctypeslib.as_array(library.llama_get_embeddings_seq(context, 0), (width,)).copy()

    def work(self) -> Work:
        """Where it runs and in what memory, by what llama.cpp logged and counted.

        provider; layers (the output counted as one) and how many of them were offloaded to which devices; buffers: MiB by kind
        (model, kv, output, compute) and device; weights_mb and parameters of the file; flash_attention; threads; instructions
        that llama.cpp was built for and found; its warnings.
        """
        library, model = self._library, self._model
        return work_of(
            Told(
                loading=self._loading,
                reserving=self._reserving,
                layers=library.llama_model_n_layer(model),
                bytes=library.llama_model_size(model),
                parameters=library.llama_model_n_params(model),
                attention=self.flash_attention,
                threads=self.threads,
                system=library.llama_print_system_info().decode(),
            )
        )

    def close(self) -> None:
        """Free the context and the model."""
        self._free()


@dataclass(frozen=True, kw_only=True)
class Told:
    """What llama.cpp told of a model and its context. loading, reserving: what it logged meanwhile; layers: without the output;
    bytes: of the weights; attention: as it was asked for; threads: for new tokens and for prompts; system: its instructions."""

    loading: Sequence[Line]
    reserving: Sequence[Line]
    layers: int
    bytes: int
    parameters: int
    attention: str
    threads: tuple[int, int]
    system: str


def work_of(told: Told) -> Work:
    """What `Loaded.work` says, from what was told."""
    placed = {match[1]: match[2] for match in _matches(_PLACED, told.loading)}
    devices = [device for device in placed.values() if device != CPU]
    auto = not any("Flash Attention not supported" in line.text for line in told.reserving)
    lines = [*told.loading, *told.reserving]
    return {
        "provider": GPU if devices else CPU,
        "layers": told.layers + 1,
        "offloaded": len(devices),
        "devices": sorted(set(devices)),
        "buffers": _buffers(lines),
        "weights_mb": told.bytes / (1 << 20),
        "parameters": told.parameters,
        "flash_attention": {"on": True, "off": False, "auto": auto}[told.attention],
        "threads": dict(zip(("decode", "prefill"), told.threads, strict=True)),
        "instructions": re.findall(r"(\w+) = 1", told.system),
        "warnings": messages(WARNING, lines)[:_MOST_WARNINGS],
    }


def _matches(pattern: re.Pattern[str], lines: Iterable[Line]) -> Iterable[re.Match[str]]:
    return filter(None, (pattern.search(line.text) for line in lines))


def _buffers(lines: Iterable[Line]) -> dict[str, dict[str, float]]:
    """MiB by kind and device. Weights and caches may lie in several buffers, of the others the last word counts."""
    found: dict[str, dict[str, float]] = {}
    for match in _matches(_BUFFER, lines):
        device, kind, size = match.groups()
        kinds = found.setdefault({"KV": "kv", "RS": "kv"}.get(kind, kind), {})
        before = kinds.get(device, 0.0) if kind in {"model", "KV", "RS"} else 0.0
        kinds[device] = round(before + float(size), 2)
    return found
