"""OUTPUTS: the kinds of answer that models give. A task names its own, and so do what was recorded, an artifact and a bundle.

What a verb does with a kind of answer is in a table of the verb's, by the same names: how it is recorded
(`record.RECORDERS`), compared and judged (`verify.JUDGES`), learned (`distill.batches.SOURCES`), loaded in an app
(`bundle.loaders.LOADERS`).
"""

from __future__ import annotations

from typing import Protocol

from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS


class Output(Protocol):
    """What follows from the kind of answer alone, whoever gives it."""

    @property
    def name(self) -> str:
        """What files call it."""

    @property
    def generates(self) -> bool:
        """Whether the answer is written step by step, each step by what was written before, as decoders do; else it is one
        row of numbers per prompt."""

    @property
    def has_classes(self) -> bool:
        """Whether each number of a row is the score of one of the model's labels."""

    @property
    def pools(self) -> bool:
        """Whether it is made of the body's states as the checkpoint's own pooling files say, without any head."""

    def plain(self, answer: object) -> object:
        """A loader's answer to one prompt as JSON can hold it."""


OUTPUTS: dict[str, Output] = {LOGITS.name: LOGITS, EMBEDDING.name: EMBEDDING, TOKENS.name: TOKENS}
