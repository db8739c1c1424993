"""ELECTRA's discriminator (arXiv:2003.10555): BERT's blocks, its embeddings projected up where they are narrower."""

from edgekit.architectures.bert import LAYERS, PROJECTIONS, TOKEN_TYPE_IDS, cut

__all__ = ["LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "cut"]
