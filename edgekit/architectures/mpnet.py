"""MPNet (arXiv:2004.09297): one relative position bias for all blocks, no token types; positions count as RoBERTa's."""

from edgekit.architectures.bert import INNER, LAYERS, POSITIONS, cut
from edgekit.architectures.widths import Widths

__all__ = ["LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]

PROJECTIONS: tuple[str, ...] = ("attention.attn.q", "attention.attn.k", "attention.attn.v")
TOKEN_TYPE_IDS = False
WIDTHS = Widths(
    blocks=INNER, places=POSITIONS, padded=True, fixed={"hidden": "all blocks share one bias for each head"}
)
