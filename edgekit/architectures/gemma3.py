"""Gemma 3, its text model (arXiv:2503.19786): norms on queries and keys, five layers in a window to one of full attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.architectures import llama
from edgekit.architectures.gemma2 import DEFAULTS, NORMED, TOP, check_scale
from edgekit.architectures.gguf import Config, Gguf, Keys, Place, decoder_keys, decoder_sizes, rope, window_keys
from edgekit.architectures.llama import IGNORED, PROJECTIONS, TOKEN_TYPE_IDS
from edgekit.typed_json import as_table

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

__all__ = ["GGUF", "LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "cut"]

LAYERS = "language_model.layers"
_LARGE = 62


def cut(config: PretrainedConfig, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:
    """As in the other decoders, in the text model's part of the configuration."""
    llama.cut(config.get_text_config(), layers, keep)


def keys(config: Config) -> Keys:
    """The keys of `gemma3.*`."""
    check_scale(config, _LARGE)
    config.must("hidden_activation", "gelu_pytorch_tanh")
    config.must("use_bidirectional_attention", None, False)
    config.must("attn_logit_softcapping", None)
    near = rope(config, ("default",), "sliding_attention") if _nested(config) else None
    # Version 4 has one key for the layers in a window, and scales only those of full attention.
    base = near.theta if near else config.real("rope_local_base_freq")
    period = config.number("sliding_window_pattern")
    layers = config.number("num_hidden_layers")
    usual = ["sliding_attention" if (index + 1) % period else "full_attention" for index in range(layers)]
    spelled = Config(values={**config.values, "layer_types": config.get("layer_types", usual)}, where=config.where)
    keys = decoder_keys(config, rope(config, ("default", "linear"))) | window_keys(spelled, 6)
    keys["rope.freq_base_swa"] = base
    # transformers caps in the text model's class only, not in the one with images (modeling_gemma3.py).
    if (cap := config.optional("final_logit_softcapping")) is not None and config.get("text_config") is None:
        keys["final_logit_softcapping"] = float(cap)
    return keys


def _nested(config: Config) -> bool:
    return isinstance(as_table(config.get("rope_parameters")).get("sliding_attention"), dict)


GGUF = Gguf(
    architecture="gemma3",
    sizes=decoder_sizes,
    keys=keys,
    places=TOP,
    blocks={
        **NORMED,
        "self_attn.q_norm": Place(name="blk.{}.attn_q_norm", shape=("head",), add=1.0),
        "self_attn.k_norm": Place(name="blk.{}.attn_k_norm", shape=("head",), add=1.0),
    },
    # The text model is what llama.cpp runs; images have a file of their own there.
    ignored=(*IGNORED, "vision_tower.", "multi_modal_projector."),
    tied=True,
    defaults={
        **DEFAULTS,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window_pattern": 6,
    },
)
