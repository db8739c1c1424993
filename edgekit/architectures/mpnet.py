"""MPNet (arXiv:2004.09297): one relative position bias for all blocks, no token types; positions count as RoBERTa's."""

from edgekit.architectures.bert import LAYERS, cut

__all__ = ["LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "cut"]

PROJECTIONS: tuple[str, ...] = ("attention.attn.q", "attention.attn.k", "attention.attn.v")
TOKEN_TYPE_IDS = False
