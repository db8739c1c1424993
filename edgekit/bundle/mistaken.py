"""What a path is that somebody took for a bundle: a model file, a report, a checkpoint, a step's folder, a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path

from edgekit.bundle.destination import MANIFEST

# Files by the end of their name, each with what it is and what can be done with it; {} is its path.
_FILES = {
    ".onnx": ("an ONNX file", "edgekit inspect {}; edgekit verify {} CHECKPOINT judges it"),
    ".ort": ("a file of onnxruntime's own format", "edgekit inspect {}"),
    ".gguf": ("a GGUF file", "edgekit inspect {}; edgekit verify {} CHECKPOINT judges it"),
    ".safetensors": ("a file of weights", "edgekit inspect {}"),
    ".json": ("a JSON file", "edgekit inspect {}, if it is a report"),
    ".html": ("a page, such as a report's", "open it in a browser"),
    ".toml": ("a recipe or a target", "edgekit build --recipe {}, if it is a recipe"),
}
# Folders by a file in them, the surest first.
_FOLDERS = {
    "export.json": ("the artifact of `edgekit export`", "edgekit verify {} REFERENCE, then edgekit package {} REPORT"),
    "report.json": ("a report of `edgekit verify`", "edgekit inspect {}; edgekit package ARTIFACT {}"),
    "record.json": ("a reference of `edgekit record`", "edgekit verify ARTIFACT {}"),
    "calibrate.json": ("a calibration of `edgekit calibrate`", "edgekit export STUDENT {}"),
    "config.json": ("a checkpoint", "edgekit init --teacher {}, then edgekit build"),
}
_GGUF = b"GGUF"
_GZIP = b"\x1f\x8b"


def other_than_bundle(path: Path) -> str | None:
    """What lies at a path where a bundle's folder or archive is wanted, and what to do; None where it may be one.

    An archive is known by its first bytes, so that one of any name is opened.
    """
    if path.is_dir():
        return None if (path / MANIFEST).is_file() else _folder(path)
    with path.open("rb") as file:
        first = file.read(len(_GGUF))
    if first.startswith(_GZIP):
        return None
    if (path.parent / MANIFEST).is_file():
        return f"{path}: a file of a bundle; name the bundle's folder: {shlex.quote(str(path.parent))}"
    kind = _FILES.get(".gguf" if first == _GGUF else path.suffix.lower())
    return None if kind is None else _message(path, *kind)


def _folder(path: Path) -> str | None:
    kind = next((kind for name, kind in _FOLDERS.items() if (path / name).is_file()), None)
    if kind is not None:
        return _message(path, *kind)
    within = sorted(path.glob(f"*/{MANIFEST}"))
    if within:
        return f"{path}: holds bundles and is none; name one of them: {shlex.quote(str(within[0].parent))}"
    return None


def _message(path: Path, what: str, remedy: str) -> str:
    return (
        f"{path}: {what}, and no bundle: `edgekit build` and `edgekit package` write those (a folder and its .tar.gz)."
        f" What to do with this one: {remedy.format(*[shlex.quote(str(path))] * 2)}"
    )
