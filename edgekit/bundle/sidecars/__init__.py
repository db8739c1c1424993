"""SIDECARS: the files that lie beside a model in its bundle, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgekit.bundle.loaders import BOUND, CHECK
from edgekit.bundle.sidecars import card, llama, mobile, web
from edgekit.bundle.sidecars.packing import Packing
from edgekit.formats.onnx.ort import OPERATORS_FILE, TYPES_FILE
from edgekit.probes.web import CHECKS, ROWS, WORDS
from edgekit.tasks.text_generation import TEMPLATE

__all__ = ["SIDECARS", "Packing", "Sidecar"]

Sidecar = Callable[[Packing], str | Path | None]
"""A file's text, or the file that it is a copy of; None where a bundle has no such file."""


def _tokenizer(packing: Packing) -> Path | None:
    """The tokenizer, where the model's file does not hold it."""
    return packing.artifact / packing.manifest.tokenizer if packing.manifest.tokenizer else None


def _template(packing: Packing) -> Path | None:
    """The chat template of a model that talks, where the model's file does not hold it."""
    return packing.artifact / TEMPLATE if packing.manifest.tokenizer and packing.manifest.chats else None


def _loader(packing: Packing) -> Path:
    """What an app copies."""
    return packing.loader.path


def _check(packing: Packing) -> Path:  # noqa: ARG001 - one signature for all
    """What load.py checks the bundle with."""
    return CHECK


def _bound(packing: Packing) -> Path | None:
    """What load.py asks a model on CUDA with, as it was measured."""
    return BOUND if packing.manifest.runtime.get("cuda_graphs") and packing.loader.file == "load.py" else None


SIDECARS: dict[str, Sidecar] = {
    "tokenizer.json": _tokenizer,
    TEMPLATE: _template,
    "load.py": _loader,
    CHECK.name: _check,
    BOUND.name: _bound,
    "load.mjs": web.loader,
    ROWS.name: web.rows,
    WORDS.name: web.words,
    CHECKS.name: web.checks,
    "index.html": web.page,
    OPERATORS_FILE: mobile.operators,
    TYPES_FILE: mobile.types,
    "Modelfile": llama.sidecar,
    "README.md": card.sidecar,
}
