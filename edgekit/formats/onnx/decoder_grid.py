"""The grid of a decoder's ONNX scheme: how each weight is rounded, and what a student was trained with, found by name.

A decoder's graph keeps its Linears one by one, under their names in torch, and each weight is held against its codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.formats.onnx.rounding import checked_rows, make_layouts, pack, pack_fitted, unpack
from edgekit.formats.onnx.sizes import DECODER_HEAD, DECODER_TABLE, IMAGES, is_tied
from edgekit.formats.onnx.table import SMALLEST_TABLE_ROWS
from edgekit.grid import Grid, read_packed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.formats.onnx.options import Options
    from edgekit.formats.onnx.trained import Found
    from edgekit.grid import Packed
    from edgekit.model import Model

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

# Schemes that round a weight by itself alone.
ROUNDED = ("w4", "w8", "int8-dynamic")
# The task's module holds transformers' as this, and so does the graph.
_MODULE = "model."


def make_decoder_grid(format_: str, model: Model, options: Options) -> Grid:
    """What a scheme makes of a decoder's weights, from its headers alone.

    Raises EdgekitError for a scheme that rounds nothing or chooses by itself, and for a model that takes images too.
    """
    from edgekit.formats.gptq import round_linears

    if options.scheme not in ROUNDED:
        why = "chooses by the trained model" if options.scheme == "auto" else "rounds no weight"
        raise EdgekitError(
            f"onnx {options.scheme}: {why}, and [qad] trains for weights that are rounded one by one; name a scheme, such as"
            f" --scheme w4 (or {', '.join(ROUNDED[1:])}), or take out [qad]"
        )
    if (images := next(filter(IMAGES.search, model.tensors), None)) is not None:
        raise EdgekitError(
            f"{model.folder}: {images}: [qad] does not train a model that takes images too; save its text model alone, or take"
            " out [qad]"
        )
    kinds = find_kinds(model, options)
    blocks = options.scheme != "int8-dynamic"
    fitted = {name: kind for name, kind in kinds.items() if kind.startswith("w4/")}
    return Grid(
        format=format_,
        scheme=options.scheme,
        kinds=kinds,
        pack=_pack,
        unpack=unpack,
        rounds_inputs=not blocks,
        input_block=options.block if blocks and options.inputs == "int8" else None,
        layouts=make_layouts(kinds.values()),
        fit=partial(round_linears, kinds=fitted, pack=pack_fitted) if fitted else None,
    )


def find_kinds(model: Model, options: Options) -> dict[str, str]:
    """How each weight is rounded (see `rounding`), by its name in the checkpoint; a table that is the head too is one."""
    from edgekit.formats.onnx.decoder_weights import HEAD_BITS

    eight = "pairs" if options.reduce_range else "int8"
    linear, head = eight, eight
    if options.scheme != "int8-dynamic":
        linear, head = f"{options.scheme}/{options.block}", f"w{HEAD_BITS}/{options.block}"
    tied, kinds = is_tied(model), dict[str, str]()
    for name, info in model.tensors.items():
        if len(info.shape) != 2 or (tied and DECODER_HEAD.search(name)):
            continue
        if DECODER_TABLE.search(name) and not tied:
            kinds |= {name: "table"} if info.shape[0] >= SMALLEST_TABLE_ROWS else {}
        else:
            kinds[name] = head if DECODER_TABLE.search(name) or DECODER_HEAD.search(name) else linear
    return kinds


def _pack(rows: Floats, kind: str) -> Bytes:
    """As `rounding.pack`, and 4 bits as a decoder's export rounds them, where it knows no importance."""
    return pack(rows, kind, weighted=True)


@dataclass(frozen=True, kw_only=True)
class ByNames:
    """The codes that a decoder was trained with. shared: the table that is its head too."""

    packed: Packed
    shared: str | None

    def find(self, name: str, values: Floats, *, table: bool = False) -> Found:
        """See Trained. Raises EdgekitError where they are not what was trained: nothing is rounded anew beside it."""
        own = name.removeprefix(_MODULE)
        if own not in self.packed.kinds and self.shared is not None:
            own = self.shared
        if own not in self.packed.kinds:
            raise EdgekitError(
                f"{self.packed.file}: nothing of {own}, which the export rounds; make the step qad again, or take out [qad]"
            )
        return checked_rows(self.packed, own, self.packed.kinds[own], values)


def read_trained_decoder(model: Model, format_: str, options: Options) -> tuple[ByNames | None, str | None]:
    """What a student was trained with, where that is what the options write; else None and a note of what becomes of it."""
    packed = read_packed(model.folder)
    if packed is None:
        return None, None
    if not packed.serves(format_, options.scheme) or find_kinds(model, options) != dict(packed.kinds):
        return None, packed.note_other(format_, options.scheme)
    tables = (name for name in packed.kinds if DECODER_TABLE.search(name))
    return ByNames(packed=packed, shared=next(tables, None) if is_tied(model) else None), None
