"""Llama 2 and 3.x (arXiv:2307.09288, 2407.21783), and what is built like them: TinyLlama, SmolLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.architectures.gguf import (
    Config,
    Gguf,
    Keys,
    Place,
    decoder_keys,
    decoder_sizes,
    llama3_factors,
    longrope_factors,
    rope,
)
from edgekit.architectures.widths import Widths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from transformers import PretrainedConfig

LAYERS = "layers"
PROJECTIONS: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
TOKEN_TYPE_IDS = False


def cut(config: PretrainedConfig, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:
    """Any block can stand at any depth; it keeps its kind of attention, and its place in the cache is its new index."""
    config.num_hidden_layers = len(keep)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in keep]
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index  # type: ignore[union-attr]


PLACES = {
    "embed_tokens": Place(name="token_embd", shape=("vocabulary", "model")),
    "norm": Place(name="output_norm", shape=("model",)),
    "lm_head": Place(name="output", shape=("vocabulary", "model")),
}
BLOCKS = {
    "input_layernorm": Place(name="blk.{}.attn_norm", shape=("model",)),
    "self_attn.q_proj": Place(name="blk.{}.attn_q", shape=("query", "model"), bias=None),
    "self_attn.k_proj": Place(name="blk.{}.attn_k", shape=("key", "model"), bias=None),
    "self_attn.v_proj": Place(name="blk.{}.attn_v", shape=("key", "model"), bias=None),
    "self_attn.o_proj": Place(name="blk.{}.attn_output", shape=("model", "query")),
    "post_attention_layernorm": Place(name="blk.{}.ffn_norm", shape=("model",)),
    "mlp.gate_proj": Place(name="blk.{}.ffn_gate", shape=("hidden", "model")),
    "mlp.up_proj": Place(name="blk.{}.ffn_up", shape=("hidden", "model")),
    "mlp.down_proj": Place(name="blk.{}.ffn_down", shape=("model", "hidden")),
}
# transformers turns channels i and i + half of a head together, llama.cpp's graph of this family 2i and 2i + 1.
TURNED = {
    **BLOCKS,
    "self_attn.q_proj": Place(name="blk.{}.attn_q", shape=("query", "model"), bias=None, heads="heads"),
    "self_attn.k_proj": Place(name="blk.{}.attn_k", shape=("key", "model"), bias=None, heads="key_heads"),
    "self_attn.o_proj": Place(name="blk.{}.attn_output", shape=("model", "query"), bias=None),
    **{
        f"mlp.{part}_proj": Place(name=f"blk.{{}}.ffn_{part}", shape=shape, bias=None)
        for part, shape in {
            "gate": ("hidden", "model"),
            "up": ("hidden", "model"),
            "down": ("model", "hidden"),
        }.items()
    },
}
WIDTHS = Widths(
    blocks={
        "input_layernorm": ("model",),
        "self_attn.q_proj": ("query", "model"),
        "self_attn.k_proj": ("key", "model"),
        "self_attn.v_proj": ("key", "model"),
        "self_attn.o_proj": ("model", "query"),
        "post_attention_layernorm": ("model",),
        "mlp.gate_proj": ("inner", "model"),
        "mlp.up_proj": ("inner", "model"),
        "mlp.down_proj": ("model", "inner"),
    },
    places={"embed_tokens": ("", "model"), "norm": ("model",), "lm_head": ("", "model")},
    head="head_dim",
)
ROPES = ("default", "linear", "yarn", "llama3", "longrope")
# What tensors of older checkpoints repeat of the configuration.
IGNORED = ("rotary_emb.", "layers.{}.self_attn.rotary_emb.")


def keys(config: Config) -> Keys:
    """The keys of `llama.*`."""
    config.must("hidden_act", "silu")
    return decoder_keys(config, rope(config, ROPES))


def factors(config: Config) -> dict[str, NDArray[np.float32]]:
    """The divisors of the frequencies, where positions are scaled as Llama 3.1's or by LongRoPE."""
    turning = rope(config, ROPES)
    return llama3_factors(config, turning) | longrope_factors(config, turning)


GGUF = Gguf(
    architecture="llama",
    sizes=decoder_sizes,
    keys=keys,
    places=PLACES,
    blocks=TURNED,
    ignored=IGNORED,
    constants=factors,
    # transformers' LlamaConfig; so in each family.
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    },
)
