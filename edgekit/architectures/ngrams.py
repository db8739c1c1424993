"""Hashed n-grams of tokens with a linear head: edgekit's own smallest student (`edgekit/tasks/ngrams.py` is the module)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

LAYERS = ""
PROJECTIONS: tuple[str, ...] = ()
TOKEN_TYPE_IDS = False


def cut(config: PretrainedConfig, layers: Sequence[nn.Module], keep: Sequence[int]) -> None:  # noqa: ARG001 - one signature for all
    """Nothing can be cut from it. Raises EdgekitError."""
    raise EdgekitError("student: a model of n-grams has no layers to cut; remove the recipe's [student] table")
