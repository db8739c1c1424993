"""What losses read: a model's signal for a batch, and what is known of the batch without any model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

# The target of a token or row that is not learned (torch's ignore_index, and what datasets for transformers hold).
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What one model gives for a batch. A loss names the fields that it needs; a model gives no others."""

    output: Tensor
    """Logits or embeddings [batch, width]; of a decoder the last hidden states [batch, sequence, channels], or the logits of
    the scored tokens [tokens, vocabulary]."""
    hidden: tuple[Tensor, ...] = ()
    """Outputs of matched blocks, each [batch, sequence, channels]."""
    projections: tuple[Tensor, ...] = ()
    """Query, key and value of the last block, each [batch, heads, sequence, channels per head]."""
    views: tuple[Tensor, ...] = ()
    """Of a classifier: the pooled outputs of the last block, and what the layer of its logits reads, each [batch, channels]."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a teacher said of some tokens. Of each, the weights sum to 1 and their mean over draws is its probabilities."""

    ids: Tensor
    """int64 [tokens, kept]; a token may be drawn several times."""
    weights: Tensor
    """float32 [tokens, kept]"""
    entropy: Tensor
    """In nats, float32 [tokens]."""

    def __getitem__(self, part: slice | Tensor) -> Recorded:
        """Some of the tokens."""
        return Recorded(ids=self.ids[part], weights=self.weights[part], entropy=self.entropy[part])


@dataclass(frozen=True, kw_only=True)
class Pull:
    """How much likelier each of a student's own tokens is to become. weights: float32 [tokens]; temperature: of its sampling."""

    weights: Tensor
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Packed:
    """How the texts of a batch lie behind each other in its rows."""

    places: Sequence[tuple[int, int]]
    """Of each text the row of the batch, and its first position there."""
    positions: Tensor
    """Of each token its place in its own text, int64 [batch, sequence]; 0 where nothing is."""
    texts: Tensor
    """For each wanted id the text of the batch that it is of, int64 [tokens]."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is known of a batch without any model."""

    rows: tuple[int, ...]
    """Which rows of the source are in it."""
    tokens: Tensor
    """input_ids, int64 [batch, sequence], padded on the right."""
    mask: Tensor
    """1 for a real token, 0 for padding [batch, sequence]."""
    targets: Tensor
    """Wanted class probabilities [batch, classes], zeros in a row whose label is not known; or the wanted ids [tokens], IGNORED
    for a token that no loss of tokens reads."""
    scored: tuple[Tensor, Tensor] | None = None
    """Of a decoder, for each wanted id the row of the batch and the position that predicts it, each int64 [tokens]."""
    pull: Pull | None = None
    """Of a student's own text that has a reward."""
    packed: Packed | None = None
    """Of a decoder, where several texts may share a row."""

    def to(self, device: str) -> Batch:
        """The batch with its tensors on a device; the same tensors where they are there already."""
        rows, positions = self.scored or (None, None)
        packed = self.packed and replace(
            self.packed, positions=self.packed.positions.to(device), texts=self.packed.texts.to(device)
        )
        return replace(
            self,
            packed=packed,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            targets=self.targets.to(device),
            pull=None if self.pull is None else replace(self.pull, weights=self.pull.weights.to(device)),
            scored=None if rows is None or positions is None else (rows.to(device), positions.to(device)),
        )


def check_finite(answers: Tensor, folder: Path) -> None:
    """Raise EdgekitError, beginning with the teacher's folder, for answers to a train text that are no numbers."""
    if not bool(answers.isfinite().all()):
        raise EdgekitError(
            f"{folder}: the teacher answers NaN or infinity to a train text: it overflows, or its training went wrong; take"
            " another checkpoint of it"
        )
