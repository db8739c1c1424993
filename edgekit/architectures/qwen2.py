"""Qwen 2 and 2.5 (arXiv:2407.10671, 2412.15115): Llama's blocks with biases on query, key and value."""

from __future__ import annotations

from edgekit.architectures.gguf import Config, Gguf, Keys, context_within, decoder_keys, decoder_sizes, rope
from edgekit.architectures.llama import BLOCKS, IGNORED, LAYERS, PLACES, PROJECTIONS, TOKEN_TYPE_IDS, WIDTHS, cut
from edgekit.typed_json import as_list

__all__ = ["GGUF", "LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]

# llama.cpp's graphs of Qwen take no divisors of frequencies, which llama3 and longrope need.
ROPES = ("default", "linear", "yarn")


def keys(config: Config) -> Keys:
    """The keys of `qwen2.*` or `qwen3.*`, whose graphs have no window: a file is for contexts that no window cuts."""
    config.must("hidden_act", "silu")
    kinds = as_list(config.get("layer_types"))
    windowed = config.get("use_sliding_window", False) and (
        "sliding_attention" in kinds
        if kinds
        else config.number("num_hidden_layers") > (config.optional("max_window_layers") or 0)
    )
    context = context_within(config, config.window(4096) if windowed else None)
    return decoder_keys(config, rope(config, ROPES), context=context)


DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_window_layers": 28,
}
GGUF = Gguf(
    architecture="qwen2",
    sizes=decoder_sizes,
    keys=keys,
    places=PLACES,
    blocks=BLOCKS,
    ignored=IGNORED,
    defaults=DEFAULTS,
)
