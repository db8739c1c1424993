"""How an encoder was trained to read its inputs (`edgekit.grid.Read`): its graph divides and rounds them so, and no other way.

As in `trained`, a graph's product is told by its values: each output channel has those of a row of a weight in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.graph import Graph, Linear, copy_model, float_array
from edgekit.formats.onnx.rounding import read_weight, unpack
from edgekit.formats.onnx.smooth import Range, multiply_input
from edgekit.grid import Read, read_packed

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.model import Model

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A float graph that divides its inputs, the ranges of these by calibration key, and the keys of Linears that stay float."""

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    floats: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainedInputs:
    """By the bytes of a weight's row, which of `reads` it was trained with, several where rows are alike, and what was rounded
    then, float32 [channels]. A product that has other rows was float in training, and stays so."""

    reads: Sequence[Read]
    rows: Mapping[bytes, Mapping[int, Floats]]

    def prepare(self, model: onnx.ModelProto) -> Prepared:
        """A copy of a float graph, whose weights are then what was rounded, with what their inputs are divided by in it.

        Raises EdgekitError for a product of which parts were trained with other inputs than others.
        """
        import numpy as np

        graph = Graph(copy_model(model))
        ranges: dict[str, Range] = {}
        floats: list[str] = []
        readers: dict[tuple[str, int], list[Linear]] = {}
        for linear in graph.linears():
            rows = [row.tobytes() for row in float_array(graph.weights(linear.weight).T)]
            known = [self.rows[row] for row in rows if row in self.rows]
            if len(known) != len(rows):
                floats.append(linear.key)
                continue
            if not (same := set.intersection(*(set(found) for found in known))):
                raise EdgekitError(
                    f"{linear.key}: its channels were trained to read their input in different ways; make the step qad again"
                )
            index = min(same)
            readers.setdefault((linear.source, index), []).append(linear)
            graph.add_constant(linear.weight, np.stack([found[index] for found in known]).T)
        nodes = list(graph.model.graph.node)
        for (_, index), linears in readers.items():
            read = self.reads[index]
            if read.scale is not None:
                ranges |= {linear.key: _range(read) for linear in linears}
            if (read.divisor == 1).all():
                continue
            multiply_input(graph, nodes, linears, float_array(1 / read.divisor), f".{index}")
        graph.replace_nodes(nodes)
        return Prepared(model=graph.model, ranges=ranges, floats=tuple(floats))


def _range(read: Read) -> Range:
    import numpy as np

    assert read.scale is not None
    least, greatest = (np.array([read.scale * (code - read.zero)], np.float32) for code in (0, 255))
    return Range(minimum=least, maximum=greatest, mean_square=np.zeros(1, np.float32), steps=(read.scale, read.zero))


def read_trained_inputs(model: Model) -> TrainedInputs | None:
    """How a student was trained to read its inputs; None where that was not measured.

    Raises EdgekitError for a grid that is damaged.
    """
    packed = read_packed(model.folder)
    if packed is None or packed.reads is None:
        return None
    reads: list[Read] = []
    places: dict[bytes, int] = {}
    rows: dict[bytes, dict[int, Floats]] = {}
    for name in sorted(packed.reads):
        read = packed.read(name)
        place = places.setdefault(_content(read), len(reads))
        if place == len(reads):
            reads.append(read)
        weight = read_weight(model, name)
        rounded = unpack(packed.rows(name), packed.kinds[name], weight.shape[1])
        for row, values in zip(weight, rounded, strict=True):
            rows.setdefault(row.tobytes(), {})[place] = values
    return TrainedInputs(reads=reads, rows=rows)


def _content(read: Read) -> bytes:
    scale = b"" if read.scale is None else read.scale.tobytes()
    return b"/".join([read.divisor.tobytes(), scale, str(read.zero).encode()])
