"""A delta between two bundles or releases: made where it is smaller than B's archive, and B made of it and A.

Nothing in a delta is signed: what comes of it is held to B's own list of files, and who made B a release's signature tells.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekit.bundle.archive import stays_inside, write_archive
from edgekit.bundle.destination import MANIFEST, marked_half
from edgekit.bundle.manifest import FileEntry
from edgekit.bundle.open import check_bundle
from edgekit.bundle.package import lock_file
from edgekit.diff.parts import Delta, Part, decoded, join, open_delta, smallest
from edgekit.diff.sides import Side
from edgekit.errors import EdgekitError, require
from edgekit.release.contents import RELEASE, SIGNATURE, read_release
from edgekit.release.verify import find_faults
from edgekit.workspace import disk_error, file_sha256, list_names, locked, make_folder, sync


@dataclass(frozen=True, kw_only=True)
class Written:
    """A delta that was made. path: None where it would not be smaller than B's archive, of so many bytes, and was not written."""

    path: str | None
    bytes: int
    archive_bytes: int
    ways: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Patched:
    """B, made of A and a delta: its folder and name, how many files, and how many of them were A's."""

    folder: str
    name: str
    files: int
    same: int


def refuse(a: Side, b: Side, out: Path) -> None:
    """Raise EdgekitError where no delta can be written: without zstandard, for what is no pair, and where something lies."""
    require("zstandard", extra="update")
    for side in (a, b):
        if side.bundle is None:
            raise EdgekitError(f"{side.path}: a {side.kind}; a delta is of two bundles or two releases")
    if a.kind != b.kind:
        raise EdgekitError(f"{a.path} and {b.path}: one is a {a.kind} and the other a {b.kind}; name two of a kind")
    if os.path.lexists(out):
        raise EdgekitError(f"{out}: is there already; remove it or choose another --delta")


def write_delta(a: Side, b: Side, out: Path) -> Written:
    """Write what leads from A to B, where that is smaller than B's archive. Raises EdgekitError as `refuse` does."""
    refuse(a, b, out)
    mine, theirs = _contents(a), _contents(b)
    by_content = {entry.sha256: name for name, entry in mine.items()}
    try:
        make_folder(out.parent)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".delta-") as scratch:
            parts: list[tuple[Part, Path | None]] = []
            for name, entry in sorted(theirs.items()):
                if (source := by_content.get(entry.sha256)) is not None:
                    parts.append((Part(name=name, way="same", file=entry, source=source), None))
                    continue
                old = _folder(a) / name if name in mine else None
                way, made = smallest(old, _folder(b) / name, Path(scratch) / str(len(parts)))
                told = Part(name=name, way=way, file=entry, source=name if way != "whole" else None, part=_entry(made))
                parts.append((told, made))
            named = {one.source for one, _ in parts if one.source is not None}
            sources = {name: mine[name] for name in sorted(named)}
            files = tuple(one for one, _ in parts)
            delta = Delta(kind=a.kind, a=_name(a), b=_name(b), sources=sources, files=files)
            half = Path(scratch) / "delta"
            join(delta, [made for _, made in parts if made is not None], half)
            size, archive = half.stat().st_size, _archive_bytes(b, theirs, Path(scratch))
            if size < archive:
                half.rename(out)
    except OSError as failed:
        raise disk_error(out, failed) from failed
    ways = {way: sum(one.way == way for one in files) for way in ("same", "difference", "patch", "whole")}
    return Written(path=str(out) if size < archive else None, bytes=size, archive_bytes=archive, ways=ways)


def apply_delta(a: Side, path: Path, out: Path) -> Patched:
    """Make B as the folder `out` of A and a delta; it is there once every file of it is as it was.

    Raises EdgekitError for a delta that is cut off, changed, or of another A, for names that lead out of the folder, and where
    something lies at `out`; then nothing is left there.
    """
    require("zstandard", extra="update")
    if a.bundle is None:
        raise EdgekitError(f"{a.path}: a {a.kind}; a delta is of a bundle or a release")
    if os.path.lexists(out):
        raise EdgekitError(f"{out}: is there already; choose another --out")
    delta, begin = open_delta(path)
    if a.kind != delta.kind:
        raise EdgekitError(f"{a.path}: a {a.kind}, and {path} is for a {delta.kind}: {delta.a}")
    for name, entry in delta.sources.items():
        file = _folder(a) / name
        if (
            not stays_inside(_folder(a), name)
            or file.is_symlink()
            or not file.is_file()
            or file_sha256(file) != entry.sha256
        ):
            raise EdgekitError(
                f"{a.path}: not what {path} was made for ({delta.a}): its {name} is another file or is not there"
            )
    try:
        make_folder(out.parent)
        waiting = f"{out}: another edgekit is making it; waiting for it"
        with locked(lock_file(out), waiting), marked_half(out) as inner:
            inner.mkdir()
            with path.open("rb") as stream:
                stream.seek(begin)
                for part in delta.files:
                    _make(part, stream, _folder(a), inner, path)
            _check(delta.kind, inner, path)
            for name in list_names(inner):
                (inner / name).chmod(0o644)
                sync(inner / name)
            inner.rename(out)
            sync(out.parent)
    except OSError as failed:
        raise disk_error(out, failed) from failed
    same = sum(one.way == "same" for one in delta.files)
    return Patched(folder=str(out), name=delta.b, files=len(delta.files), same=same)


def _folder(side: Side) -> Path:
    assert side.bundle is not None
    return side.path if side.kind == "release" else side.bundle.folder


def _name(side: Side) -> str:
    assert side.bundle is not None
    manifest = side.bundle.manifest
    return f"{manifest.name} {manifest.version or str(manifest.digest)[:12]}"


def _contents(side: Side) -> dict[str, FileEntry]:
    """Every file of a bundle or release, as its own list says, and the list itself."""
    assert side.bundle is not None
    folder = _folder(side)
    if side.kind == "bundle":
        listed, own = side.bundle.manifest.files or {}, [MANIFEST]
    else:
        listed, own = read_release(folder).files, [RELEASE, *([SIGNATURE] if (folder / SIGNATURE).is_file() else [])]
        if faults := find_faults(folder, None):
            raise EdgekitError(f"{side.path}: not a whole release: {faults[0]}")
    return {**listed, **{name: _entry(folder / name) for name in own}}


def _entry(path: Path) -> FileEntry:
    return FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))


def _archive_bytes(side: Side, contents: Mapping[str, FileEntry], scratch: Path) -> int:
    """What B takes on its way without a delta: the bytes of its .tar.gz."""
    if side.path.is_file():
        return side.path.stat().st_size
    plain = scratch / "plain"
    for name in contents:
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_folder(side) / name, plain / name)
    write_archive(plain, scratch / "archive", side.path.name)
    return (scratch / "archive").stat().st_size


def _make(part: Part, stream: IO[bytes], old: Path, folder: Path, path: Path) -> None:
    """Write one file of B from the stream, which is at its part."""
    place = folder / part.name
    place.parent.mkdir(parents=True, exist_ok=True)
    if part.way == "same":
        assert part.source is not None
        shutil.copyfile(old / part.source, place)
        return
    assert part.part is not None
    found, left = hashlib.sha256(), part.file.bytes
    end = stream.tell() + part.part.bytes
    with place.open("wb") as target:
        for piece in decoded(part, stream, old):
            left -= len(piece)
            if left < 0:
                break
            found.update(piece)
            target.write(piece)
    stream.seek(end)
    if left or found.hexdigest() != part.file.sha256:
        raise EdgekitError(
            f"{path}: gives another {part.name} than the one that it was made from; make the delta again"
        )


def _check(kind: str, folder: Path, path: Path) -> None:
    """Whether what was made is whole in itself, and no more: else the delta was not made by edgekit."""
    try:
        faults = find_faults(folder, None) if kind == "release" else _added(folder)
    except EdgekitError as wrong:
        faults = [wrong.message]
    if faults:
        raise EdgekitError(f"{path}: does not give a whole {kind}: {faults[0]}")


def _added(folder: Path) -> list[str]:
    """Files of a bundle's folder that its manifest does not list; EdgekitError where the bundle is not whole."""
    known = (check_bundle(folder).files or {}).keys() | {MANIFEST}
    return [f"{name}: {MANIFEST} does not list it" for name in sorted(list_names(folder) - known)]
