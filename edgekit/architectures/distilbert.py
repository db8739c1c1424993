"""DistilBERT (arXiv:1910.01108): BERT's blocks under other names, without token types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.architectures.widths import Widths

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

LAYERS = "transformer.layer"
PROJECTIONS: tuple[str, ...] = ("attention.q_lin", "attention.k_lin", "attention.v_lin")
TOKEN_TYPE_IDS = False
WIDTHS = Widths(
    blocks={
        "attention.q_lin": ("query", "model"),
        "attention.k_lin": ("key", "model"),
        "attention.v_lin": ("key", "model"),
        "attention.out_lin": ("model", "query"),
        "sa_layer_norm": ("model",),
        "ffn.lin1": ("inner", "model"),
        "ffn.lin2": ("model", "inner"),
        "output_layer_norm": ("model",),
    },
    places={
        "embeddings.word_embeddings": ("", "model"),
        "embeddings.position_embeddings": ("positions", "model"),
        "embeddings.LayerNorm": ("model",),
        "pre_classifier": ("pooled", "model"),
        "head.dense": ("pooled", "model"),
        "classifier": ("", "pooled"),
    },
    hidden="dim",
    heads="n_heads",
    intermediate="hidden_dim",
)


def cut(config: PretrainedConfig, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:  # noqa: ARG001 - one signature for all
    """Any block can stand at any depth."""
    config.n_layers = len(keep)
