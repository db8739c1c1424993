"""Mistral (arXiv:2310.06825): Llama's blocks; every layer may attend to a sliding window only."""

from __future__ import annotations

from edgekit.architectures.gguf import Config, Gguf, Keys, context_within, decoder_keys, decoder_sizes, rope
from edgekit.architectures.llama import (
    IGNORED,
    LAYERS,
    PLACES,
    PROJECTIONS,
    ROPES,
    TOKEN_TYPE_IDS,
    TURNED,
    WIDTHS,
    cut,
    factors,
)

__all__ = ["GGUF", "LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]


def keys(config: Config) -> Keys:
    """The keys of `llama.*`, whose graph has no window: a file is for contexts that no window cuts."""
    config.must("hidden_act", "silu")
    window = config.window(4096)  # MistralConfig's own where the key is missing; null is none
    return decoder_keys(config, rope(config, ROPES), context=context_within(config, window))


GGUF = Gguf(
    architecture="llama",
    sizes=decoder_sizes,
    keys=keys,
    places=PLACES,
    blocks=TURNED,
    ignored=IGNORED,
    constants=factors,
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    },
)
