"""The one place that opens llama.cpp, through llama-cpp-python's low-level interface, and that hears its log.

llama.cpp logs where others raise or tell: its log is kept and never shown, and says what went wrong, on which device the layers
lie and what memory was reserved.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edgekit.runtimes.package import Package

CPU, GPU = "CPU", "GPU"
PACKAGE = Package(module="llama_cpp", name="llama-cpp-python", extra="gguf")
# The variable that names a folder with another build of llama.cpp.
FOLDER = "LLAMA_CPP_LIB_PATH"
# Log levels of ggml.h, and llama.h's type of an override that is a string.
WARNING, ERROR, _CONTINUED = 3, 4, 5
_STRING_OVERRIDE = 3
# A model of a hundred layers writes about a thousand lines.
_MOST_LINES = 8192


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


def resolved_attention(options: Options) -> str:
    """Flash attention as asked; auto is off for a cache of float32, which it would round to 16 bits (llama-graph.cpp,
    build_attn_mha)."""
    exact = options.kv_k == options.kv_v == "f32"
    return "off" if exact and options.flash_attention == "auto" else options.flash_attention


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of llama.cpp's log."""

    level: int
    text: str


def messages(level: int, lines: Iterable[Line]) -> list[str]:
    """The different lines of one level, without the name of the function that wrote them."""
    texts = (re.sub(r"^\w+: ", "", line.text.strip()) for line in lines if line.level == level)
    return list(dict.fromkeys(text for text in texts if text))


class Library:
    """llama.cpp, initialized. functions: those of llama.h; log: its lines since `listen`; starting: those of its start, when its
    backends look for their devices."""

    def __init__(self) -> None:
        import llama_cpp.llama_cpp as functions

        self.functions: Any = functions
        self.log: deque[Line] = deque(maxlen=_MOST_LINES)
        # Made once, since llama.cpp keeps its address.
        self._callback = functions.llama_log_callback(self._note)
        self.listen()
        functions.llama_backend_init()
        functions.llama_supports_gpu_offload()  # which makes the backends look
        self.starting = tuple(self.log)

    def _note(self, level: int, text: bytes, _: object) -> None:
        words = text.decode("utf-8", "replace")
        if level == _CONTINUED and self.log:
            before = self.log.pop()
            level, words = before.level, before.text + words
        self.log.append(Line(level=level, text=words))

    def listen(self) -> None:
        """Forget what was logged and listen from here on; another user of the library may have taken the log meanwhile."""
        self.functions.llama_log_set(self._callback, None)
        self.log.clear()

    def failure(self, file: Path, what: str, remedy: str) -> LlamaError:
        """The first error in the log says why, those behind it say who else failed for it."""
        why = next(iter([*messages(ERROR, self.log), *messages(WARNING, self.log)]), "it does not say why")
        return LlamaError(f"{file}: llama.cpp {what}: {why}; {remedy}")

    def load_model(
        self, file: Path, *, gpu_layers: int = 0, only_vocabulary: bool = False, pre: str | None = None
    ) -> Any:
        """A model in memory, to be freed by llama_model_free; None where llama.cpp does not load it: the log says why.

        pre: a pre-tokenizer to use instead of the file's tokenizer.ggml.pre.
        """
        self.listen()
        settings = self.functions.llama_model_default_params()
        settings.n_gpu_layers, settings.vocab_only = gpu_layers, only_vocabulary
        # An empty list of devices: otherwise llama.cpp hands a GPU long prompts even where it holds no layer.
        nothing = (ctypes.c_void_p * 1)()
        if gpu_layers == 0:
            settings.devices = ctypes.cast(nothing, ctypes.c_void_p)
        overrides = (self.functions.llama_model_kv_override * 2)()  # the second, empty one ends the list
        if pre is not None:
            overrides[0].tag, overrides[0].key = _STRING_OVERRIDE, b"tokenizer.ggml.pre"
            overrides[0].value.val_str = pre.encode()
            settings.kv_overrides = overrides
        return self.functions.llama_model_load_from_file(os.fsencode(file), settings) or None


@cache
def open_library() -> Library:
    """llama.cpp, opened once. Raises ModuleNotFoundError where it is not installed, RuntimeError where it does not load."""
    return Library()


def open_part(stem: str) -> ctypes.CDLL | None:
    """One of the shared libraries that llama-cpp-python brings, such as ggml-base; some builds have the CPU's in several files
    for several CPUs, and none by this name."""
    folder = _folder()
    names = (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll", f"lib{stem}.dll")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    return ctypes.CDLL(str(path)) if path else None


def _folder() -> Path:
    """Where the shared libraries are: `llama_cpp/_ctypes_extensions.py` looks there, too."""
    import llama_cpp

    return Path(os.environ.get(FOLDER) or Path(str(llama_cpp.__file__)).parent / "lib")


def version() -> str:
    """llama-cpp-python's version, which says which llama.cpp it brought; of a library from elsewhere, ggml's behind it."""
    import llama_cpp

    part = open_part("ggml-base") if os.environ.get(FOLDER) else None
    if part is None:
        return str(llama_cpp.__version__)
    part.ggml_version.restype = ctypes.c_char_p
    return f"{llama_cpp.__version__} (ggml {part.ggml_version().decode()})"


def providers() -> list[str]:
    """CPU, and GPU before it where this build has one and finds one."""
    return [GPU, CPU] if open_library().functions.llama_supports_gpu_offload() else [CPU]


def load_errors() -> tuple[type[Exception], ...]:
    """What is raised for a model that llama.cpp does not load or cannot run."""
    return (LlamaError,)
