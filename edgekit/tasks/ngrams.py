"""The family `ngrams`: n-grams of a text's tokens, and of each token's characters, look up a row each of one hashed table; the
rows are added up, and a linear layer makes logits of the sum.

So the model is linear in its n-grams, of rank `width`: fastText (Joulin et al., arXiv:1607.01759; characters: Bojanowski et al.,
arXiv:1607.04606) with hashed features (Weinberger et al., arXiv:0902.2206). It is a family of transformers as any other once
`register` has told the library of it, in this process alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

FAMILY = "ngrams"
# A Mersenne prime: products of a token id (below 2^20) with factors below it, and their sums, stay below 2^53.
PRIME = 2**31 - 1


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
        config, sequence = self.config, input_ids.shape[1]
        letters = self.spelled.index_select(0, input_ids.flatten()).long()
        inside = find_rows(letters, letters.clamp(max=1), config.spelling, config.buckets)
        inside = inside.reshape(-1, sequence, config.characters * len(config.spelling)) * attention_mask.unsqueeze(-1)
        rows = torch.cat([find_rows(input_ids, attention_mask, config.grams, config.buckets), inside], dim=-1)
        if self.training and self.config.dropout:
            rows = rows * (torch.rand(rows.shape, device=rows.device) >= self.config.dropout)
        total = self.ngram_embedding(rows).sum(dim=(1, 2))
        count = rows.clamp(max=1).sum(dim=(1, 2)).clamp(min=1).to(total.dtype)
        return SequenceClassifierOutput(logits=self.classifier(total * count.rsqrt().unsqueeze(1)))


def find_rows(input_ids: Tensor, attention_mask: Tensor, grams: Sequence[Sequence[int]], buckets: int) -> Tensor:
    """The table's row of each n-gram, int64 [batch, sequence, grams]; 0 where an n-gram would reach beyond the text.

    A hash is (sum of factor * (id + 1)) mod PRIME mod (buckets - 1), plus 1: Carter and Wegman's universal hashing (1979) of
    vectors. All of it is exact in int64, here and in onnxruntime.
    """
    longest = 1 + max(map(max, grams))
    sequence = input_ids.shape[1]
    tokens = nn.functional.pad((input_ids + 1) * attention_mask, (0, longest - 1))
    window = torch.stack([tokens[:, place : sequence + place] for place in range(longest)], dim=-1)
    codes = (window.unsqueeze(-1) * window.new_tensor(factors(grams))).sum(dim=2) % PRIME % (buckets - 1) + 1
    ends = window.index_select(-1, window.new_tensor([max(gram) for gram in grams]))
    return codes * ends.clamp(max=1) * attention_mask.unsqueeze(-1)


def factors(grams: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the token at each distance is multiplied by in each kind of n-gram, [longest n-gram, grams]; 0 where it is not in it.

    They are the sequence of Knuth's MMIX generator (The Art of Computer Programming 2, 3.3.4), its upper 31 bits.
    """
    longest, state, table = 1 + max(map(max, grams)), 0, []
    for place in range(longest):
        row = []
        for gram in grams:
            state = (6364136223846793005 * state + 1442695040888963407) % 2**64
            row.append((state >> 33) % PRIME if place in gram else 0)
        table.append(row)
    return table


def spell(vocabulary: Mapping[str, int], size: int, prefix: str | None, characters: int) -> NDArray[np.uint8]:
    """The first characters of each token as numbers from 1, 0 behind its last, uint8 [size, characters].

    vocabulary: ids of tokens by how their tokenizer writes them, which marks where a word begins; or, with WordPiece's `prefix`,
    where it goes on: then what begins one is written with a mark. Characters of one remainder by 255 are one.
    """
    table = np.zeros((size, characters), np.uint8)
    for token, index in vocabulary.items():
        written = token
        if prefix is not None:
            written = token.removeprefix(prefix) if token.startswith(prefix) else f"^{token}"
        letters = [1 + ord(letter) % 255 for letter in written[:characters]]
        table[index, : len(letters)] = letters
    return table


@cache
def register() -> None:
    """Tell transformers of the family, so that its Auto classes and pipelines read such a checkpoint."""
    AutoConfig.register(FAMILY, NgramsConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(NgramsConfig, NgramsForSequenceClassification, exist_ok=True)
