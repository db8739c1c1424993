"""The grid of a GGUF scheme: which of ggml's types each weight of a checkpoint gets, and ggml's own rounding to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from edgekit.errors import EdgekitError
from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.levels import LAYOUTS
from edgekit.formats.gguf.mixed.gptq import CODES, round_rows
from edgekit.formats.gguf.options import FLOATS
from edgekit.formats.gguf.tensors import Tensor
from edgekit.formats.gptq import round_linears
from edgekit.grid import Grid


def check_scheme(scheme: str) -> None:
    """Raises EdgekitError for a scheme that rounds nothing, or chooses by itself."""
    if scheme in FLOATS:
        raise EdgekitError(f"{scheme}: rounds no weight to few bits, so there is nothing to train for; take out [qad]")
    if scheme in {"auto", "mixed"}:
        raise EdgekitError(
            f"scheme {scheme}: chooses types by the trained model, and [qad] trains for types; name a scheme, such as"
            " --scheme q4_0"
        )


def make_grid(format_: str, scheme: str, tensors: Sequence[Tensor], types: Mapping[str, str]) -> Grid:
    """What a scheme makes of a checkpoint's weights. types: of each tensor, by its GGUF name."""
    kinds = {
        tensor.origin: types[tensor.name]
        for tensor in tensors
        if tensor.origin and ggml.TYPES[types[tensor.name]].block > 1 and not tensor.add and not tensor.skip
    }
    return Grid(
        format=format_,
        scheme=scheme,
        kinds=kinds,
        pack=ggml.quantize,
        unpack=ggml.dequantize,
        layouts=LAYOUTS,
        fit=partial(
            round_linears, kinds={name: kind for name, kind in kinds.items() if kind in CODES}, pack=round_rows
        ),
    )
