"""FORMATS: how a student is written to disk for a runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.formats import onnx

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.calibrate import Calibration


class Format(Protocol):
    """What a format's module offers."""

    NAME: str
    RUNTIME: str
    """The entry of RUNTIMES that runs it."""
    SCHEMES: tuple[str, ...]

    @property
    def Options(self) -> type[Any]:  # noqa: N802  (a dataclass in the module)
        """The dataclass of a target's `[export.<task>]` table, less `format`."""

    def write(
        self,
        *,
        module: nn.Module,
        ids: Sequence[Sequence[int]],
        calibration: Calibration,
        options: Any,
        score: Callable[[NDArray[np.float32], NDArray[np.float32]], float],
        out: Path,
        pad_id: int,
        output_name: str,
    ) -> dict[str, Any]:
        """Write a module into a folder; returns the artifact's facts that the format knows."""


FORMATS: dict[str, Format] = {
    onnx.NAME: onnx,
}
