"""A model that answers with rows: one prompt's inputs by name -> [1, width]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.onnxruntime.library import read_options, start
from edgekit.runtimes.request import feeds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.request import Arrays


class Session:
    """A loaded ONNX model over inputs by name -> [1, width]; words: what onnxruntime said of its provider."""

    def __init__(self, file: Path, options: Mapping[str, object], *, profile: Path | None = None) -> None:
        """Raises what onnxruntime raises for a file that it does not load; a provider that is absent falls back to the CPU.

        profile: a file prefix for onnxruntime's profile, written by `end_profile`; no CUDA graph is replayed then, of which it
        would show nothing.
        """
        started = start(file, read_options(options), profile=profile, graphs=profile is None)
        self._session, self.words = started.session, started.words
        self._inputs = [value.name for value in self._session.get_inputs()]
        self.provider: str = self._session.get_providers()[0]

    def run(self, prompt: Arrays) -> NDArray[np.float32]:
        """The output [width] for one prompt. Raises ValueError for a model that wants other inputs."""
        import numpy as np

        answer = self._session.run(None, feeds(prompt, self._inputs))[0][0]
        return np.asarray(answer, dtype=np.float32)

    @property
    def graphs(self) -> str | None:
        """Why calls replay no CUDA graphs: "" where they do, None where none are wanted."""
        why: str | None = getattr(self._session, "why", None)
        return why

    def end_profile(self) -> Path:
        """Write the profile; its path."""
        return Path(self._session.end_profiling())
