"""RUNTIMES: what executes an artifact, on this machine or on a device.

This folder is copied to devices and runs there with the standard library, NumPy and one engine: it imports nothing else of
ours. A session takes one prompt's arrays and gives one row; batches are the business of whoever needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit.runtimes import llamacpp, onnxruntime, openvino
from edgekit.runtimes.memory import Demand, Memory

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import DataclassInstance
    from numpy.typing import NDArray

    from edgekit.runtimes.package import Package
    from edgekit.runtimes.placement import Placement, Work
    from edgekit.runtimes.request import Arrays

    Ids = Sequence[int] | NDArray[np.int64]


class Session(Protocol):
    """An artifact that is loaded and answers."""

    def run(self, prompt: Arrays) -> NDArray[np.float32]:
        """The output [width] for one prompt, the model's inputs by name without a batch's axis."""


class Generator(Protocol):
    """A decoder that is loaded, is fed tokens and keeps them."""

    vocabulary: int
    context: int
    """The most tokens that it takes before it is cleared."""

    def clear(self) -> None:
        """Forget what was fed."""

    def logits(self, ids: Ids, wanted: slice | None = None) -> NDArray[np.float32]:
        """Feed ids behind what was fed before; the logits [n, vocabulary] at the wanted ones of them (None: at all)."""

    def work(self) -> Work:
        """Where it runs: `provider`, and what else the runtime tells. The last thing that it may be asked."""

    def close(self) -> None:
        """Free its memory."""


class Runtime(Protocol):
    """What a runtime's module offers."""

    NAME: str
    PACKAGE: Package
    """How its Python package is called."""
    OUTPUTS: tuple[str, ...]
    """What models answer with that it runs: logits, embedding, tokens."""
    DOMAINS: tuple[str, ...]
    """The domains of the ONNX operators that it computes as they are meant; "" is ONNX's own."""

    @property
    def Options(self) -> type[DataclassInstance]:  # noqa: N802 - a class is what it gives
        """The dataclass that a target's `[runtime.<name>]` table is checked against."""

    def version(self) -> str:
        """The engine's version."""

    def providers(self) -> list[str]:
        """The execution providers that this installation has."""

    def joined(self, target: Mapping[str, object], artifact: Mapping[str, object]) -> dict[str, object]:
        """The options of a session: a target's table of this runtime with what an artifact's facts ask for."""

    def memory(self, demand: Demand, options: Mapping[str, object]) -> Memory:
        """What an artifact needs to run, predicted before it is made. options: a target's table of this runtime."""

    def defaults(self, cores: int) -> Mapping[str, str | int]:
        """What a target of a measured machine with so many cores says in its `[runtime.<name>]` table; {}: it has none."""

    def minimum(self, own: str) -> str:
        """The oldest version that runs a file. own: of the runtime that its format proves it in."""

    def distribution(self, options: Mapping[str, object]) -> str:
        """What pip installs on a device where sessions have these options."""

    def load_errors(self) -> tuple[type[Exception], ...]:
        """What it raises for a model that it does not load or cannot run."""

    def load(self, file: Path, options: Mapping[str, object]) -> Session:
        """Open the main file of an artifact that answers with rows."""

    def generator(self, file: Path, options: Mapping[str, object]) -> Generator:
        """Open the main file of an artifact that goes on with tokens."""

    def outputs(self, file: Path, prompts: Sequence[Arrays], *, options: Mapping[str, object]) -> NDArray[np.float32]:
        """The outputs [n, width] of n prompts, each run by itself, as an app would."""

    def work(self, file: Path, options: Mapping[str, object], prompt: Arrays) -> Work:
        """Nodes and matrix-product work of one call, by execution provider."""

    def placement(self, asked: Mapping[str, object], work: Work, available: Sequence[str]) -> Placement:
        """Whether the work of a session ran where its options (`asked`) want it, on a device with these providers."""


RUNTIMES: dict[str, Runtime] = {onnxruntime.NAME: onnxruntime, llamacpp.NAME: llamacpp, openvino.NAME: openvino}
