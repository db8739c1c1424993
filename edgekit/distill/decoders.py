"""A decoder in training: its hidden states first, then logits of as many tokens at a time as memory allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

# Logits of at most this many bytes are there at once (a few copies of them within a loss), however long the texts are.
LOGIT_BYTES = 64 << 20


class Body(nn.Module):
    """A causal language model up to its last hidden states; its head is a call of its own, so that the logits of a whole
    batch, [batch, sequence, vocabulary], are never there."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # Several times less memory than eager attention; soft-capped attention scores (Gemma 2) exist in eager only.
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is None:
            model.set_attn_implementation("sdpa")

    @property
    def vocabulary(self) -> int:
        """How wide the logits are."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] twice, padded on the right -> [batch, sequence, channels]."""
        inside = self.model.base_model
        states: Tensor = inside(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [tokens, channels] -> float32 logits [tokens, vocabulary], soft-capped where the family does."""
        logits: Tensor = self.model.get_output_embeddings()(states).float()
        # Gemma 2 (arXiv:2408.00118), section 2: cap * tanh(logits / cap).
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def mean_over_tokens(count: int, width: int, loss: Callable[[slice], Tensor]) -> Tensor:
    """The mean of a loss over `count` tokens with logits of this width; `loss` is the mean over a slice of them.

    Where one slice does not hold all, each slice's logits are computed again for its gradient instead of kept
    (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174).
    """
    step = max(1, LOGIT_BYTES // (4 * width))
    if count <= step:
        return loss(slice(0, count))
    total: Tensor | int = 0
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        mean: Tensor = recompute(loss, part, use_reentrant=False, preserve_rng_state=False)
        total = total + mean * (part.stop - part.start)
    assert isinstance(total, Tensor)
    return total / count
