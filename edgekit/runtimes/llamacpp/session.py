"""An embedder in llama.cpp: one row per text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.llamacpp.loaded import Loaded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Work
    from edgekit.runtimes.request import Arrays

# An embedder's context grows to the longest text in doubling steps: its buffers grow with the square of it.
_SHORTEST = 256


class Session:
    """An embedder: all of a text's tokens at once, one row back."""

    def __init__(self, file: Path, options: Mapping[str, object]) -> None:
        """Raises LlamaError for a file that llama.cpp does not load."""
        self._loaded = Loaded(file, options)
        self._room = 0
        self.table: int = self._loaded.vocabulary * self._loaded.width

    def run(self, prompt: Arrays) -> NDArray[np.float32]:
        """The pooled output [width] for one text's `input_ids`, not normalized. Raises LlamaError where they are too many."""
        import numpy as np

        tokens = np.ascontiguousarray(prompt["input_ids"], dtype=np.int32)
        if len(tokens) > self._room:
            self._grow(len(tokens))
        self._loaded.clear()
        self._loaded.decode(tokens, np.ones(len(tokens), dtype=np.int8))
        return self._loaded.embedding()

    def _grow(self, tokens: int) -> None:
        """Attention to both sides needs a whole text in one step (n_ubatch), and learned positions end with the model's."""
        wanted = max(tokens, self._loaded.options.context, _SHORTEST)
        room = max(tokens, min(1 << (wanted - 1).bit_length(), self._loaded.longest))
        self._loaded.reserve(context=room, batch=room, rows=room, embeddings=True)
        self._room = room

    def work(self) -> Work:
        """See `Loaded.work`."""
        return self._loaded.work()

    def close(self) -> None:
        """Free the context and the model."""
        self._loaded.close()
