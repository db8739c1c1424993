"""POOLINGS: token vectors to one embedding, inside the graph.

Each function takes hidden [batch, sequence, channels] and mask [batch, sequence, 1] (1.0 for a real token, padding on
the right) and gives [batch, channels]. Definitions: sentence-transformers, sentence_transformer/modules/pooling.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.tasks.encoders import Encoder


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens."""
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)


def mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    """The sum over real tokens divided by the square root of their number."""
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9).sqrt()


def cls(hidden: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001 - one signature for all
    """The first token."""
    return hidden[:, 0]


def largest(hidden: Tensor, mask: Tensor) -> Tensor:
    """The largest value of each channel over real tokens."""
    return hidden.masked_fill(mask == 0, torch.finfo(hidden.dtype).min).amax(dim=1)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last real token."""
    last = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0).to(torch.int64)
    return hidden.gather(1, last.expand(-1, 1, hidden.shape[-1])).squeeze(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": cls,
    "lasttoken": last_token,
    "max": largest,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len,
}


class Embedder(Encoder):
    """An encoder and a pooling: (input_ids, attention_mask) -> [batch, channels]."""

    def __init__(self, encoder: Encoder, pool: Callable[[Tensor, Tensor], Tensor], *, normalise: bool) -> None:
        super().__init__(encoder.model, token_type_ids=encoder.token_type_ids)
        self.pool = pool
        self.normalise = normalise

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] twice -> one embedding per row, of length 1 where the checkpoint says so."""
        hidden = super().forward(input_ids, attention_mask)
        pooled = self.pool(hidden, attention_mask.unsqueeze(-1).to(hidden.dtype))
        return F.normalize(pooled, p=2.0, dim=1) if self.normalise else pooled
