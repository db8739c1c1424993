"""A model that answers with rows: (input_ids, attention_mask) -> [1, width]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.onnxruntime.library import open_session, read_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = Sequence[int] | NDArray[np.int64]


class Session:
    """A loaded ONNX model over (input_ids, attention_mask) -> [1, width]."""

    def __init__(self, file: Path, options: Mapping[str, object], *, profile: Path | None = None) -> None:
        """Raises what onnxruntime raises for a file that it does not load; a provider that is absent falls back to the CPU.

        profile: a file prefix for onnxruntime's profile, written by `end_profile`.
        """
        self._session = open_session(file, read_options(options), profile=profile)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self.provider: str = self._session.get_providers()[0]

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """The output [width] for one text's token ids."""
        import numpy as np

        tokens = np.asarray(ids, dtype=np.int64)[None]
        # Files that something else exported may want segment ids: all of one text.
        known = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
        if unknown := sorted(set(self._inputs) - set(known)):
            raise ValueError(f"the model wants the input {unknown[0]}; edgekit gives {', '.join(known)}")
        answer = self._session.run(None, {name: known[name] for name in self._inputs})[0][0]
        return np.asarray(answer, dtype=np.float32)

    def end_profile(self) -> Path:
        """Write the profile; its path."""
        return Path(self._session.end_profiling())
