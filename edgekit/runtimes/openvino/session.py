"""A model that answers with rows: one prompt's inputs by name -> [1, width]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes.openvino.library import Profiled, compile_model, read_options
from edgekit.runtimes.request import feeds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.request import Arrays


class Session:
    """A loaded ONNX model over inputs by name -> [1, width]."""

    def __init__(self, file: Path, options: Mapping[str, object], *, count: bool = False) -> None:
        """Raises what OpenVINO raises for a file that it does not load, ValueError for one that it would compute otherwise.

        count: say what each operator did (`profile`), which costs time.
        """
        self._compiled = compile_model(file, read_options(options), count=count)
        self._asked = self._compiled.create_infer_request()
        self._inputs = [value.any_name for value in self._compiled.inputs]

    def run(self, prompt: Arrays) -> NDArray[np.float32]:
        """The output [width] for one prompt. Raises ValueError where the model wants other inputs, or gives no single row."""
        import numpy as np

        (answer, *_) = self._asked.infer(feeds(prompt, self._inputs)).values()
        if answer.ndim != 2 or len(answer) != 1:
            raise ValueError(f"one text gave an answer of shape {list(answer.shape)}, expected [1, width]")
        return np.array(answer[0], dtype=np.float32)  # a copy: the request's own memory is used again

    def profile(self) -> list[Profiled]:
        """The operators that ran for the last text."""
        return [node for node in self._asked.get_profiling_info() if str(node.status).endswith(".EXECUTED")]
