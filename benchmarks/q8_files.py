"""A checkpoint as a GGUF file of 8-bit matrices; those whose rows do not fill blocks of 32 have 16 bits."""

from __future__ import annotations

from pathlib import Path

from edgekit.formats.gguf.convert import Quantization, convert
from edgekit.formats.gguf.metadata import describe_model, describe_quantization
from edgekit.formats.gguf.tensors import plan
from edgekit.formats.gguf.tokenizer import vocabulary
from edgekit.model import load_model


def write_q8(checkpoint: Path, path: Path) -> Path:
    """The file that it becomes."""
    model = load_model(checkpoint)
    types = {one.name: "f32" if len(one.shape) < 2 else "f16" if one.shape[-1] % 32 else "q8_0" for one in plan(model)}
    metadata = {**vocabulary(model), **describe_model(model), **describe_quantization("q8_0")}
    convert(model, path, Quantization(types=types), metadata, threads=1)
    return path
