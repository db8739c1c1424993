"""Calibration: what `calibrate` found of the inputs of every linear layer, and `export` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "calibration.npz"
EMBEDDING = "embedding"


@dataclass(frozen=True, kw_only=True)
class Stats:
    """One layer's input over all real tokens: float32 [channels] each, and a histogram of all channels together.

    `histogram` counts values in equal bins over `histogram_edges`, which are -2^k and 2^k; `count` is tokens. `grad_square`,
    float32 [output channels], is that of `gradients.gradient_squares` where it was asked for.
    """

    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    mean_square: NDArray[np.float32]
    histogram: NDArray[np.int64]
    histogram_edges: NDArray[np.float32]
    count: int
    grad_square: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Statistics keyed "<module path>#<call>"; the path is the layer's inside the module that the task loads."""

    folder: Path
    stats: Mapping[str, Stats]
    embedding: NDArray[np.float32] | None = None
    """Of a decoder whose gradients were asked for: the mean square of those of the token embedding's channels."""


def load_calibration(folder: Path) -> Calibration:
    """Read a calibration folder; EdgekitError where there is none."""
    import numpy as np

    if not (folder / FILE).is_file():
        raise EdgekitError(f"{folder}: no {FILE} in it: not the folder of a calibrate step")
    with np.load(folder / FILE, allow_pickle=False) as arrays:
        keys = sorted({name.rpartition("/")[0] for name in arrays.files} - {""})
        embedding = arrays.get(EMBEDDING)
        stats = {
            key: Stats(
                minimum=arrays[f"{key}/min"],
                maximum=arrays[f"{key}/max"],
                mean_square=arrays[f"{key}/mean_square"],
                histogram=arrays[f"{key}/histogram"],
                histogram_edges=arrays[f"{key}/histogram_edges"],
                count=int(arrays[f"{key}/count"]),
                grad_square=arrays.get(f"{key}/grad_square"),
            )
            for key in keys
        }
    return Calibration(folder=folder, stats=stats, embedding=embedding)
