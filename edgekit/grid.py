"""Grid: the numbers that a format's file can hold of a weight, so that a training sees them before the file is written.

A model that was trained on a grid has, beside its weights, the very codes and scales of its last forward pass (GRID). Export
writes those and makes none anew: another quantizer would find other scales, and lose most of what was trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit.errors import EdgekitError, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

GRID = "grid.safetensors"
# What stands behind a weight's name where its `Read` is kept: the divisors, and of a fixed range its scale and zero point.
_DIVISOR, _RANGE = "/divisor", "/range"
_FIXED = 2


@dataclass(frozen=True, kw_only=True)
class Coded:
    """Rows as codes and scales: value = scale * code - least, each scale for one group of a row's values.

    codes: whole numbers, float32 [n, groups, values of a group]; scales, least: float32 [n, groups]. least: None for zeros.
    """

    codes: Floats
    scales: Floats
    least: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a number type of equal steps holds rows: codes from `low` to `high`.

    split(data, columns): the bytes of rows as codes and scales; join is its inverse, for scales that the file can hold. hold:
    what it can hold nearest to scales (or to `least`) [n, groups].
    """

    low: int
    high: int
    split: Callable[[Bytes, int], Coded]
    join: Callable[[Coded], Bytes]
    hold: Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A weight's bytes as the file has them, and the values [n, columns] that were rounded to those."""

    packed: Bytes
    wanted: Floats


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How a scheme may read what its Linears multiply, in 8 bits: which of it serves a model is measured where a training begins.

    fixed: the range of a value is the same for every text, else each text has its own. smoothing: whether outliers of inputs may
    be divided into the weights (SmoothQuant). float_layers: how many Linears may stay float.
    """

    fixed: bool
    smoothing: bool
    float_layers: int


@dataclass(frozen=True, kw_only=True)
class Read:
    """How a file reads what a weight multiplies: divided channel by channel, then rounded to codes from 0 to 255.

    divisor: float32 [channels]. The weight's columns are multiplied with it before they are rounded; the checkpoint's weight is
    what was rounded, divided by it in float32. scale, zero: of a range that is fixed, value = scale * (code - zero); scale None:
    each text has its own.
    """

    divisor: Floats
    scale: np.float32 | None = None
    zero: int = 0


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a format and scheme make of a model's weights.

    kinds: the number type of each weight that is rounded, by its name in the checkpoint. pack(rows, kind): float32 [n, columns]
    -> the bytes of the rows as the file has them, uint8 [n, bytes of a row]; unpack(data, kind, columns): the numbers that the
    engine reads in them, float32 [n, columns]. rounds_inputs: the engine rounds what a Linear reads too, to 8 bits between its
    least and greatest value (ONNX's DynamicQuantizeLinear). input_block: it rounds what a Linear of a decoder reads, each so many
    values of a token to 8 bits around 0 (MatMulNBits, accuracy_level 4). layouts: of the kinds whose scales may be learned.
    fit(module, ids of some texts): a better start than `pack` for some weights, by name: what rounding breaks on these texts is
    made up for.
    inputs: how inputs may be read, where that is to be measured; then what is trained has a `Read` for each Linear's weight.
    floats: the weights that stay float for that. choose_reads(module, grid, source, progress): what measures it, and gives the
    grid without what stays float.
    """

    format: str
    scheme: str
    kinds: Mapping[str, str]
    pack: Callable[[Floats, str], Bytes]
    unpack: Callable[[Bytes, str, int], Floats]
    rounds_inputs: bool = False
    input_block: int | None = None
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    fit: Callable[[nn.Module, Sequence[Sequence[int]]], Iterable[tuple[str, Rounded]]] | None = None
    inputs: Inputs | None = None
    floats: frozenset[str] = frozenset()
    choose_reads: Callable[..., tuple[Grid, Mapping[str, Read]]] | None = None

    def check(self, train: str) -> None:
        """Raises EdgekitError where scales are to be trained that cannot be; train: as in QadOptions."""
        unable = sorted(set(self.kinds.values()) - self.layouts.keys())
        if train != "weights" and unable:
            raise EdgekitError(
                f'qad.train: the scales of {self.format} {self.scheme} ({", ".join(unable)}) are not learned; write "weights"'
            )


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The codes and scales that a model was trained with: `kinds` as in `Grid`; they are read when they are asked for.

    reads: the weights with a `Read`; None where inputs were not measured. floats: weights that stay float beside them, which the
    scheme would round.
    """

    file: Path
    format: str
    scheme: str
    kinds: Mapping[str, str]
    reads: frozenset[str] | None = None
    floats: frozenset[str] = frozenset()

    def serves(self, format_: str, scheme: str) -> bool:
        """Whether they are what a format and scheme write."""
        return (self.format, self.scheme) == (format_, scheme)

    def note_other(self, format_: str, scheme: str) -> str:
        """What becomes of a model that was trained with them where something else is written."""
        return (
            f"the student was trained for {self.format} {self.scheme}; as {format_} {scheme} its weights are rounded once more,"
            " which loses most of that training"
        )

    def rows(self, name: str) -> Bytes:
        """A weight's bytes, uint8 [rows, bytes of a row], by its name in the checkpoint."""
        return cast("Bytes", self._tensor(name))

    def read(self, name: str) -> Read:
        """How the input of one of `reads` is read."""
        range_ = self._tensor(name + _RANGE)
        fixed = len(range_) == _FIXED
        return Read(
            divisor=self._tensor(name + _DIVISOR),
            scale=range_[0] if fixed else None,
            zero=int(range_[1]) if fixed else 0,
        )

    def _tensor(self, name: str) -> Floats:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="numpy") as opened:
                found: Floats = opened.get_tensor(name)
        except (OSError, SafetensorError) as failed:
            raise _damaged(self.file, first_line(failed)) from failed
        return found


def write_packed(
    folder: Path,
    grid: Grid,
    packed: Mapping[str, Bytes],
    reads: Mapping[str, Read] | None = None,
) -> None:
    """Put the codes and scales of a model's weights beside it, and where it was measured how their inputs are read."""
    import numpy as np
    from safetensors.numpy import save_file

    told: dict[str, object] = {"format": grid.format, "scheme": grid.scheme, "kinds": dict(sorted(grid.kinds.items()))}
    tensors: dict[str, Bytes | Floats] = dict(packed)
    if reads is not None:
        told |= {"reads": sorted(reads), "floats": sorted(grid.floats)}
        for name, read in reads.items():
            tensors[name + _DIVISOR] = read.divisor
            tensors[name + _RANGE] = np.array([] if read.scale is None else [read.scale, read.zero], np.float32)
    # One entry: safetensors writes several in an order of chance.
    save_file(tensors, folder / GRID, metadata={"grid": json.dumps(told)})


def read_packed(folder: Path) -> Packed | None:
    """What the model in a folder was trained with; None where it was trained on no grid. EdgekitError where that is damaged."""
    file = folder / GRID
    if not file.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            told = json.loads((opened.metadata() or {})["grid"])
            names = set(opened.keys())
        kinds, format_, scheme = told["kinds"], str(told["format"]), str(told["scheme"])
        reads = frozenset(map(str, told["reads"])) if "reads" in told else None
        floats = frozenset(map(str, told.get("floats", ())))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as failed:
        raise _damaged(file, first_line(failed)) from failed
    beside = {name + part for name in reads or () for part in (_DIVISOR, _RANGE)}
    if not isinstance(kinds, dict) or {*kinds, *beside} != names:
        raise _damaged(file, "its list of weights is not that of its tensors")
    checked = {key: str(kind) for key, kind in kinds.items()}
    return Packed(file=file, format=format_, scheme=scheme, kinds=checked, reads=reads, floats=floats)


def _damaged(file: Path, problem: str) -> EdgekitError:
    return EdgekitError(f"{file}: not the codes of a model ({problem}); make the step qad again")
