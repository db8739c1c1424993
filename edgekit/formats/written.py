"""Whether a file that was written computes what the float model does: a bound that only mistakes exceed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# How far logits may be from the float model's: the root mean square of the difference by that of the logits around their mean,
# by the bits of a weight at least. Two unrelated models are sqrt(2) apart; models with random weights, which have nothing that
# would even errors out, 0.10 at 8 bits, 0.24 at 6 and 0.77 at 4. `verify` judges what is lost, this finds what is wrong.
BOUNDS: dict[float, float] = {32.0: 0.01, 16.0: 0.08, 8.0: 0.25, 6.0: 0.5, 0.0: 1.1}


def bound(bits: float) -> float:
    """How far the logits of a file of so many bits a weight may be."""
    return next(limit for least, limit in BOUNDS.items() if bits >= least)


def distance(wanted: NDArray[np.floating], ours: NDArray[np.floating]) -> float:
    """How far logits [n, classes] are from the float model's, by their spread; 1e30, which JSON can hold, for no numbers."""
    exact, given = wanted.astype("float64"), ours.astype("float64")
    spread = exact - exact.mean(axis=1, keepdims=True)
    apart_by = (given - given.mean(axis=1, keepdims=True)) - spread
    found = math.sqrt(float((apart_by**2).mean()) / max(float((spread**2).mean()), 1e-30))
    return found if math.isfinite(found) else 1e30
