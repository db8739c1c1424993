"""The grid of a GGUF scheme: which of ggml's types each weight of a checkpoint gets, and ggml's own rounding to it."""

from __future__ import annotations

from edgekit.errors import EdgekitError
from edgekit.formats.gguf import NAME, ggml, scheme_types
from edgekit.formats.gguf.metadata import describe_model
from edgekit.formats.gguf.options import FLOATS, Options
from edgekit.formats.gguf.tensors import plan
from edgekit.grid import Grid
from edgekit.model import Model


def make_grid(model: Model, options: Options) -> Grid:
    """What a scheme makes of a checkpoint's weights, from its headers alone.

    The types are those that llama.cpp gives without an importance matrix: that would be of the model before it is trained.
    Raises EdgekitError for a scheme that rounds nothing or chooses by itself, and for what `plan` refuses of the checkpoint.
    """
    if options.scheme in FLOATS:
        raise EdgekitError(
            f"{options.scheme}: rounds no weight to few bits, so there is nothing to train for; take out [qad]"
        )
    if options.scheme in {"auto", "mixed"}:
        raise EdgekitError(
            f"scheme {options.scheme}: chooses types by the trained model, and [qad] trains for types; name a scheme, such as"
            " --scheme q4_0"
        )
    tensors = plan(model)
    types = scheme_types(describe_model(model, tensors=tensors, name="model"), tensors, options.scheme).types
    kinds = {
        tensor.origin: types[tensor.name]
        for tensor in tensors
        if tensor.origin and ggml.TYPES[types[tensor.name]].block > 1 and not tensor.add and not tensor.skip
    }
    return Grid(format=NAME, scheme=options.scheme, kinds=kinds, pack=ggml.quantize, unpack=ggml.dequantize)
