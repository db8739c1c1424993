"""What a decoder is taught: the next token, by the data or by a teacher, over as many tokens at a time as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgekit.distill.losses import Batch, Signal, labels
from edgekit.distill.student import Tap
from edgekit.distill.training import Lesson
from edgekit.tasks import pad
from edgekit.tasks.text_generation import Passage

# Logits of at most this many bytes are there at once (a few copies of them within a loss), however long the texts are.
LOGIT_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A batch of passages, and for each token that the model is to say: its passage, its id, and where it is predicted."""

    tokens: Tensor
    """input_ids, int64 [batch, sequence]."""
    mask: Tensor
    """1 for a real token, 0 for padding [batch, sequence]."""
    rows: Tensor
    """Which passage of the batch, int64 [tokens]."""
    places: Tensor
    """The place before the token, int64 [tokens]."""
    wanted: Tensor
    """The token's id, int64 [tokens]."""


class Body(nn.Module):
    """A causal language model up to its last hidden states; its head is a call of its own, so that the logits of a whole
    batch, [batch, sequence, vocabulary], are never there."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # Several times less memory than eager attention; soft-capped attention scores (Gemma 2) exist in eager only.
        if getattr(model.config, "attn_logit_softcapping", None) is None:
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
        said: Tensor = self.model.get_output_embeddings()(states).float()
        # Gemma 2 (arXiv:2408.00118), section 2: cap * tanh(logits / cap).
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return said if cap is None else torch.tanh(said / cap) * cap


def score(passages: Sequence[Passage]) -> Scored:
    """Passages as one batch, padded on the right: a decoder sees nothing to the right of a token."""
    tokens, mask = pad([passage.ids for passage in passages], 0)
    lengths = torch.tensor([len(passage.ids) - passage.start for passage in passages])
    return Scored(
        tokens=tokens,
        mask=mask,
        rows=torch.repeat_interleave(torch.arange(len(passages)), lengths),
        places=torch.cat([torch.arange(passage.start - 1, len(passage.ids) - 1) for passage in passages]),
        wanted=torch.tensor([token for passage in passages for token in passage.ids[passage.start :]]),
    )


def mean_over_tokens(count: int, width: int, loss: Callable[[slice], Tensor]) -> Tensor:
    """The mean of a loss over `count` tokens with logits of this width; `loss` is the mean over a slice of them.

    Where one slice does not hold all, each slice's logits are computed again for its gradient instead of kept
    (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174).
    """
    step = max(1, LOGIT_BYTES // (4 * width))
    if count <= step:
        return loss(slice(0, count))
    total = torch.zeros(())
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        mean: Any = checkpoint(loss, part, use_reentrant=False, preserve_rng_state=False)
        total = total + mean * (part.stop - part.start)
    return total / count


def next_token_lesson(
    body: Body, tap: Tap, passages: Sequence[Passage], train: Sequence[int], held: Sequence[int]
) -> Lesson:
    """Cross-entropy with the passages' own tokens, mean over those that the model is to say."""

    def loss(rows: list[int]) -> Tensor:
        batch = score([passages[row] for row in rows])
        states = tap(batch.tokens, batch.mask).output[batch.rows, batch.places]

        def surprise(part: slice) -> Tensor:
            with tap.autocast():
                said = Signal(output=body.logits(states[part]))
            return labels(said, said, Batch(mask=batch.mask, targets=batch.wanted[part]), 1.0)

        return mean_over_tokens(len(batch.wanted), body.vocabulary, surprise)

    return make_lesson(passages, train, held, loss)


def make_lesson(
    passages: Sequence[Passage], train: Sequence[int], held: Sequence[int], loss: Callable[[list[int]], Tensor]
) -> Lesson:
    """A lesson whose score counts every held-out token alike, whatever batch it is in: of cross-entropy, the logarithm of the
    perplexity."""
    said = [len(passage.ids) - passage.start for passage in passages]
    mean = sum(said[row] for row in held) / max(len(held), 1)
    return Lesson(
        lengths=[len(passage.ids) for passage in passages],
        train=train,
        held=held,
        loss=loss,
        judge=lambda rows: loss(rows) * (sum(said[row] for row in rows) / (mean * len(rows))),
    )
