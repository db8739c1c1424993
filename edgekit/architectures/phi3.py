"""Phi-3, 3.5 and 4-mini (arXiv:2404.14219, 2503.01743): one layer for query, key and value, one for gate and up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.architectures.gguf import (
    Config,
    Gguf,
    Keys,
    Place,
    Rope,
    context_within,
    decoder_keys,
    decoder_sizes,
    longrope_factors,
    rope,
)
from edgekit.architectures.llama import BLOCKS, IGNORED, LAYERS, PLACES, TOKEN_TYPE_IDS, cut
from edgekit.architectures.llama import WIDTHS as APART

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GGUF", "LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]

WIDTHS = replace(
    APART,
    blocks={
        path: axes for path, axes in APART.blocks.items() if "norm" in path or path.endswith(("o_proj", "down_proj"))
    }
    | {"self_attn.qkv_proj": ("query+key+key", "model"), "mlp.gate_up_proj": ("inner+inner", "model")},
)
PROJECTIONS: tuple[str, ...] = ("self_attn.qkv_proj",)


def _rope(config: Config) -> Rope:
    turning = rope(config, ("default", "longrope", "su", "yarn"), partial=True)
    # Configurations older than transformers' Phi-3 have other names for it (configuration_phi3.py).
    return turning if turning.kind == "default" else Rope(**{**vars(turning), "kind": "longrope"})


def keys(config: Config) -> Keys:
    """The keys of `phi3.*`. llama.cpp reads the window and does not use it: a file is for contexts that no window cuts."""
    config.must("hidden_act", "silu")
    sizes, window = decoder_sizes(config), config.window()
    if sizes["query"] != sizes["model"]:
        raise config.error(
            "head_dim", f"heads of {sizes['head']} channels do not make up hidden_size in llama.cpp's Phi-3"
        )
    turning = _rope(config)
    keys = decoder_keys(config, turning, context=context_within(config, window))
    # llama.cpp takes the context length for the original one where this is missing, and zero for "no window" (Phi-4).
    keys["rope.scaling.original_context_length"] = turning.original
    keys["attention.sliding_window"] = window or 0
    return keys


def factors(config: Config) -> dict[str, NDArray[np.float32]]:
    """LongRoPE's divisors of the frequencies."""
    return longrope_factors(config, _rope(config))


GGUF = Gguf(
    architecture="phi3",
    sizes=decoder_sizes,
    keys=keys,
    places=PLACES,
    blocks={
        **{path: place for path, place in BLOCKS.items() if "norm" in path},
        "self_attn.qkv_proj": Place(name="blk.{}.attn_qkv", shape=("fused", "model")),
        "self_attn.o_proj": BLOCKS["self_attn.o_proj"],
        # llama.cpp's graph splits the rows as transformers does: the first half is the gate.
        "mlp.gate_up_proj": Place(name="blk.{}.ffn_up", shape=("gate_up", "model")),
        "mlp.down_proj": BLOCKS["mlp.down_proj"],
    },
    ignored=IGNORED,
    constants=factors,
    defaults={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    },
)
