"""Decoder checkpoints as modules with two inputs."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import Tensor, nn

from edgekit.tasks.loading import load_checkpoint


class Decoder(nn.Module):
    """(input_ids, attention_mask) -> logits of the next token after each; positions count the tokens that are not padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] twice, padded on the right -> float32 [batch, sequence, vocabulary]."""
        return cast("Tensor", self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits)


def load_decoder(folder: Path) -> Decoder:
    """A checkpoint's causal language model in eval mode and float32. Raises EdgekitError as `load_checkpoint` does."""
    return Decoder(load_checkpoint(folder, "text-generation")).eval()
