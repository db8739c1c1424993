"""Embeddings from an edgekit bundle: `Bundle("folder")("turn on the light")`. Needs llama-cpp-python, numpy."""

from __future__ import annotations

import os
from pathlib import Path
from runpy import run_path
from typing import Any

import llama_cpp
import numpy as np

CHECK = run_path(str(Path(__file__).with_name("check.py")))  # without `check`: no hash, no golden answer


class Bundle:
    """An open bundle; `threads`, or a tuning.json with them, overrides those of its manifest."""

    def __init__(self, folder: str | Path, *, threads: int | Path | None = None, check: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = CHECK["read"](self.folder, "llama-cpp-python", llama_cpp.__version__, check)
        runtime, length = self.manifest["runtime"], self.manifest["max_length"]
        threads = CHECK["tuned"](self.manifest, threads) or runtime["threads"] or os.cpu_count()
        pooling = runtime["pooling"] or "unspecified"  # unspecified: as the file says
        given: dict[str, Any] = dict(
            embedding=True,
            pooling_type=getattr(llama_cpp, f"LLAMA_POOLING_TYPE_{pooling.upper()}"),
            **dict.fromkeys(("n_ctx", "n_batch", "n_ubatch"), length),  # a text is read in one step
            n_threads=threads,
            n_threads_batch=runtime["threads_batch"] or threads,
            n_gpu_layers=runtime["gpu_layers"],
            flash_attn=runtime["flash_attention"] != "off",
            verbose=False,
        )
        model = self.folder / self.manifest["model"]
        self.llama: llama_cpp.Llama = CHECK["opened"](model, lambda file: llama_cpp.Llama(file, **given))
        self.normalize: bool = (self.manifest["settings"] or {}).get("normalize", True)
        self.times: dict[str, float] = CHECK["golden"](self, check)  # ms: {"cold": ..., "warm": ...}

    def tokens(self, text: str) -> list[int]:
        """A text's token ids; a long text is cut before its closing token, as it was when the model was verified."""
        ids: list[int] = self.llama.tokenize(text.encode(), special=True)
        room, plain = self.manifest["max_length"], self.llama.tokenize(text.encode(), add_bos=False, special=True)
        closing = ids[-1:] if plain[-1:] != ids[-1:] else []
        return ids if len(ids) <= room else ids[: room - len(closing)] + closing

    def __call__(self, text: str, *, prompt: str | None = None) -> np.typing.NDArray[np.float32]:
        """The embedding, float32 [width], of length 1 unless the checkpoint's own is not; prompt: by its name, "" for none."""
        prompts = {None: (own := self.manifest["settings"] or {}).get("prompt", ""), "": "", **own.get("prompts", {})}
        if prompt not in prompts:
            raise ValueError(f"no prompt {prompt!r}: those of this model are {sorted(own.get('prompts', {}))}")
        ids, context = self.tokens(prompts[prompt] + text), self.llama.ctx
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # llama.cpp borrows them
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
            raise RuntimeError(f"llama.cpp cannot embed {len(ids)} tokens")
        output = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, 0), (self.llama.n_embd(),)).copy()
        length = np.linalg.norm(output) if self.normalize else 1.0
        return np.asarray(output / max(float(length), 1e-12), dtype=np.float32)
