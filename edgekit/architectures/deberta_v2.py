"""DeBERTa v2 and v3 (arXiv:2006.03654, 2111.09543): disentangled attention.

The projections of the relative positions take an input of their own, [1, 2 * span, channels], without padding.
"""

from edgekit.architectures.bert import INNER, LAYERS, cut
from edgekit.architectures.widths import Widths

__all__ = ["LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "WIDTHS", "cut"]

PROJECTIONS: tuple[str, ...] = (
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
)
# v3 has type_vocab_size 0; where a v2 checkpoint has types, zeros are the model's own default.
TOKEN_TYPE_IDS = False
WIDTHS = Widths(blocks=INNER, fixed={"hidden": "its blocks share embeddings of relative positions of the same width"})
