"""Embed: a bundle and the code that uses it on a platform go into an app's folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit import __version__
from edgekit.bundle.destination import MANIFEST, SIGNATURE
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.open import open_bundle
from edgekit.bundle.platforms import PLATFORMS, Embedding, find_embedding, platforms_of
from edgekit.errors import EdgekitError
from edgekit.schema import dump_json, read_json
from edgekit.workspace import disk_error, file_sha256, write_atomically

BUNDLE = "bundle"
"""The folder in the app where the bundle lies."""
# What `embed` wrote into a folder, with its hashes: only that is replaced, and only where nobody changed it.
WRITTEN = ".edgekit-embed.json"


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What was put into an app: its folder, the files by name there (sorted), and how it is used."""

    folder: Path
    files: tuple[str, ...]
    embedding: Embedding


def embed(path: Path, platform: str, folder: Path | None = None) -> Embedded:
    """Copy a bundle and its loader for a platform into `folder` (None: NAME-PLATFORM here); of a release with its signature.

    Raises EdgekitError for a bundle that is not whole, a platform that there is nothing for, a file of somebody else's where one
    would go, and a folder that cannot be written; then nothing was replaced.
    """
    is_release = not (path / MANIFEST).is_file() and (path / BUNDLE / MANIFEST).is_file()
    bundle = open_bundle(path / BUNDLE if is_release else path)
    manifest = bundle.manifest
    embedding = _find(path, manifest, platform)
    folder = folder or Path(f"{manifest.name}-{platform}")
    sources = {**embedding.files, f"{BUNDLE}/{MANIFEST}": bundle.folder / MANIFEST}
    sources |= {f"{BUNDLE}/{name}": bundle.folder / name for name in manifest.files or {}}
    if is_release and (path / SIGNATURE).is_file() and any(name.startswith("trust.") for name in embedding.files):
        sources[SIGNATURE] = path / SIGNATURE
    try:
        with tempfile.TemporaryDirectory() as scratch:
            sources |= embedding.make(bundle, Path(scratch)) if embedding.make else {}
            hashes = _put(folder, sources)
    except OSError as failed:
        raise disk_error(Path(failed.filename or folder), failed) from failed
    return Embedded(folder=folder, files=tuple(hashes), embedding=embedding)


def _put(folder: Path, sources: Mapping[str, Path]) -> dict[str, str]:
    """Copy files into an app's folder, and take away what an earlier run put there; their hashes."""
    before = _refuse_foreign(folder, sources)
    # Named before they are there: a killed run's half is replaced by the next.
    hashes = {name: file_sha256(source) for name, source in sorted(sources.items())}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WRITTEN, dump_json({"edgekit": __version__, "files": {**before, **hashes}}))
    for name, source in sources.items():
        _copy(source, folder / name)
    for name in before.keys() - hashes.keys():
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / WRITTEN, dump_json({"edgekit": __version__, "files": hashes}))
    return hashes


def _find(path: Path, manifest: Manifest, platform: str) -> Embedding:
    found = find_embedding(manifest, platform)
    if found is not None:
        return found
    there = ", ".join(platforms_of(manifest)) or "nothing"
    raise EdgekitError(
        f"{path}: edgekit {__version__} has no loader of {manifest.output} in {manifest.runtime_name} for {PLATFORMS[platform]};"
        f" of this bundle it has --for {there}"
    )


def _refuse_foreign(folder: Path, sources: Mapping[str, Path]) -> dict[str, str]:
    """The hashes of what an earlier run wrote there; EdgekitError where anything else lies where a file would go."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise EdgekitError(f"{folder}: is there and is no folder; choose another --out")
    if (folder / MANIFEST).exists():
        raise EdgekitError(f"{folder}: is a bundle itself, and an app's folder is wanted; choose another --out")
    record = folder / WRITTEN
    content = read_json(record) if record.is_file() else {}
    known = content.get("files") if isinstance(content, dict) else None
    before = {str(name): str(sha256) for name, sha256 in known.items()} if isinstance(known, dict) else {}
    before = {name: sha256 for name, sha256 in before.items() if _is_inside(folder, name)}
    for name in (*sources, *before):
        path = folder / name
        if not os.path.lexists(path):
            continue
        ours = {file_sha256(sources[name])} if name in sources else set()
        if path.is_symlink() or not path.is_file() or file_sha256(path) not in ours | {before.get(name)}:
            why = "changed since edgekit wrote it" if name in before else "is there and edgekit did not write it"
            raise EdgekitError(f"{path}: {why}; move it away or choose another --out")
    return before


def _is_inside(folder: Path, name: str) -> bool:
    return (folder / name).resolve().is_relative_to(folder.resolve())


def _copy(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(path)
