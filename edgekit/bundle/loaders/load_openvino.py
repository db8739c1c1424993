"""Answers from an edgekit bundle: `Bundle("folder")("turn on the light")`. Needs openvino, tokenizers, numpy."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import openvino
from tokenizers import Tokenizer

CHECK = run_path(str(Path(__file__).with_name("check.py")))  # without `check`: no hash, no golden answer


class Bundle:
    """An open bundle; `threads`, or a tuning.json with them, overrides those of its manifest (0: OpenVINO decides)."""

    def __init__(self, folder: str | Path, *, threads: int | Path | None = None, check: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = CHECK["read"](self.folder, "openvino", openvino.__version__, check)
        runtime = self.manifest["runtime"]
        threads = CHECK["tuned"](self.manifest, threads)
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": runtime["precision"],  # without it, bf16 wherever the CPU can
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "INFERENCE_NUM_THREADS": str((runtime["threads"] or 0) if threads is None else threads),
        }
        model, core = self.folder / self.manifest["model"], openvino.Core()
        compiled = CHECK["opened"](model, lambda file: core.compile_model(file, "CPU", hints))
        self.request = compiled.create_infer_request()
        self.inputs = [value.any_name for value in self.request.model_inputs]
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
        found = next(iter(self.request.infer({name: known[name] for name in self.inputs}).values()))
        return np.array(found[0], dtype=np.float32)  # a copy: the next text is answered in the same memory

    def __call__(self, text: str, *, prompt: str | None = None) -> Any:
        """[(label, score), ...], the answer (of no class under the threshold) first; or the embedding, float32 [width]."""
        output = self.output(text, prompt=prompt)
        if self.manifest["output"] == "embedding":
            return output
        scores = (powers := np.exp(output - output.max())) / powers.sum()
        ranked: list[tuple[str, float]] = CHECK["ranked"](self.manifest, scores, text)
        return ranked
