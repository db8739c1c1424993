"""ARCHITECTURES: what is peculiar to one model family. What families share lives with the verb that needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from edgekit.architectures import (
    bert,
    deberta_v2,
    distilbert,
    electra,
    gemma2,
    gemma3,
    gemma3_text,
    llama,
    mistral,
    modernbert,
    mpnet,
    ngrams,
    phi3,
    qwen2,
    qwen3,
    roberta,
)
from edgekit.architectures.gguf import Gguf
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig


class Architecture(Protocol):
    """What a family's module says about itself."""

    LAYERS: str
    """Path of the list of transformer blocks inside the base model (the model without a head); empty where it has none."""
    PROJECTIONS: tuple[str, ...]
    """Paths, inside a block, of the linear layers that make query, key and value; one where one layer makes all."""
    TOKEN_TYPE_IDS: bool
    """Whether the model's forward takes token_type_ids."""

    def cut(self, config: PretrainedConfig, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:
        """Fit a configuration, and the kept blocks where they must change, to the blocks whose indices `keep` names."""


ARCHITECTURES: dict[str, Architecture] = {
    "bert": bert,
    "deberta-v2": deberta_v2,
    "distilbert": distilbert,
    "electra": electra,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3_text": gemma3_text,
    "llama": llama,
    "mistral": mistral,
    "modernbert": modernbert,
    "mpnet": mpnet,
    "ngrams": ngrams,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "roberta": roberta,
    "xlm-roberta": roberta,
}


def is_decoder(architecture: Architecture) -> bool:
    """Whether a family's models say the next token."""
    family = getattr(architecture, "GGUF", None)
    return isinstance(family, Gguf) and family.head is not None


def find_architecture(model_type: str, where: str) -> Architecture:
    """A family by its `model_type`; EdgekitError (beginning with `where`) where edgekit does not know it."""
    if model_type not in ARCHITECTURES:
        raise EdgekitError(
            f"{where}: model_type: edgekit has no family {model_type!r}; it has {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]


def gguf_families() -> list[str]:
    """The families that edgekit writes as GGUF, sorted."""
    return sorted(family for family, module in ARCHITECTURES.items() if hasattr(module, "GGUF"))


def find_gguf(model_type: str, where: str) -> Gguf:
    """How a family is written as GGUF; EdgekitError (beginning with `where`) names the families that are."""
    families = gguf_families()
    if model_type in families:
        family = getattr(ARCHITECTURES[model_type], "GGUF")  # noqa: B009 - not every family's module has it
        assert isinstance(family, Gguf)
        return family
    raise EdgekitError(
        f"{where}: model_type: edgekit writes no GGUF of the family {model_type!r}; it does of {', '.join(families)}"
    )
