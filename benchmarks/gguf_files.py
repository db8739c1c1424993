"""A checkpoint as a GGUF file whose matrices have one type; those whose rows do not fill blocks of 32 have 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgekit.formats.gguf.convert import Quantization, convert
from edgekit.formats.gguf.metadata import describe_model, describe_quantization
from edgekit.formats.gguf.tensors import plan
from edgekit.formats.gguf.tokenizer import vocabulary
from edgekit.model import load_model


def write_gguf(checkpoint: Path, path: Path, matrices: Literal["q8_0", "f16"] = "q8_0") -> Path:
    """The file that it becomes."""
    model = load_model(checkpoint)
    types = {
        one.name: "f32" if len(one.shape) < 2 else "f16" if one.shape[-1] % 32 else matrices for one in plan(model)
    }
    metadata = {**vocabulary(model), **describe_model(model), **describe_quantization(matrices)}
    convert(model, path, Quantization(types=types), metadata, threads=1)
    return path
