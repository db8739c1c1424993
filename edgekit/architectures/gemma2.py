"""Gemma 2 (arXiv:2408.00118): norms before and after each half of a block, soft caps, every other layer in a window."""

from __future__ import annotations

from dataclasses import replace

from edgekit.architectures.gguf import Config, Gguf, Keys, Place, decoder_keys, decoder_sizes, rope, window_keys
from edgekit.architectures.llama import BLOCKS, IGNORED, LAYERS, PLACES, PROJECTIONS, TOKEN_TYPE_IDS, cut
from edgekit.architectures.llama import WIDTHS as BARE

__all__ = ["GGUF", "LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]

WIDTHS = replace(BARE, fixed={"hidden": "it multiplies its embeddings by the root of its width"})
# The layers of the 27B models, whose scores llama.cpp divides by the root of hidden_size / heads, not of the head's width.
_LARGE = 46


def check_scale(config: Config, large: int) -> None:
    """Raises EdgekitError where llama.cpp would scale attention scores by another number than query_pre_attn_scalar.

    large: how many layers the model has that llama.cpp scales by its width over its heads.
    """
    sizes = decoder_sizes(config)
    wide = sizes["model"] // sizes["heads"]
    own = wide if config.number("num_hidden_layers") == large else sizes["head"]
    if config.number("query_pre_attn_scalar") != own:
        raise config.error("query_pre_attn_scalar", f"llama.cpp computes {own} for this shape; export as ONNX")


def keys(config: Config) -> Keys:
    """The keys of `gemma2.*`."""
    check_scale(config, _LARGE)
    config.must("hidden_activation", "gelu_pytorch_tanh")
    config.must("use_bidirectional_attention", None, False)
    keys = decoder_keys(config, rope(config, ("default",))) | window_keys(config, 2)
    for part in ("attn", "final"):
        cap = config.optional(f"{part}_logit_softcapping")
        if cap is None:
            raise config.error(f"{part}_logit_softcapping", "llama.cpp always caps Gemma 2's; export as ONNX")
        keys[f"{part}_logit_softcapping"] = float(cap)
    return keys


# transformers multiplies by 1 + weight (modeling_gemma2.Gemma2RMSNorm).
NORMED = {path: replace(place, add=1.0) if "norm" in path else place for path, place in BLOCKS.items()} | {
    "post_attention_layernorm": Place(name="blk.{}.post_attention_norm", shape=("model",), add=1.0),
    "pre_feedforward_layernorm": Place(name="blk.{}.ffn_norm", shape=("model",), add=1.0),
    "post_feedforward_layernorm": Place(name="blk.{}.post_ffw_norm", shape=("model",), add=1.0),
}
TOP = {**PLACES, "norm": replace(PLACES["norm"], add=1.0)}
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GGUF = Gguf(
    architecture="gemma2",
    sizes=decoder_sizes,
    keys=keys,
    # llama.cpp has the embedding as its only head.
    places={path: place for path, place in TOP.items() if path != "lm_head"},
    blocks=NORMED,
    ignored=IGNORED,
    tied=True,
    defaults={**DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)
