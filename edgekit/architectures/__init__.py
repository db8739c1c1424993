"""ARCHITECTURES: what is peculiar to one model family. What families share lives with the verb that needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.architectures import bert, deberta_v2, distilbert, electra, modernbert, mpnet, roberta
from edgekit.schema import pick

if TYPE_CHECKING:
    from torch import nn


class Architecture(Protocol):
    """What a family's module says about itself."""

    LAYERS: str
    """Path of the list of transformer blocks inside the base model (the model without a head)."""
    PROJECTIONS: tuple[str, ...]
    """Paths, inside a block, of the linear layers that make query, key and value; one where one layer makes all."""
    TOKEN_TYPE_IDS: bool
    """Whether the model's forward takes token_type_ids."""

    def cut(self, config: Any, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:
        """Fit a configuration, and the kept blocks where they must change, to the blocks whose indices `keep` names."""


ARCHITECTURES: dict[str, Architecture] = {
    "bert": bert,
    "deberta-v2": deberta_v2,
    "distilbert": distilbert,
    "electra": electra,
    "modernbert": modernbert,
    "mpnet": mpnet,
    "roberta": roberta,
    "xlm-roberta": roberta,
}


def find_architecture(model_type: str, where: str) -> Architecture:
    """A family by its `model_type`; EdgekitError (beginning with `where`) where edgekit does not know it."""
    return pick(ARCHITECTURES, model_type, f"{where}: model_type")
