"""Qwen 3 (arXiv:2505.09388): Llama's blocks with norms on each head's queries and keys."""

from __future__ import annotations

from edgekit.architectures.gguf import Gguf, Place, decoder_sizes
from edgekit.architectures.llama import BLOCKS, IGNORED, LAYERS, PLACES, PROJECTIONS, TOKEN_TYPE_IDS, WIDTHS, cut
from edgekit.architectures.qwen2 import DEFAULTS, keys

__all__ = ["GGUF", "LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]

GGUF = Gguf(
    architecture="qwen3",
    sizes=decoder_sizes,
    keys=keys,
    places=PLACES,
    blocks={
        **BLOCKS,
        "self_attn.q_norm": Place(name="blk.{}.attn_q_norm", shape=("head",)),
        "self_attn.k_norm": Place(name="blk.{}.attn_k_norm", shape=("head",)),
    },
    ignored=IGNORED,
    defaults={**DEFAULTS, "head_dim": 128},
)
