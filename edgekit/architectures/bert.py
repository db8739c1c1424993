"""BERT (arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LAYERS = "encoder.layer"
PROJECTIONS: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
TOKEN_TYPE_IDS = True


def cut(config: Any, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:  # noqa: ARG001 - one signature for all
    """Any block can stand at any depth."""
    config.num_hidden_layers = len(keep)
