"""The codes that an encoder was trained with, found by the values that they stand for.

A graph's matrices are not a checkpoint's one by one: query, key and value become one product, tables and Linears get other names.
But each output channel of a Linear, and each row of a table, is rounded by itself, so that its values tell which one it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class Channel(NamedTuple):
    """What a file holds of an output channel or a row: its codes, and its scale or scales."""

    codes: NDArray[np.generic]
    scales: Floats


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The codes that an encoder was trained with, by their values: of channels of Linears, and of rows of tables."""

    channels: Mapping[bytes, Channel]
    rows: Mapping[bytes, Channel]

    def find(self, values: Floats, *, table: bool = False) -> tuple[NDArray[np.integer], Floats] | None:
        """Codes [n, ...] and scales [n, ...] of channels or rows [n, values]; None where they are not what was trained."""
        import numpy as np

        known_ones = self.rows if table else self.channels
        found = [known_ones.get(row.tobytes()) for row in np.ascontiguousarray(values)]
        known = [channel for channel in found if channel is not None]
        if len(known) != len(found):
            return None
        return np.stack([channel.codes for channel in known]), np.stack([channel.scales for channel in known])
