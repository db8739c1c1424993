"""Decoder checkpoints as modules with two inputs."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from edgekit.architectures import find_architecture
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.tasks.encoders import model_class, quiet


class Decoder(nn.Module):
    """(input_ids, attention_mask) -> logits of the next token after each; positions count the tokens that are not padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] twice, padded on the right -> float32 [batch, sequence, vocabulary]."""
        return cast("Tensor", self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits)


def load_decoder(folder: Path) -> Decoder:
    """A checkpoint's causal language model in eval mode and float32.

    Raises EdgekitError for what `load_model` refuses, a family that is not in ARCHITECTURES, and weights that are missing or
    do not fit config.json.
    """
    checked = load_model(folder)
    find_architecture(checked.architecture, str(folder / "config.json"))
    with quiet():
        try:
            model, report = model_class("text-generation").from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",  # the one that all families have, Gemma 2 with its soft caps too
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except ValueError as refused:
            raise EdgekitError(
                f"{folder / 'config.json'}: model_type {checked.architecture}: not a model that generates text"
            ) from refused
    if wrong := sorted(str(key) for key in [*report["mismatched_keys"], *report["missing_keys"]]):
        raise EdgekitError(f"{folder}: the weights do not fit config.json: {wrong[0]} is missing or of another shape")
    return Decoder(model).eval()
