"""The codes that a model was trained with, for the matrices of its graph.

An encoder's matrices are not its checkpoint's one by one: query, key and value become one product, tables and Linears get other
names. But each output channel of a Linear, and each row of a table, is rounded by itself, so that its values tell which one it
is. (A decoder's are found by name: `decoder_grid`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    # Of each channel or row: its codes [n, ...], and its scale or scales [n, ...].
    Found = tuple[NDArray[np.integer], Floats]


class Trained(Protocol):
    """The codes that a model was trained with."""

    def find(self, name: str, values: Floats, *, table: bool = False) -> Found | None:
        """Codes [n, ...] and scales [n, ...] of the channels or rows [n, values] of a matrix, whose name in torch that is.

        None where they are not what was trained.
        """


class Channel(NamedTuple):
    """What a file holds of an output channel or a row: its codes, and its scale or scales."""

    codes: NDArray[np.generic]
    scales: Floats


@dataclass(frozen=True, kw_only=True)
class ByValues:
    """The codes that an encoder was trained with, by their values: of channels of Linears, and of rows of tables."""

    channels: Mapping[bytes, Channel]
    rows: Mapping[bytes, Channel]

    def find(self, name: str, values: Floats, *, table: bool = False) -> Found | None:
        """See Trained."""
        import numpy as np

        known_ones = self.rows if table else self.channels
        found = [known_ones.get(row.tobytes()) for row in np.ascontiguousarray(values)]
        known = [channel for channel in found if channel is not None]
        if len(known) != len(found):
            return None
        return np.stack([channel.codes for channel in known]), np.stack([channel.scales for channel in known])
