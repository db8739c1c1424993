"""RoBERTa (arXiv:1907.11692) and XLM-RoBERTa (arXiv:1911.02116): BERT's blocks; positions count from padding id + 1."""

from edgekit.architectures.bert import LAYERS, PROJECTIONS, TOKEN_TYPE_IDS, cut

__all__ = ["LAYERS", "PROJECTIONS", "TOKEN_TYPE_IDS", "cut"]
