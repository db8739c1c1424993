"""ModernBERT (arXiv:2412.13663): pre-norm blocks, one layer for query, key and value, local and global attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.architectures.gguf import Config, Gguf, Keys, Place, head_width, rope, window_keys
from edgekit.architectures.widths import Widths

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

LAYERS = "layers"
PROJECTIONS: tuple[str, ...] = ("attn.Wqkv",)
TOKEN_TYPE_IDS = False
WIDTHS = Widths(
    blocks={
        "attn_norm": ("model",),
        "attn.Wqkv": ("query+key+key", "model"),
        "attn.Wo": ("model", "query"),
        "mlp_norm": ("model",),
        "mlp.Wi": ("inner+inner", "model"),
        "mlp.Wo": ("model", "inner"),
    },
    places={
        "embeddings.tok_embeddings": ("", "model"),
        "embeddings.norm": ("model",),
        "final_norm": ("model",),
        "head.dense": ("pooled", "model"),
        "head.norm": ("pooled",),
        "classifier": ("", "pooled"),
    },
)


def cut(config: PretrainedConfig, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:
    """Each kept block stays local or global as it was; the first has no norm: the embeddings were just normalised."""
    from torch import nn

    config.layer_types = [config.layer_types[index] for index in keep]
    config.num_hidden_layers = len(keep)
    layers[0].attn_norm = nn.Identity()


def sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes of its tensors are made of."""
    model, hidden = config.number("hidden_size"), config.number("intermediate_size")
    return {
        "vocabulary": config.number("vocab_size"),
        "model": model,
        "fused": 3 * model,
        "hidden": hidden,
        "gate_up": 2 * hidden,
    }


def keys(config: Config) -> Keys:
    """The keys of `modern-bert.*`."""
    config.must("hidden_activation", "gelu", "silu")
    head_width(config)
    nested = isinstance(config.get("rope_parameters"), dict)
    period = config.number("global_attn_every_n_layers")
    layers = range(config.number("num_hidden_layers"))
    usual = ["sliding_attention" if index % period else "full_attention" for index in layers]
    spelled = {"layer_types": config.get("layer_types", usual), "sliding_window": config.number("local_attention")}
    near, far = (rope(config, ("default",), kind) for kind in ("sliding_attention", "full_attention"))
    return {
        "vocab_size": config.number("vocab_size"),
        "context_length": config.number("max_position_embeddings"),
        "embedding_length": config.number("hidden_size"),
        "block_count": config.number("num_hidden_layers"),
        "feed_forward_length": config.number("intermediate_size"),
        "attention.head_count": config.number("num_attention_heads"),
        "attention.layer_norm_epsilon": config.real("norm_eps"),
        "attention.causal": False,
        "hidden_activation": str(config.values["hidden_activation"]),
        "rope.scaling.type": "none",
        "rope.freq_base": far.theta if nested else config.real("global_rope_theta"),
        "rope.freq_base_swa": near.theta if nested else config.real("local_rope_theta"),
        # The window is of local_attention tokens in all, in llama.cpp as in transformers: half of it on each side.
        **window_keys(Config(values={**config.values, **spelled}, where=config.where), 3, full_first=True),
    }


GGUF = Gguf(
    architecture="modern-bert",
    sizes=sizes,
    keys=keys,
    places={
        "embeddings.tok_embeddings": Place(name="token_embd", shape=("vocabulary", "model")),
        "embeddings.norm": Place(name="token_embd_norm", shape=("model",)),
        "final_norm": Place(name="output_norm", shape=("model",)),
    },
    blocks={
        # The first block has none: the embeddings were just normalised.
        "attn_norm": Place(name="blk.{}.attn_norm", shape=("model",), optional=True),
        "attn.Wqkv": Place(name="blk.{}.attn_qkv", shape=("fused", "model")),
        "attn.Wo": Place(name="blk.{}.attn_output", shape=("model", "model")),
        "mlp_norm": Place(name="blk.{}.ffn_norm", shape=("model",)),
        "mlp.Wi": Place(name="blk.{}.ffn_up", shape=("gate_up", "model")),
        "mlp.Wo": Place(name="blk.{}.ffn_down", shape=("model", "hidden")),
    },
    prefixes=("model.",),
    # The head for the words that pretraining hides.
    ignored=("head.", "decoder."),
    head=None,
    defaults={
        "vocab_size": 50368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "hidden_activation": "gelu",
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    },
)
