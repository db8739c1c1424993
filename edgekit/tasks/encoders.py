"""Encoder checkpoints as modules with two inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgekit.architectures import find_architecture
from edgekit.model import load_model
from edgekit.tasks.loading import load_checkpoint


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


def load_encoder(folder: Path, task: str, head: Mapping[str, object] | None = None) -> Encoder:
    """A checkpoint's model for a task, in eval mode; `head` asks for a new one. Raises EdgekitError as `load_checkpoint` does."""
    model = load_checkpoint(folder, task, head)
    if task == "feature-extraction" and getattr(model, "pooler", None) is not None:
        # transformers adds an untrained or unused pooler; sentence embeddings are pooled from the last hidden state.
        model.pooler = None
    architecture = find_architecture(load_model(folder).architecture, str(folder / "config.json"))
    return Encoder(model, token_type_ids=architecture.TOKEN_TYPE_IDS).eval()


def dimensions(config: Any) -> Dimensions:
    """Layers, hidden size and attention heads of a transformers configuration, whatever its family calls them.

    0 each of a family that has no layers.
    """
    text = config.get_text_config()
    if not find_architecture(config.model_type, "model").LAYERS:
        return Dimensions(layers=0, hidden=0, heads=0)
    return Dimensions(layers=text.num_hidden_layers, hidden=text.hidden_size, heads=text.num_attention_heads)
