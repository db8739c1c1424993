"""Answers from an edgekit bundle: `Bundle("folder")("turn on the light")`. Needs onnxruntime, tokenizers, numpy."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

CHECK = run_path(str(Path(__file__).with_name("check.py")))  # without `check`: no hash, no golden answer


class Bundle:
    """An open bundle; `threads`, or a tuning.json with them, overrides those of its manifest (0: the runtime decides)."""

    def __init__(
        self, folder: str | Path, *, threads: int | Path | None = None, provider: str | None = None, check: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = CHECK["read"](self.folder, "onnxruntime", onnxruntime.__version__, check)
        runtime = self.manifest["runtime"]
        threads = CHECK["tuned"](self.manifest, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = (runtime["threads"] or 0) if threads is None else threads
        for key, value in runtime["config_entries"].items():
            options.add_session_config_entry(key, value)
        wanted = dict.fromkeys([provider or runtime["provider"], "CPUExecutionProvider"])
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        if "CUDAExecutionProvider" in providers:
            onnxruntime.preload_dlls()  # CUDA and cuDNN where pip puts them
        beside = str(Path(__file__).with_name("bound.py"))  # there where the bundle is for CUDA
        kind = run_path(beside)["Bound"] if runtime.get("cuda_graphs") else onnxruntime.InferenceSession
        given = {"providers": providers, "disabled_optimizers": runtime["disabled_optimizers"]}
        self.session = CHECK["opened"](self.folder / self.manifest["model"], lambda file: kind(file, options, **given))
        # It cuts long texts, as in verify.
        self.tokenizer: Tokenizer = CHECK["opened"](self.folder / "tokenizer.json", Tokenizer.from_file)
        self.times: dict[str, float] = CHECK["golden"](self, check)  # ms: {"cold": ..., "warm": ...}

    def output(self, text: str, *, prompt: str | None = None) -> np.typing.NDArray[np.float32]:
        """The raw output, float32 [width]; prompt: what comes first, by its name; "" is nothing, None the model's own."""
        prompts = {None: (own := self.manifest["settings"]).get("prompt", ""), "": "", **own.get("prompts", {})}
        if prompt not in prompts:
            raise ValueError(f"no prompt {prompt!r}: those of this model are {sorted(own.get('prompts', {}))}")
        ids = np.array([self.tokenizer.encode(prompts[prompt] + text).ids or [self.manifest["pad_id"]]], dtype=np.int64)
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        found = self.session.run(None, {value.name: known[value.name] for value in self.session.get_inputs()})
        return np.asarray(found[0][0], dtype=np.float32)

    def __call__(self, text: str, *, prompt: str | None = None) -> Any:
        """[(label, score), ...], the answer (of no class under the threshold) first; or the embedding, float32 [width]."""
        if self.manifest["output"] == "embedding":
            return self.output(text, prompt=prompt)
        scores = (powers := np.exp((output := self.output(text, prompt=prompt)) - output.max())) / powers.sum()
        ranked: list[tuple[str, float]] = CHECK["ranked"](self.manifest, scores, text)
        return ranked
