"""ELECTRA's discriminator (arXiv:2003.10555): BERT's blocks, its embeddings projected up where they are narrower."""

from edgekit.architectures.bert import INNER, LAYERS, POSITIONS, PROJECTIONS, TOKEN_TYPE_IDS, cut
from edgekit.architectures.widths import Widths

__all__ = ["LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]

WIDTHS = Widths(blocks=INNER, places=POSITIONS, fixed={"hidden": "its embeddings have a width of their own"})
