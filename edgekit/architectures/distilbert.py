"""DistilBERT (arXiv:1910.01108): BERT's blocks under other names, without token types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

LAYERS = "transformer.layer"
PROJECTIONS: tuple[str, ...] = ("attention.q_lin", "attention.k_lin", "attention.v_lin")
TOKEN_TYPE_IDS = False


def cut(config: PretrainedConfig, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:  # noqa: ARG001 - one signature for all
    """Any block can stand at any depth."""
    config.n_layers = len(keep)
