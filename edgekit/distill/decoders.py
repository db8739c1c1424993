"""A decoder in training: its hidden states first; logits are made of some tokens at a time (`edgekit.distill.chunked`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgekit.distill.chunked import Head


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
    def head(self) -> Head:
        """What makes logits of the last hidden states."""
        layer = self.model.get_output_embeddings()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return Head(weight=layer.weight, bias=layer.bias, cap=cap)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """int64 [batch, sequence] twice, padded on the right -> [batch, sequence, channels].

        position_ids: where each token is in its own text, of rows that hold several. transformers then lets none see another
        text, where it is given no mask (`masking_utils.find_packed_sequence_indices`).
        """
        inside = self.model.base_model
        if position_ids is not None:
            packed: Tensor = inside(input_ids=input_ids, position_ids=position_ids, use_cache=False)[0]
            return packed
        states: Tensor = inside(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        return states

    def read_on(self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """The last token's hidden states [batch, channels] behind what a cache holds, and the cache with these tokens in it.

        input_ids: int64 [batch, new tokens]; attention_mask: of all tokens so far, padded on the left [batch, sequence].
        """
        places = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        said = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        return said.last_hidden_state[:, -1], said.past_key_values
