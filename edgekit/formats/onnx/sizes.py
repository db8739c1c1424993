"""How many bytes an .onnx file will have, from the shapes in a checkpoint's headers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgekit.formats.onnx.quantize import SMALLEST_TABLE_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekit.model import Model

# What a scheme takes for a weight of a Linear; block schemes add a 4-byte scale a block.
_LINEAR = {"int8": 1.0, "w8": 1.0, "w4": 0.5, "fp16": 2.0, "fp32": 4.0}
# What other floats take: norms, biases, tables that are too short to gain.
_OTHER = {"fp16": 2.0}
# Nodes, names and small constants of the graph, less what its simplification drops: measured on BERTs of 2 and 6 layers.
_GRAPH = 5_000
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_HEAD = re.compile(r"(?:^|\.)lm_head\.")
_TABLES = re.compile(r"embed", re.IGNORECASE)


def predict_bytes(model: Model, scheme: str, block: int, *, layers: int, classes: int) -> int:
    """The bytes of an encoder of so many of the model's layers, with a head of so many classes where it has none yet.

    scheme: one of the format's; "auto" is taken for int8, which it ends in unless float answers are much nearer.
    """
    kind = "int8" if scheme in {"auto", "int8-static", "int8-dynamic"} else scheme
    total = float(_GRAPH)
    hidden = int(model.text_config.get("hidden_size") or model.text_config.get("dim") or 0)
    share = layers / max(model.layers, 1)
    heads = [(classes, hidden), (classes,)] if classes and not _has_head(model) else []
    shapes = [(name, tuple(info.shape)) for name, info in model.tensors.items()]
    for name, shape in [*shapes, *(("classifier", shape) for shape in heads)]:
        kept = share if _LAYER.search(name) else 1.0
        total += kept * sum(_bytes(name, shape, kind, block))
    return round(total)


def predict_decoder_bytes(model: Model, scheme: str, block: int, *, layers: int) -> int:
    """The bytes of a decoder of so many of the model's layers, in a scheme other than "auto".

    A table that embedding and head share is there once, as the head; w4 keeps the head in 8 bits.
    """
    kind = "int8" if scheme.startswith("int8") else scheme
    shapes = {name: tuple(info.shape) for name, info in model.tensors.items()}
    tied = not any(_HEAD.search(name) for name in shapes) or bool(model.text_config.get("tie_word_embeddings"))
    total, share = float(_GRAPH), layers / max(model.layers, 1)
    for name, shape in shapes.items():
        head = bool(_HEAD.search(name)) or (tied and bool(_TABLES.search(name)))
        if tied and _HEAD.search(name):
            continue
        if head and len(shape) == 2:
            total += sum(_bytes("head", shape, "w8" if kind == "w4" else kind, block))
        else:
            total += (share if _LAYER.search(name) else 1.0) * sum(_bytes(name, shape, kind, block))
    return round(total)


def _bytes(name: str, shape: Sequence[int], kind: str, block: int) -> Iterator[float]:
    count = 1
    for length in shape:
        count *= length
    is_matrix = len(shape) == 2
    if is_matrix and _TABLES.search(name):
        if shape[0] >= SMALLEST_TABLE_ROWS and kind not in {"fp16", "fp32"}:
            yield count + 4 * shape[0]
        else:
            yield count * _OTHER.get(kind, 4.0)
    elif is_matrix:
        yield count * _LINEAR[kind]
        if kind == "int8":
            yield 4 * shape[0]
        elif kind in {"w8", "w4"}:
            yield 4 * shape[0] * -(-shape[1] // block)
    else:
        yield count * _OTHER.get(kind, 4.0)


def _has_head(model: Model) -> bool:
    return any("ForSequenceClassification" in name for name in model.config.get("architectures") or [])
