"""Bundles as .tar.gz files: the same bytes for the same folder, and unpacked only where nothing leaves the folder."""

from __future__ import annotations

import gzip
import hashlib
import logging
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgekit.bundle.destination import MANIFEST
from edgekit.errors import EdgekitError
from edgekit.schema import refuse_pointer
from edgekit.workspace import (
    list_files,
    sync,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


log = logging.getLogger("edgekit")


def write_archive(folder: Path, archive: Path, root: str) -> None:
    """Pack a folder's files below `root` in a .tar.gz of which every byte follows from names and contents."""
    partial = archive.with_name(f".{archive.name}.partial")
    with (
        partial.open("wb") as stream,
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in list_files(folder):
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size = (folder / name).stat().st_size
            entry.mode = 0o644
            with (folder / name).open("rb") as source:
                tar.addfile(entry, source)
    sync(partial)
    partial.replace(archive)


def archive_hashes(archive: Path) -> Iterator[tuple[str, str]]:
    """(name, sha256) of every file in an archive."""
    with tarfile.open(archive, "r|gz") as tar:
        for entry in tar:
            source = tar.extractfile(entry)
            yield entry.name, hashlib.file_digest(source, "sha256").hexdigest() if source else ""  # type: ignore[arg-type]


def extract(archive: Path, scratch: Path) -> Path:
    """Unpack plain files only, each below the scratch folder; returns the folder that holds the manifest."""
    refuse_pointer(archive)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                if not entry.isfile() or not stays_inside(scratch, entry.name):
                    raise EdgekitError(
                        f"{archive}: holds {entry.name}, which is a link or outside the bundle; do not use it"
                    )
                source = tar.extractfile(entry)
                assert source is not None
                path = scratch / entry.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as bad:
        raise EdgekitError(f"{archive}: not a whole .tar.gz: {bad}; fetch or package it again") from bad
    manifests = sorted(scratch.glob(f"*/{MANIFEST}"))
    if len(manifests) != 1:
        raise EdgekitError(f"{archive}: no {MANIFEST} in it: not a bundle's archive")
    return manifests[0].parent


def stays_inside(folder: Path, name: str) -> bool:
    """Whether a name in an archive or manifest is a path below the folder."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and not name.startswith("/") and "\\" not in name and ":" not in parts[0] and ".." not in parts
    return plain and (folder / name).resolve().is_relative_to(folder.resolve())
