"""Encoder checkpoints as modules with two inputs, and what optimum knows about their classes and dimensions.

Of optimum, only TasksManager and NormalizedConfigManager are used, and only here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgekit.architectures import find_architecture
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.owners_tokenizer import quiet

__all__ = ["Dimensions", "Encoder", "dimensions", "load_encoder", "model_class", "quiet"]


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """An encoder's size, whatever its family calls it."""

    layers: int
    hidden: int
    heads: int


class Encoder(nn.Module):
    """(input_ids, attention_mask) -> the last hidden state or the logits; token types are zeros made inside."""

    def __init__(self, model: nn.Module, *, token_type_ids: bool) -> None:
        super().__init__()
        self.model = model
        self.token_type_ids = token_type_ids

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] twice -> the model's first output."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.token_type_ids:
            inputs["token_type_ids"] = torch.zeros_like(input_ids)
        return cast("Tensor", self.model(**inputs, return_dict=True)[0])


def load_encoder(folder: Path, task: str, head: Mapping[str, Any] | None = None) -> tuple[Encoder, list[str]]:
    """A checkpoint's model for a task (eval mode, float32, eager attention), and the weights that the checkpoint lacks.

    `head` asks for a new head: configuration keys such as num_labels; weights of an old one are dropped. Raises
    EdgekitError for a checkpoint that `load_model` refuses, for weights that do not fit config.json, and for a family that
    is not in ARCHITECTURES.
    """
    checked = load_model(folder)
    architecture = find_architecture(checked.architecture, str(folder / "config.json"))
    with quiet():
        model, report = model_class(task).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **(head or {}),
        )
    if task == "feature-extraction" and getattr(model, "pooler", None) is not None:
        # transformers adds an untrained or unused pooler; sentence embeddings are pooled from the last hidden state.
        model.pooler = None
        report["missing_keys"] = {key for key in report["missing_keys"] if "pooler" not in key}
    wrong = sorted(str(key) for key in report["mismatched_keys"])
    missing = sorted(report["missing_keys"])
    if head is not None:
        body = f"{model.base_model_prefix}."
        wrong = [key for key in wrong if body in key]
        missing = [key for key in missing if key.startswith(body) and "pooler" not in key]
    if wrong:
        raise EdgekitError(f"{folder}: the weights do not fit config.json: {wrong[0]}")
    return Encoder(model, token_type_ids=architecture.TOKEN_TYPE_IDS).eval(), missing


@cache
def model_class(task: str) -> Any:
    """transformers' auto class for a task, as optimum names it."""
    with quiet():
        from optimum.exporters.tasks import TasksManager
    return TasksManager.get_model_class_for_task(task, framework="pt")


def dimensions(config: Any) -> Dimensions:
    """Layers, hidden size and attention heads of a transformers configuration."""
    from optimum.utils import NormalizedConfigManager

    normal = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    return Dimensions(layers=normal.num_layers, hidden=normal.hidden_size, heads=normal.num_attention_heads)
