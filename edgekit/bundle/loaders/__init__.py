"""LOADERS: what an app copies to use a bundle; each is one file that needs nothing of edgekit."""

from __future__ import annotations

from pathlib import Path

# The loader that ships as load.py, by format and output.
LOADERS = {
    ("onnx", "logits"): "load.py",
    ("onnx", "embedding"): "load.py",
    ("onnx", "tokens"): "generate.py",
    ("gguf", "embedding"): "embed.py",
    ("gguf", "tokens"): "chat.py",
}


def loader_file(format_: str, output: str) -> Path:
    """The loader that ships with what a format makes of an output."""
    return Path(__file__).parent / LOADERS[format_, output]
