"""What an app relies on of a bundle: another one of which all this is equal can take its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.bundle.manifest import Compatible, Manifest
from edgekit.outputs.rows import EMBEDDING
from edgekit.workspace import fingerprint

if TYPE_CHECKING:
    from edgekit.recipe import Issue


def relied_on(manifest: Manifest, model: Path) -> dict[str, object]:
    """The loader that the app has, what it asks and what it is answered: labels in their order, an embedding's width.

    model: the bundle's model file, which tells the width.
    """
    return {
        "task": manifest.task,
        "runtime": manifest.runtime_name,
        "output": manifest.output,
        "width": embedding_width(model) if manifest.output == EMBEDDING.name else None,
        "labels": list(manifest.labels),
        "out_of_scope": manifest.out_of_scope,
        "prompts": sorted(manifest.prompts),
        "chats": manifest.chats,
    }


def issued(manifest: Manifest, model: Path, issue: Issue) -> Manifest:
    """A manifest with its version and what it is compatible with."""
    compatible = Compatible(app=fingerprint(relied_on(manifest, model)), since=issue.compatible_with)
    return replace(manifest, version=issue.version, compatible_with=compatible)


def embedding_width(model: Path) -> int | None:
    """How many numbers an embedder's file says that it gives; None where it leaves that open."""
    if model.suffix == ".gguf":
        from edgekit.formats.gguf.file import read_gguf

        said = read_gguf(model).metadata
        width = said.get(f"{said.get('general.architecture')}.embedding_length")
        return width if isinstance(width, int) else None
    from edgekit.formats.onnx import ort
    from edgekit.formats.onnx.files import read

    graph = (ort.read_ort(model) if model.suffix == ort.SUFFIX else read(model)).graph
    extents = graph.output[0].type.tensor_type.shape.dim if graph.output else ()
    return int(extents[-1].dim_value) or None if extents else None
