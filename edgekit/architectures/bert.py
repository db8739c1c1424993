"""BERT (arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.architectures.gguf import Config, Gguf, Keys, Place, head_width
from edgekit.architectures.widths import Widths

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

LAYERS = "encoder.layer"
PROJECTIONS: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
TOKEN_TYPE_IDS = True


def cut(config: PretrainedConfig, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:  # noqa: ARG001 - one signature for all
    """Any block can stand at any depth."""
    config.num_hidden_layers = len(keep)


def sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes of the encoders with learned positions are made of."""
    return {
        "vocabulary": config.number("vocab_size"),
        "model": config.number("hidden_size"),
        "hidden": config.number("intermediate_size"),
        "positions": config.number("max_position_embeddings"),
        "types": config.number("type_vocab_size"),
    }


def keys(config: Config) -> Keys:
    """The keys of `bert.*`, and the one of the tokenizer's that llama.cpp does not load an encoder without."""
    # llama.cpp has one GELU, with tanh; transformers' own by this name differs by up to 0.0005.
    config.must("hidden_act", "gelu", "gelu_new", "gelu_pytorch_tanh")
    config.must("position_embedding_type", None, "absolute")
    config.must("is_decoder", None, False)
    head_width(config)
    return {
        "vocab_size": config.number("vocab_size"),
        "context_length": config.number("max_position_embeddings"),
        "embedding_length": config.number("hidden_size"),
        "block_count": config.number("num_hidden_layers"),
        "feed_forward_length": config.number("intermediate_size"),
        "attention.head_count": config.number("num_attention_heads"),
        "attention.layer_norm_epsilon": config.real("layer_norm_eps"),
        "attention.causal": False,
        "tokenizer.ggml.token_type_count": config.number("type_vocab_size"),
    }


# Of families whose blocks are these, but are more than them: where only the MLP can be cut.
INNER = {"intermediate.dense": ("inner", ""), "output.dense": ("", "inner")}
POSITIONS = {"embeddings.position_embeddings": ("positions", "")}
WIDTHS = Widths(
    blocks={
        "attention.self.query": ("query", "model"),
        "attention.self.key": ("key", "model"),
        "attention.self.value": ("key", "model"),
        "attention.output.dense": ("model", "query"),
        "attention.output.LayerNorm": ("model",),
        "intermediate.dense": ("inner", "model"),
        "output.dense": ("model", "inner"),
        "output.LayerNorm": ("model",),
    },
    places={
        "embeddings.word_embeddings": ("", "model"),
        "embeddings.position_embeddings": ("positions", "model"),
        "embeddings.token_type_embeddings": ("", "model"),
        "embeddings.LayerNorm": ("model",),
        "pooler.dense": ("pooled", "model"),
        # As a head is planned that is trained yet (`pipeline.shapes`).
        "head.dense": ("pooled", "model"),
        # RoBERTa's classifier; BERT's own comes behind it.
        "classifier.dense": ("pooled", "model"),
        "classifier.out_proj": ("", "pooled"),
        "classifier": ("", "pooled"),
    },
)
GGUF = Gguf(
    architecture="bert",
    sizes=sizes,
    keys=keys,
    places={
        "embeddings.word_embeddings": Place(name="token_embd", shape=("vocabulary", "model")),
        "embeddings.position_embeddings": Place(name="position_embd", shape=("positions", "model")),
        "embeddings.token_type_embeddings": Place(name="token_types", shape=("types", "model")),
        "embeddings.LayerNorm": Place(name="token_embd_norm", shape=("model",), bias=True),
    },
    blocks={
        "attention.self.query": Place(name="blk.{}.attn_q", shape=("model", "model"), bias=True),
        "attention.self.key": Place(name="blk.{}.attn_k", shape=("model", "model"), bias=True),
        "attention.self.value": Place(name="blk.{}.attn_v", shape=("model", "model"), bias=True),
        "attention.output.dense": Place(name="blk.{}.attn_output", shape=("model", "model"), bias=True),
        "attention.output.LayerNorm": Place(name="blk.{}.attn_output_norm", shape=("model",), bias=True),
        "intermediate.dense": Place(name="blk.{}.ffn_up", shape=("hidden", "model"), bias=True),
        "output.dense": Place(name="blk.{}.ffn_down", shape=("model", "hidden"), bias=True),
        "output.LayerNorm": Place(name="blk.{}.layer_output_norm", shape=("model",), bias=True),
    },
    block="encoder.layer",
    prefixes=("bert.", "roberta."),
    # What embeddings do not pass through: BERT's pooler, and the heads for the words that pretraining hides.
    ignored=("embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "cls.", "lm_head."),
    head=None,
    defaults={
        "vocab_size": 30522,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
)
