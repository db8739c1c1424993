"""A decoder in llama.cpp: the logits of the next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.llamacpp.library import LlamaError
from edgekit.runtimes.llamacpp.loaded import Loaded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Work

    Ids = Sequence[int] | NDArray[np.integer]

# The first tokens of a cache that grows: a model's own context may need more memory than there is.
_ROOM = 512


class Generator:
    """A decoder that is fed token by token or many at once, and keeps what it was fed.

    Its cache takes the context that the options ask for; where they ask for none it doubles as it fills, up to the model's own.
    """

    def __init__(self, file: Path, options: Mapping[str, object]) -> None:
        """Raises LlamaError for a file that is no decoder, and for a context that is longer than the model's."""
        self._loaded = Loaded(file, options)
        wanted = self._loaded.options
        self.vocabulary = self._loaded.vocabulary
        self.context: int = wanted.context or self._loaded.longest
        self._room, self._rows = min(wanted.context or _ROOM, self.context), 1
        self._fed: list[int] = []
        self._reserve()
        if not self._loaded.memory:
            raise LlamaError(f"{file}: an encoder, which does not generate; export it for feature-extraction")

    def _reserve(self) -> None:
        self._batch = min(self._loaded.options.batch, self._room)
        self._loaded.reserve(context=self._room, batch=self._batch, rows=min(self._rows, self._batch))

    def clear(self) -> None:
        """Forget what was fed."""
        self._loaded.clear()
        self._fed.clear()

    def logits(self, ids: Ids, wanted: slice | None = None) -> NDArray[np.float32]:
        """Feed ids behind what was fed before; the logits [n, vocabulary] at the wanted ones of them (None: at all).

        Raises LlamaError where they are more than the context, or a token is none of the vocabulary's; then `clear` it.
        """
        import numpy as np

        tokens = np.ascontiguousarray(ids, dtype=np.int32)
        marked = np.zeros(len(tokens), dtype=np.int8)
        marked[wanted if wanted is not None else slice(None)] = 1
        rows = int(marked.sum())
        self._make_room(len(self._fed) + len(tokens), rows)
        found, done = np.empty((rows, self.vocabulary), dtype=np.float32), 0
        for begin in range(0, len(tokens), self._batch):
            piece = slice(begin, begin + self._batch)
            self._loaded.decode(tokens[piece], marked[piece])
            if count := int(marked[piece].sum()):
                found[done : done + count] = self._loaded.logits(count)
                done += count
        self._fed.extend(tokens.tolist())
        return found

    def _make_room(self, tokens: int, rows: int) -> None:
        """A larger context where this one is too small, with what was fed before fed again.

        Rows count too: llama.cpp reserves rows x vocabulary floats, so that many logits at once are paid by who asks for them.
        """
        if tokens > self.context:
            raise LlamaError(
                f"{self._loaded.file}: {tokens} tokens do not fit into a context of {self.context}; shorten them, or raise"
                " context in [runtime.llama-cpp] as far as the model's reaches"
            )
        if tokens <= self._room and min(rows, self._batch) <= self._rows:
            return
        if tokens > self._room:
            self._room = min(1 << (tokens - 1).bit_length(), self.context)
        self._rows = max(self._rows, 1 << max(rows - 1, 0).bit_length())
        self._reserve()
        fed = list(self._fed)
        self._fed.clear()
        if fed:
            self.logits(fed, slice(0))

    def work(self) -> Work:
        """See `Loaded.work`; kv: the cache's types."""
        options = self._loaded.options
        return {**self._loaded.work(), "kv": [options.kv_k, options.kv_v]}

    def close(self) -> None:
        """Free the context and the model."""
        self._loaded.close()
