"""The family `ngrams`: n-grams of a text's tokens, and of each token's characters, look up a row each of one hashed table; the
rows are added up, and a linear layer makes logits of the sum.

So the model is linear in its n-grams, of rank `width`: fastText (Joulin et al., arXiv:1607.01759; characters: Bojanowski et al.,
arXiv:1607.04606) with hashed features (Weinberger et al., arXiv:0902.2206). It is a family of transformers as any other once
`register` has told the library of it, in this process alone.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from edgekit.hashing import PRIME, columns

FAMILY = "ngrams"


class NgramsConfig(PreTrainedConfig):  # type: ignore[misc] # transformers has no types
    """vocab_size: token ids; buckets: rows of the table, of which row 0 is no n-gram's; width: numbers of a row.

    grams: of each kind of n-gram of tokens the distances of its tokens from the first; spelling: the same of characters;
    characters: of each token how many are read. dropout: the share of n-grams that are left out in training.
    """

    model_type = FAMILY
    vocab_size: int = 1
    buckets: int = 2
    width: int = 1
    grams: list[list[int]] | None = None
    spelling: list[list[int]] | None = None
    characters: int = 1
    dropout: float = 0.0
    pad_token_id: int | None = None


class NgramsForSequenceClassification(PreTrainedModel):  # type: ignore[misc] # as above
    """(input_ids, attention_mask), int64 [batch, sequence] each -> logits [batch, classes]."""

    config_class = NgramsConfig
    base_model_prefix = FAMILY

    def __init__(self, config: NgramsConfig) -> None:
        super().__init__(config)
        self.ngram_embedding = nn.Embedding(config.buckets, config.width, padding_idx=0)
        self.classifier = nn.Linear(config.width, config.num_labels)
        # See `spell`.
        self.register_buffer("spelled", torch.zeros(config.vocab_size, config.characters, dtype=torch.uint8))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Rows of a size that shrinks with their width, so that all n-grams of a text say little at first."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1 / self.config.width)
            nn.init.zeros_(module.weight[0])
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.width**-0.5)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        return_dict: bool = True,
    ) -> SequenceClassifierOutput:
        """The sum of the n-grams' rows over the root of their number, so that a long text is no surer than a short one.

        token_type_ids, which many tokenizers make, and return_dict are transformers' interface and change nothing.
        """
        rows, there = find_rows(input_ids, attention_mask, self.spelled, self.config)
        if self.training and self.config.dropout:
            there = there * (torch.rand(rows.shape, device=rows.device) >= self.config.dropout)
        total = self.ngram_embedding(rows * there).sum(dim=(1, 2))
        count = there.sum(dim=(1, 2)).clamp(min=1).to(total.dtype)
        return SequenceClassifierOutput(logits=self.classifier(total * count.rsqrt().unsqueeze(1)))


def find_rows(
    input_ids: Tensor, attention_mask: Tensor, spelled: Tensor, config: NgramsConfig
) -> tuple[Tensor, Tensor]:
    """The table's row of each n-gram of tokens and of characters, and 1 where it is there: int64 [batch, sequence, kinds].

    As `hashing.rows_of` tells them of ids plus 1 and of characters, in the order of `hashing.columns`. spelled: see `spell`.
    """
    by, ends = columns(config.grams or [], config.spelling or [], config.characters)
    window = len(by) - config.characters
    first = ((input_ids + 1) * attention_mask).unsqueeze(-1)
    filled = nn.functional.pad(first, (0, 0, 0, window - 1))
    beside = [filled[:, place : place - window + 1 or None] for place in range(1, window)]
    letters = nn.functional.embedding(input_ids, spelled).long()
    numbers = torch.cat([first, *beside, letters], dim=-1)
    codes = _product(numbers, numbers.new_tensor(by)) % PRIME % (config.buckets - 1) + 1
    there = (numbers.index_select(-1, numbers.new_tensor(ends)) * first).sign()
    return codes, there


def _product(numbers: Tensor, by: Tensor) -> Tensor:
    """A matrix product of integers, which accelerators do not have: there as a sum, of the same numbers."""
    return numbers @ by if numbers.device.type == "cpu" else (numbers.unsqueeze(-1) * by).sum(dim=-2)


@cache
def register() -> None:
    """Tell transformers of the family, so that its Auto classes and pipelines read such a checkpoint."""
    AutoConfig.register(FAMILY, NgramsConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(NgramsConfig, NgramsForSequenceClassification, exist_ok=True)
