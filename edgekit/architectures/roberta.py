"""RoBERTa (arXiv:1907.11692) and XLM-RoBERTa (arXiv:1911.02116): BERT's blocks; positions count from padding id + 1."""

from dataclasses import replace

from edgekit.architectures import bert
from edgekit.architectures.bert import LAYERS, PROJECTIONS, TOKEN_TYPE_IDS, cut
from edgekit.architectures.gguf import Config, Keys

__all__ = ["GGUF", "LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]

WIDTHS = replace(bert.WIDTHS, padded=True)


def sizes(config: Config) -> dict[str, int]:
    """BERT's sizes, and how many of the positions come before a text's first (transformers' create_position_ids)."""
    return bert.sizes(config) | {"before": config.natural("pad_token_id") + 1}


def keys(config: Config) -> Keys:
    """The keys of `bert.*`; llama.cpp counts positions from zero, so those that no text has are left out."""
    keys = bert.keys(config)
    keys["context_length"] = sizes(config)["positions"] - sizes(config)["before"]
    return keys


_POSITIONS = "embeddings.position_embeddings"
GGUF = replace(
    bert.GGUF,
    sizes=sizes,
    keys=keys,
    places={**bert.GGUF.places, _POSITIONS: replace(bert.GGUF.places[_POSITIONS], skip="before")},
    defaults={**bert.GGUF.defaults, "vocab_size": 50265, "pad_token_id": 1},
)
