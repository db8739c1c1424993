"""Of a bundle whose model is a file of onnxruntime's own format: what a reduced onnxruntime must be built with."""

from __future__ import annotations

from pathlib import Path

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.sidecars.packing import Packing
from edgekit.formats.onnx.ort import OPERATORS_FILE, SUFFIX, TYPES_FILE


def operators(packing: Packing) -> Path | None:
    """The operators that the model calls."""
    return packing.artifact / OPERATORS_FILE if _is_ort(packing.manifest) else None


def types(packing: Packing) -> Path | None:
    """The operators, with the types of what they are called with."""
    return packing.artifact / TYPES_FILE if _is_ort(packing.manifest) else None


def lines(manifest: Manifest) -> list[str]:
    """For the bundle's README.md."""
    if not _is_ort(manifest):
        return []
    return [
        "",
        "On a phone, any full onnxruntime opens the file (Java: `env.createSession(path)`; Swift: `ORTSession(env:modelPath:)`).",
        "To make onnxruntime itself smaller, build it from its sources with what this model needs and nothing else:",
        "",
        "```sh",
        f"./build.sh --android --android_abi arm64-v8a --minimal_build --include_ops_by_config {TYPES_FILE} \\",
        "  --enable_reduced_operator_type_support --disable_ml_ops --build_shared_lib --config MinSizeRel",
        "```",
        "",
        f"`{OPERATORS_FILE}` lists the operators alone, for a build that keeps all types.",
    ]


def _is_ort(manifest: Manifest) -> bool:
    return manifest.model.endswith(SUFFIX)
