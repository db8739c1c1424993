"""Gemma 3's text model alone, as it is saved without the rest."""

from edgekit.architectures.gemma2 import WIDTHS
from edgekit.architectures.gemma3 import GGUF, PROJECTIONS, TOKEN_TYPE_IDS
from edgekit.architectures.llama import LAYERS, cut

__all__ = ["GGUF", "LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]
