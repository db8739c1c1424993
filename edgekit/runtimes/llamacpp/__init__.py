"""llama.cpp: GGUF files through llama-cpp-python's low-level interface; embeddings of encoders, next-token logits of decoders.

llama.cpp logs where others raise or tell: its log is kept and never shown, and says what went wrong, on which device the layers
lie and what memory was reserved. Its high-level class is not used: that one holds context x vocabulary floats.
"""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.runtimes import machine
from edgekit.runtimes.llama_memory import predict_memory
from edgekit.runtimes.memory import Demand, Memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = Sequence[int] | NDArray[np.integer]

NAME = "llama-cpp"
CPU, GPU = "CPU", "GPU"
# Numbers of llama.h and ggml.h.
_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_POOLING = {None: -1, "mean": 1, "cls": 2, "last": 3}
_NO_POOLING, _RANK = 0, 4
_WARNING, _ERROR, _CONTINUED = 3, 4, 5
_MOST_WARNINGS = 20

_BUFFER = re.compile(r":\s+(\S+)\s+(model|KV|RS|output|compute) buffer size =\s*([\d.]+) MiB")
_PLACED = re.compile(r"layer\s+(\d+) assigned to device ([^,]+),")
# An embedder's context grows to the longest text in doubling steps: its buffers grow with the square of it.
_SHORTEST = 256
# The first tokens of a cache that grows: a model's own context may need more memory than there is.
_ROOM = 512


class LlamaError(RuntimeError):
    """What llama.cpp does not load or run, in its own words and with a remedy."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """`[runtime.llama-cpp]` of a target.

    threads write tokens, threads_batch read prompts (None: as many as threads, and those as many as cores). context: tokens that
    fit into the cache (0: what is needed). batch: tokens of a prompt in one step. kv_k and kv_v: the cache's types. gpu_layers:
    how many go to the GPU, the output counted as one (-1: all). pooling: an embedder's, where its file does not say it right.
    Float32 caches (f32) mean float32 attention: flash attention then is off unless it is asked for.
    """

    threads: int | None = None
    threads_batch: int | None = None
    context: int = 0
    batch: int = 512
    kv_k: Literal["f32", "f16", "bf16", "q8_0"] = "f16"
    kv_v: Literal["f32", "f16", "bf16", "q8_0"] = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    gpu_layers: int = 0
    pooling: Literal["mean", "cls", "last"] | None = None


@dataclass(frozen=True, kw_only=True)
class _Line:
    level: int
    text: str


# What llama.cpp logged since `_listen`; a model of a hundred layers writes about a thousand lines.
_LOG: deque[_Line] = deque(maxlen=8192)


@cache
def _library() -> Any:
    """llama_cpp's ctypes functions, with llama.cpp initialized."""
    import llama_cpp.llama_cpp as library

    library.llama_backend_init()
    return library


@cache
def _callback() -> Any:
    """The log's receiver: made once, since llama.cpp keeps its address."""

    def note(level: int, text: bytes, _: object) -> None:
        words = text.decode("utf-8", "replace")
        if level == _CONTINUED and _LOG:
            words = _LOG[-1].text + words
            level = _LOG.pop().level
        _LOG.append(_Line(level=level, text=words))

    return _library().llama_log_callback(note)


def _listen() -> None:
    """Forget what was logged and listen from here on; another user of the library may have taken the log meanwhile."""
    _library().llama_log_set(_callback(), None)
    _LOG.clear()


def _told(level: int, lines: Iterable[_Line]) -> list[str]:
    """The different lines of one level, without the name of the function that wrote them."""
    texts = (re.sub(r"^\w+: ", "", line.text.strip()) for line in lines if line.level == level)
    return list(dict.fromkeys(text for text in texts if text))


def _failure(file: Path, what: str, remedy: str) -> LlamaError:
    """The first error in the log says why, those behind it say who else failed for it."""
    why = next(iter([*_told(_ERROR, _LOG), *_told(_WARNING, _LOG)]), "it does not say why")
    return LlamaError(f"{file}: llama.cpp {what}: {why}; {remedy}")


class _Handles:
    """What llama.cpp has allocated; freed once, by `close` or when its owner is forgotten."""

    def __init__(self) -> None:
        self.model: Any = None
        self.context: Any = None

    def free(self) -> None:
        if self.context or self.model:
            _listen()
        if self.context:
            _library().llama_free(self.context)
        if self.model:
            _library().llama_model_free(self.model)
        self.context = self.model = None


class Loaded:
    """A model in memory with one context, which `reserve` replaces. Raises LlamaError for a file that llama.cpp does not load."""

    def __init__(self, file: Path, options: Mapping[str, Any]) -> None:
        self.file, self.options = file, Options(**dict(options))
        self._library, self._handles = _library(), _Handles()
        _listen()
        settings = self._library.llama_model_default_params()
        settings.n_gpu_layers = self.options.gpu_layers
        # An empty list of devices: otherwise llama.cpp hands a GPU long prompts even where it holds no layer.
        nothing = (ctypes.c_void_p * 1)()
        if self.options.gpu_layers == 0:
            settings.devices = ctypes.cast(nothing, ctypes.c_void_p)
        self._handles.model = self._library.llama_model_load_from_file(os.fsencode(file), settings)
        if not self._handles.model:
            remedy = "`edgekit inspect` on the file says what is in it"
            raise _failure(file, "does not load it", remedy)
        self._free = weakref.finalize(self, self._handles.free)
        self._loading, self._reserving = list(_LOG), list[_Line]()
        model = self._handles.model
        self.vocabulary: int = self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(model))
        self.width: int = self._library.llama_model_n_embd(model)
        self.longest: int = self._library.llama_model_n_ctx_train(model)

    def reserve(self, *, context: int, batch: int, rows: int, embeddings: bool = False) -> None:
        """A new, empty context of so many tokens, `batch` of them in one step and `rows` (at least 1) of those with logits.

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
        _listen()
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_outputs_max = context, batch, batch, rows
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
            raise _failure(
                self.file,
                f"makes no context of {context} tokens",
                "see kv_k, kv_v and flash_attention in [runtime.llama-cpp], and free some memory",
            )
        self.threads = (int(settings.n_threads), int(settings.n_threads_batch))
        self._reserving = list(_LOG)

    @property
    def flash_attention(self) -> str:
        """As asked, or what "auto" comes to."""
        return _resolved(self.options)

    @property
    def _model(self) -> Any:
        if not self._handles.model:
            raise LlamaError(f"{self.file}: it was closed; open it again")
        return self._handles.model

    @property
    def _context(self) -> Any:
        if not self._handles.context:
            raise LlamaError(f"{self.file}: it was closed, or its last context could not be made; open it again")
        return self._handles.context

    @property
    def memory(self) -> Any:
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
        _LOG.clear()
        if self._library.llama_decode(self._context, batch) != 0:
            raise _failure(self.file, f"does not take {len(ids)} tokens", "do they come from this model's tokenizer?")
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

    def work(self) -> dict[str, Any]:
        """Where it runs and in what memory, by what llama.cpp logged and counted.

        provider; layers (the output counted as one) and how many of them were offloaded to which devices; buffers: MiB by kind
        (model, kv, output, compute) and device; weights_mb and parameters of the file; flash_attention; threads; instructions
        that llama.cpp was built for and found; its warnings.
        """
        library, model = self._library, self._model
        placed = {match[1]: match[2] for match in _matches(_PLACED, self._loading)}
        devices = [device for device in placed.values() if device != CPU]
        auto = not any("Flash Attention not supported" in line.text for line in self._reserving)
        lines = [*self._loading, *self._reserving]
        return {
            "provider": GPU if devices else CPU,
            "layers": library.llama_model_n_layer(model) + 1,
            "offloaded": len(devices),
            "devices": sorted(set(devices)),
            "buffers": _buffers(lines),
            "weights_mb": library.llama_model_size(model) / (1 << 20),
            "parameters": library.llama_model_n_params(model),
            "flash_attention": {"on": True, "off": False, "auto": auto}[self.flash_attention],
            "threads": dict(zip(("decode", "prefill"), self.threads, strict=True)),
            "instructions": re.findall(r"(\w+) = 1", library.llama_print_system_info().decode()),
            "warnings": _told(_WARNING, lines)[:_MOST_WARNINGS],
        }

    def close(self) -> None:
        """Free the context and the model."""
        self._free()


def _matches(pattern: re.Pattern[str], lines: Iterable[_Line]) -> Iterable[re.Match[str]]:
    return filter(None, (pattern.search(line.text) for line in lines))


def _buffers(lines: Iterable[_Line]) -> dict[str, dict[str, float]]:
    """MiB by kind and device. Weights and caches may lie in several buffers, of the others the last word counts."""
    found: dict[str, dict[str, float]] = {}
    for match in _matches(_BUFFER, lines):
        device, kind, size = match.groups()
        kinds = found.setdefault({"KV": "kv", "RS": "kv"}.get(kind, kind), {})
        before = kinds.get(device, 0.0) if kind in {"model", "KV", "RS"} else 0.0
        kinds[device] = round(before + float(size), 2)
    return found


class Session:
    """An embedder: all of a text's tokens at once, one row back."""

    def __init__(self, file: Path, options: Mapping[str, Any]) -> None:
        """Raises LlamaError for a file that llama.cpp does not load."""
        self._loaded = Loaded(file, options)
        self._room = 0
        self.table: int = self._loaded.vocabulary * self._loaded.width

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """The pooled output [width] for one text's token ids, not normalized. Raises LlamaError where they are too many."""
        import numpy as np

        tokens = np.ascontiguousarray(ids, dtype=np.int32)
        if len(tokens) > self._room:
            self._grow(len(tokens))
        self._loaded.clear()
        self._loaded.decode(tokens, np.ones(len(tokens), dtype=np.int8))
        return self._loaded.embedding()

    def _grow(self, tokens: int) -> None:
        """Attention to both sides needs a whole text in one step (n_ubatch), and learned positions end with the model's."""
        wanted = max(tokens, self._loaded.options.context, _SHORTEST)
        room = max(tokens, min(1 << (wanted - 1).bit_length(), self._loaded.longest))
        self._loaded.reserve(context=room, batch=room, rows=room, embeddings=True)
        self._room = room

    def work(self) -> dict[str, Any]:
        """See `Loaded.work`."""
        return self._loaded.work()

    def close(self) -> None:
        """Free the context and the model."""
        self._loaded.close()


class Generator:
    """A decoder that is fed token by token or many at once, and keeps what it was fed.

    Its cache takes the context that the options ask for; where they ask for none it doubles as it fills, up to the model's own.
    """

    def __init__(self, file: Path, options: Mapping[str, Any]) -> None:
        """Raises LlamaError for a file that is no decoder, and for a context that is longer than the model's."""
        self._loaded = Loaded(file, options)
        wanted = self._loaded.options
        self.vocabulary = self._loaded.vocabulary
        self.context: int = wanted.context or self._loaded.longest
        self._room, self._rows = min(wanted.context or _ROOM, self.context), 1
        self._fed: list[int] = []
        self._reserve()
        if not self._loaded.memory:
            raise LlamaError(f"{file}: an encoder, which does not generate; export it for feature-extraction")

    def _reserve(self) -> None:
        self._batch = min(self._loaded.options.batch, self._room)
        self._loaded.reserve(context=self._room, batch=self._batch, rows=min(self._rows, self._batch))

    def clear(self) -> None:
        """Forget what was fed."""
        self._loaded.clear()
        self._fed.clear()

    def logits(self, ids: Ids, wanted: slice | None = None) -> NDArray[np.float32]:
        """Feed ids behind what was fed before; the logits [n, vocabulary] at the wanted ones of them (None: at all).

        Raises LlamaError where they are more than the context, or a token is none of the vocabulary's; then `clear` it.
        """
        import numpy as np

        tokens = np.ascontiguousarray(ids, dtype=np.int32)
        marked = np.zeros(len(tokens), dtype=np.int8)
        marked[wanted if wanted is not None else slice(None)] = 1
        rows = int(marked.sum())
        self._make_room(len(self._fed) + len(tokens), rows)
        found, done = np.empty((rows, self.vocabulary), dtype=np.float32), 0
        for begin in range(0, len(tokens), self._batch):
            piece = slice(begin, begin + self._batch)
            self._loaded.decode(tokens[piece], marked[piece])
            if count := int(marked[piece].sum()):
                found[done : done + count] = self._loaded.logits(count)
                done += count
        self._fed.extend(tokens.tolist())
        return found

    def _make_room(self, tokens: int, rows: int) -> None:
        """A larger context where this one is too small, with what was fed before fed again.

        Rows count too: llama.cpp reserves rows x vocabulary floats, so that many logits at once are paid by who asks for them.
        """
        if tokens > self.context:
            raise LlamaError(
                f"{self._loaded.file}: {tokens} tokens do not fit into a context of {self.context}; shorten them, or raise"
                " context in [runtime.llama-cpp] as far as the model's reaches"
            )
        if tokens <= self._room and min(rows, self._batch) <= self._rows:
            return
        if tokens > self._room:
            self._room = min(1 << (tokens - 1).bit_length(), self.context)
        self._rows = max(self._rows, 1 << max(rows - 1, 0).bit_length())
        self._reserve()
        fed = list(self._fed)
        self._fed.clear()
        if fed:
            self.logits(fed, slice(0))

    def work(self) -> dict[str, Any]:
        """See `Loaded.work`; kv: the cache's types."""
        return self._loaded.work() | {"kv": [self._loaded.options.kv_k, self._loaded.options.kv_v]}

    def close(self) -> None:
        """Free the context and the model."""
        self._loaded.close()


def version() -> str:
    """llama-cpp-python's version, which says which llama.cpp it brought."""
    import llama_cpp

    return str(llama_cpp.__version__)


def providers() -> list[str]:
    """CPU, and GPU before it where this build has one and finds one."""
    return [GPU, CPU] if _library().llama_supports_gpu_offload() else [CPU]


def load_errors() -> tuple[type[Exception], ...]:
    """What this module raises for a model that llama.cpp does not load or cannot run."""
    return (LlamaError,)


def joined(target: Mapping[str, Any], artifact: Mapping[str, Any]) -> dict[str, Any]:
    """A session's options: a target's `[runtime.llama-cpp]` with what the artifact needs, which wins.

    The artifact's `longest` is the model's own context: no session has a longer one.
    """
    wanted = {**target, **artifact}
    longest = wanted.pop("longest", None)
    chosen = Options(**wanted)
    options = vars(chosen) | {"flash_attention": _resolved(chosen)}
    return options | {"context": min(options["context"], longest)} if longest else options


def memory(demand: Demand, options: Mapping[str, Any]) -> Memory:
    """What an artifact needs here."""
    return predict_memory(demand, Options(**dict(options)))


def _resolved(options: Options) -> str:
    """As asked; auto is off for a cache of float32, which it would round to 16 bits (llama-graph.cpp, build_attn_mha)."""
    exact = options.kv_k == options.kv_v == "f32"
    return "off" if exact and options.flash_attention == "auto" else options.flash_attention


def load(file: Path, options: Mapping[str, Any]) -> Session:
    """Open an embedder."""
    return Session(file, options)


def generator(file: Path, options: Mapping[str, Any]) -> Generator:
    """Open a decoder."""
    return Generator(file, options)


def outputs(
    file: Path, ids: Sequence[Sequence[int]], *, pad_id: int, options: Mapping[str, Any]
) -> NDArray[np.float32]:
    """The outputs [n, width] of n encoded texts, each run by itself and unpadded, as an app would; an empty one is `pad_id`."""
    import numpy as np

    session = load(file, options)
    rows = np.stack([session.run(row or [pad_id]) for row in ids])
    session.close()
    return rows


def work(file: Path, options: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    """What one call of an embedder on `ids` does: `Loaded.work` with matmul_ops by provider and weight_bytes.

    Every parameter outside the embedding table is taken for a matrix's (a multiplication and an addition for each token), and
    the table for as densely stored as the rest: llama.cpp tells no tensor's size.
    """
    session = load(file, options)
    session.run(ids)
    found = session.work()
    session.close()
    matrices = found["parameters"] - session.table
    operations, share = 2 * matrices * len(ids), found["offloaded"] / found["layers"]
    by_provider = {GPU: round(operations * share), CPU: round(operations * (1 - share))}
    return found | {
        "matmul_ops": {name: count for name, count in by_provider.items() if count},
        "weight_bytes": round(found["weights_mb"] * (1 << 20) * matrices / found["parameters"]),
    }
