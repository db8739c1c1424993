"""RUNTIMES: what executes an artifact, on this machine or on a device.

This folder is copied to devices and runs there with the standard library, NumPy and one engine: it imports nothing else of
ours. A session takes one text's token ids and gives one row; batches are the business of whoever needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.runtimes import ort

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = Sequence[int] | NDArray[np.int64]


class Session(Protocol):
    """An artifact that is loaded and answers."""

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """The output [width] for one text's token ids."""


class Runtime(Protocol):
    """What a runtime's module offers."""

    NAME: str

    @property
    def Options(self) -> type[Any]:  # noqa: N802 - a class is what it gives
        """The dataclass that a target's `[runtime.<name>]` table is checked against."""

    def version(self) -> str:
        """The engine's version."""

    def providers(self) -> list[str]:
        """The execution providers that this installation has."""

    def joined(self, target: Mapping[str, Any], artifact: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a session: a target's table of this runtime with what an artifact's facts ask for."""

    def load(self, file: Path, options: Mapping[str, Any]) -> Session:
        """Open an artifact's main file."""

    def work(self, file: Path, options: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
        """Nodes and matrix-product work of one call, by execution provider."""


RUNTIMES: dict[str, Runtime] = {ort.NAME: ort}
