"""The grid of a GGUF scheme: which of ggml's types each weight of a checkpoint gets, and ggml's own rounding to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.levels import LAYOUTS
from edgekit.formats.gguf.mixed import gptq
from edgekit.formats.gguf.options import FLOATS
from edgekit.formats.gguf.tensors import Tensor
from edgekit.grid import Grid, Rounded

if TYPE_CHECKING:
    from torch import nn


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
        fit=partial(_fit, kinds),
    )


def _fit(kinds: Mapping[str, str], module: nn.Module, ids: Sequence[Sequence[int]]) -> Iterator[tuple[str, Rounded]]:
    """The weights of Linears rounded with feedback (`gptq`), by what some texts put into them.

    module: as `distill` loads one, which does not run its head; that is left out, and has 6 or 8 bits in most schemes.
    """
    head = cast(Any, module).model.get_output_embeddings()
    names = {path: f"{path.removeprefix('model.')}.weight" for path in gptq.linear_paths(module)}
    run = [path for path in names if module.get_submodule(path) is not head]
    paths = [path for path in run if kinds.get(names[path]) in gptq.CODES]
    for path, gram in zip(paths, gptq.input_grams(module, ids, paths), strict=True):
        weight = module.get_parameter(f"{path}.weight").detach().numpy()
        wanted = np.empty(weight.shape, np.float32)
        importance = np.ascontiguousarray(gram.diagonal())
        packed = gptq.round_rows(weight, kinds[names[path]], gptq.feedback(gram), importance, wanted)
        yield names[path], Rounded(packed=packed, wanted=wanted)
