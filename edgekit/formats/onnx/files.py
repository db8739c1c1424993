"""The files of an ONNX model: the graph, and beside it those that its tensors keep their values in (external data)."""

from __future__ import annotations

import hashlib
import posixpath
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.schema import refuse_pointer

if TYPE_CHECKING:
    import onnx

# What else lies in an artifact's folder and in a bundle's.
TAKEN = ("model.onnx", "tokenizer.json", "export.json", "bundle.json", "load.py", "readme.md")


def read(path: Path, *, named: Path | None = None) -> onnx.ModelProto:
    """The graph of an .onnx file without the values that lie in other files.

    named: what errors call the file. Raises EdgekitError where it cannot be read or is not ONNX.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        refuse_pointer(path)
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as bad:
        raise EdgekitError(f"{named or path}: not an ONNX file; export or fetch it again") from bad
    except OSError as failed:
        raise EdgekitError(f"{named or path}: cannot be read: {failed.strerror or failed}") from failed


def external_files(model: onnx.ModelProto, path: Path) -> list[str]:
    """The names of the files beside `path` that hold tensors of its graph, sorted.

    Raises EdgekitError for a place that is not beside the graph, and for a file that is missing.
    """
    places = {
        entry.value
        for tensor in _tensors(model)
        for entry in tensor.external_data
        if entry.key == "location" and tensor.data_location == tensor.EXTERNAL
    }
    names = sorted({_name(place, path) for place in places})
    for name in names:
        if not (path.parent / name).is_file():
            raise EdgekitError(
                f"{path}: its weights are in {name!r}, which is not beside it; copy that file to {path.parent}"
            )
        refuse_pointer(path.parent / name)
    return names


def copy_files(source: Path, main: Path) -> None:
    """Copy an .onnx file to `main`, and the files of its weights beside that under the names that the graph refers to.

    Raises EdgekitError where a file cannot be read or written, or has the name of another file of an artifact.
    """
    names = external_files(read(source), source)
    for name in names:
        if name.lower() in TAKEN:
            raise EdgekitError(
                f"{source}: its weights are in {name!r}, a name that another file of the artifact has; save it with"
                " onnx.save_model(..., save_as_external_data=True, location='model.onnx.data')"
            )
    try:
        shutil.copyfile(source, main)
        for name in names:
            shutil.copyfile(source.parent / name, main.parent / name)
    except OSError as failed:
        raise EdgekitError(
            f"{failed.filename or source}: cannot be copied: {failed.strerror or failed}; check rights and free space"
        ) from failed


def digest(folder: Path, names: Sequence[str]) -> str:
    """sha256 of a model: the main file's where it is the only one, else over a line "name sha256" of each, main first."""
    from edgekit.workspace import file_sha256

    if len(names) == 1:
        return file_sha256(folder / names[0])
    lines = [f"{name} {file_sha256(folder / name)}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _name(place: str, path: Path) -> str:
    name = posixpath.normpath(place) if place else ""
    if name in {"", ".", ".."} or PureWindowsPath(name).name != name or "\0" in name:
        raise EdgekitError(
            f"{path}: its weights are in {place!r}; edgekit takes only files beside the graph: save it with"
            " onnx.save_model(..., save_as_external_data=True, location='model.onnx.data')"
        )
    return name


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, in subgraphs and functions too."""
    waiting = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while waiting or nodes:
        for node in nodes:
            for entry in node.attribute:
                yield from (entry.t, *entry.tensors)
                for sparse in (entry.sparse_tensor, *entry.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                waiting += [entry.g, *entry.graphs]
        nodes = []
        for graph in waiting:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        waiting = []
