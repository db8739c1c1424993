"""How likely a decoder finds several continuations of one text, in one pass: the text's cache is shared by all of them.

With matrices of float32 and q8_0 that is what a pass for each gives, to 1e-5. Kernels of other types round what they multiply by,
so that steps of few and of many tokens differ: SmolLM2-135M's in q4_1 by up to 0.3 nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes import scores
from edgekit.runtimes.llamacpp.loaded import Loaded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# llama.cpp reserves a vocabulary of floats for each output: so many bytes of them at once.
_LOGITS_BYTES = 256 << 20
# A context grows by doubling, so that texts of all lengths need few.
_ROOM = 256


class Branches:
    """A decoder that reads a text once, and behind it each of several continuations as a sequence of its own."""

    def __init__(self, file: Path, options: Mapping[str, object]) -> None:
        """Raises LlamaError for a file that llama.cpp does not load."""
        self._loaded = Loaded(file, options)
        self._room, self._rows, self._sequences = 0, 0, 0

    @property
    def longest(self) -> int:
        """The tokens of the model's own context."""
        return self._loaded.longest

    def log_probabilities(self, prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """Of each branch the log-probability, in nats, of each of its tokens, given the prefix and those before it.

        prefix: at least one token; branches: at least one token each. Raises LlamaError where they do not fit into the context.
        """
        found: list[NDArray[np.float64]] = []
        # Of one step: its sequences, its outputs, and the cells that the prefix leaves.
        most = (
            self._loaded.most_sequences,
            max(1, _LOGITS_BYTES // (4 * self._loaded.vocabulary)),
            self.longest - len(prefix),
        )
        begin = 0
        while begin < len(branches):
            sums = accumulate(len(branch) for branch in branches[begin : begin + most[0]])
            count = max(sum(total <= min(most[1:]) for total in sums), 1)
            found += self._group(prefix, branches[begin : begin + count])
            begin += count
        return found

    def _group(self, prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """As many branches as are read in one step."""

        # A branch's last token is followed by nothing that counts.
        fed = [branch[:-1] for branch in branches]
        rows, tokens = 1 + sum(map(len, fed)), len(prefix) + sum(map(len, fed))
        self._reserve(tokens, rows, len(branches))
        self._loaded.clear()
        self._loaded.decode_branches(prefix, fed)
        logs = scores.log_softmax(self._loaded.logits(rows))
        found: list[NDArray[np.float64]] = []
        row = 1
        for branch in branches:
            places = [0, *range(row, row + len(branch) - 1)]
            found.append(logs[places, list(branch)])
            row += len(branch) - 1
        return found

    def _reserve(self, tokens: int, rows: int, sequences: int) -> None:
        if tokens <= self._room and rows <= self._rows and sequences <= self._sequences:
            return
        longest = self._loaded.longest or tokens
        self._room = max(self._room, min(max(_ROOM, 1 << (tokens - 1).bit_length()), max(longest, tokens)))
        self._rows, self._sequences = max(self._rows, rows), max(self._sequences, sequences)
        self._loaded.reserve(context=self._room, batch=self._room, rows=self._rows, sequences=self._sequences)

    def close(self) -> None:
        """Free the context and the model."""
        self._loaded.close()
