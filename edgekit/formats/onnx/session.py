"""onnxruntime on this machine's CPU: run a graph over encoded prompts, in the options that the artifact asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit.errors import EdgekitError
from edgekit.runtimes.onnxruntime.library import Options, load_errors, open_session, version

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.modalities.encoded import Arrays, Encoded

# onnxruntime's SkipLayerNormalization kernel takes 6x as long as the Add and LayerNormalization that it replaces
# (measured with onnxruntime 1.31 on BERT MiniLM); the fusion can only be switched off per session.
DISABLED_OPTIMIZERS = ("SkipLayerNormFusion",)


class Value(Protocol):
    """An input or an output of a graph, as onnxruntime tells it."""

    name: str
    shape: Sequence[int | str | None]
    type: str


class Session:
    """An onnxruntime session on the CPU over inputs by name -> [batch, width]."""

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        *,
        threads: int = 1,
        fuse: bool = True,
        entries: Mapping[str, str] | None = None,
        named: Path | None = None,
    ) -> None:
        """Raises EdgekitError where onnxruntime does not load the model.

        fuse: False runs the graph's nodes as they are written, without any optimizer; named: what errors call the file.
        """
        from edgekit.formats.onnx.graph import check_size, weight_bytes

        self._named = str(named or model) if isinstance(model, Path) else "the exported graph"
        if not isinstance(model, Path):
            check_size(weight_bytes(model), self._named)
        options = Options(
            threads=threads, disabled_optimizers=list(DISABLED_OPTIMIZERS), config_entries=dict(entries or {})
        )
        source = model if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session = open_session(source, options, optimize=fuse)
        except load_errors() as failed:
            raise EdgekitError(f"{self._named}: onnxruntime {version()} does not load it: {_told(failed)}") from failed
        self.takes: list[Value] = self._session.get_inputs()
        self.gives: list[Value] = self._session.get_outputs()
        self.inputs = [value.name for value in self.takes]

    def run(self, inputs: Arrays) -> NDArray[np.float32]:
        """The output [batch, width] for inputs by name. EdgekitError where onnxruntime fails on them."""
        try:
            answer: NDArray[np.float32] = self._session.run(None, self._feeds(inputs))[0]
        except load_errors() as failed:
            name, array = next(iter(inputs.items()))
            raise EdgekitError(
                f"{self._named}: onnxruntime fails on {name.removeprefix('input_')} of shape {list(array.shape)}: {_told(failed)}"
            ) from failed
        return answer

    def values(self, names: Sequence[str], inputs: Arrays) -> list[NDArray[np.float32]]:
        """Outputs by name, for the inputs of `run`."""
        return list(self._session.run(list(names), self._feeds(inputs)))

    def outputs(self, encoded: Encoded) -> NDArray[np.float32]:
        """The outputs [n, width] of n prompts, each run by itself as a device would."""
        import numpy as np

        return np.concatenate([self.run(encoded.subset([index]).batch()) for index in range(len(encoded))]).astype(
            np.float32
        )

    def _feeds(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        import numpy as np

        given = dict(inputs)
        if "token_type_ids" in self.inputs:  # only in files that something else exported: all of one segment
            given["token_type_ids"] = np.zeros_like(given["input_ids"])
        return {name: value for name, value in given.items() if name in self.inputs}


def _told(failed: Exception) -> str:
    return (str(failed).splitlines() or [""])[0][:300]
