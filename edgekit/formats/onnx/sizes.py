"""How many bytes a model's .onnx file will have, from the shapes in a checkpoint's headers."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from edgekit.formats.onnx.table import SMALLEST_TABLE_ROWS, TABLE_BLOCK, Bits, bits_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekit.model import Model

# What a scheme takes for a weight of a Linear; block schemes add a 4-byte scale a block.
_LINEAR = {"int8": 1.0, "w8": 1.0, "w4": 0.5, "fp16": 2.0, "fp32": 4.0}
# What other floats take: norms, biases, tables that are too short to gain.
_OTHER = {"fp16": 2.0}
_FLOATS = frozenset({"fp16", "fp32"})
# Nodes, names and small constants of the graph, less what its simplification drops: measured on BERTs of 2 and 6 layers.
_GRAPH = 5_000
# The same of decoders, in all and for each tensor of a layer, and what a quantized matrix has more: measured on Llamas of 2 and 6
# layers, and on Qwen 3 and Gemma 3, which have more nodes for each.
_DECODER, _PART, _QUANTIZED_PART = 3_500, 450, 230
_TABLES = re.compile(r"embedding", re.IGNORECASE)
DECODER_TABLE = re.compile(r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings)\.weight$")
# What a model that also takes images has beside its text model.
IMAGES = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")
DECODER_HEAD = re.compile(r"(^|\.)lm_head\.weight$")


def predict_bytes(model: Model, scheme: str, block: int, table_bits: Bits = 8) -> int:
    """The bytes of an encoder.

    scheme: one of the format's; "auto" is taken for int8, which it ends in unless float answers are much nearer.
    """
    kind = "int8" if scheme in {"auto", "int8-static", "int8-dynamic"} else scheme
    floats = {name: info for name, info in model.tensors.items() if info.dtype != "U8"}
    bytes_ = sum(math.prod(info.shape) for name, info in model.tensors.items() if name not in floats)
    found = (_bytes(name, info.shape, kind, block, table_bits) for name, info in floats.items())
    return round(_GRAPH + bytes_ + sum(map(sum, found)))


def float_layer_bytes(model: Model, count: int) -> int:
    """How many bytes more an eight-bit encoder has where its `count` largest Linears stay float."""
    linears = [info.shape for name, info in model.tensors.items() if len(info.shape) == 2 and not _TABLES.search(name)]
    more = sorted((sum(_matrix(shape, "fp32", 0)) - sum(_matrix(shape, "int8", 0)) for shape in linears), reverse=True)
    return round(sum(more[:count]))


def predict_decoder_bytes(model: Model, scheme: str, block: int) -> int:
    """The bytes of a decoder with its cache's graph; scheme: one of those that decoders have, but "auto"."""
    from edgekit.formats.onnx.decoder_weights import HEAD_BITS

    kind = "int8" if scheme == "int8-dynamic" else scheme
    eight = "int8" if kind == "int8" else f"w{HEAD_BITS}"
    tied = is_tied(model)
    total = float(_DECODER)
    for name, info in model.tensors.items():
        if IMAGES.search(name):
            continue
        if DECODER_TABLE.search(name):
            # Shared with the head it is a matrix in the head's bits, alone a table.
            shared = kind if kind in _FLOATS else eight
            total += sum(_matrix(info.shape, shared, block) if tied else _table(info.shape, kind, 8))
        elif DECODER_HEAD.search(name):
            total += 0 if tied else sum(_matrix(info.shape, kind if kind in _FLOATS else eight, block))
        elif len(info.shape) == 2:
            total += sum(_matrix(info.shape, kind, block)) + _PART + (0 if kind in _FLOATS else _QUANTIZED_PART)
        else:
            # A bias is an input of its matrix' node.
            total += _OTHER.get(kind, 4.0) * math.prod(info.shape) + (0 if name.endswith(".bias") else _PART)
    return round(total)


def is_tied(model: Model) -> bool:
    """Whether a decoder's embedding is its head too."""
    return not any(DECODER_HEAD.search(name) for name in model.tensors) or bool(
        model.config.get("tie_word_embeddings", model.text_config.get("tie_word_embeddings", False))
    )


def _bytes(name: str, shape: Sequence[int], kind: str, block: int, table_bits: Bits) -> Iterator[float]:
    if len(shape) != 2:
        yield math.prod(shape) * _OTHER.get(kind, 4.0)
    elif _TABLES.search(name):
        yield from _table(shape, kind, table_bits)
    else:
        yield from _matrix(shape, kind, block)


def _table(shape: Sequence[int], kind: str, bits: Bits) -> Iterator[float]:
    rows, columns = shape
    if rows < SMALLEST_TABLE_ROWS or kind in _FLOATS:
        yield math.prod(shape) * _OTHER.get(kind, 4.0)
    elif bits_of(columns, bits) == 4:
        yield rows * (columns / 2 + 4 * -(-columns // TABLE_BLOCK))
    else:
        yield math.prod(shape) + 4 * rows


def _matrix(shape: Sequence[int], kind: str, block: int) -> Iterator[float]:
    """A Linear's weight [outputs, inputs]: blocks are padded."""
    if kind in {"w8", "w4"}:
        blocks = shape[0] * -(-shape[1] // block)
        yield blocks * (block * _LINEAR[kind] + 4)
    else:
        yield math.prod(shape) * _LINEAR[kind]
        yield 4 * shape[0] if kind == "int8" else 0
