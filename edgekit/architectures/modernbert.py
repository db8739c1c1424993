"""ModernBERT (arXiv:2412.13663): pre-norm blocks, one layer for query, key and value, local and global attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LAYERS = "layers"
PROJECTIONS: tuple[str, ...] = ("attn.Wqkv",)
TOKEN_TYPE_IDS = False


def cut(config: Any, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:
    """Each kept block stays local or global as it was; the first has no norm: the embeddings were just normalised."""
    from torch import nn

    config.layer_types = [config.layer_types[index] for index in keep]
    config.num_hidden_layers = len(keep)
    layers[0].attn_norm = nn.Identity()
