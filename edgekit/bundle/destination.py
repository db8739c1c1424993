"""Where a bundle goes: what lies there already is replaced only where edgekit wrote it and nobody changed it since."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.schema import read_json
from edgekit.workspace import discard, file_sha256, list_names

MANIFEST = "bundle.json"
# Beside the bundle of a signed release.
SIGNATURE = "model.sig"
# In the half of a bundle, or of another folder, while it is written: the folder is edgekit's.
MARK = ".key"
# In every page that edgekit writes, in the head or (until 0.1) in the foot.
_PAGE_MARKS = ('content="edgekit', "<footer>edgekit")


def refuse_foreign(out: Path, name: str) -> None:
    """Raise EdgekitError where something of the user's lies where the bundle `name`, its archive or its report would go."""
    bundle = out / name
    for folder in (bundle, old(bundle)):
        if os.path.lexists(folder):
            _refuse_changed(folder)
    half = partial(bundle)
    if os.path.lexists(half) and not _is_half(half):
        raise _foreign(half)
    mine: dict[Path, Callable[[Path], bool]] = {
        out / f"{name}.tar.gz": lambda path: _is_archive(path, name),
        out / f"{name}.report.json": _is_report,
        out / f"{name}.report.html": _is_page,
        out / f"{name}.tuning.json": _is_tuning,
        out / f"{name}.outcomes.json": _is_outcomes,
    }
    for path, is_ours in mine.items():
        if os.path.lexists(path) and not is_ours(path):
            raise _foreign(path)


def refuse_other_page(path: Path) -> None:
    """Raise EdgekitError where something else than a page that edgekit wrote lies where one is to go."""
    if os.path.lexists(path) and not _is_page(path):
        raise _foreign(path)


def partial(path: Path) -> Path:
    """The hidden name of what is being written."""
    return path.with_name(f".{path.name}.partial")


def old(path: Path) -> Path:
    """The hidden name of what is being replaced."""
    return path.with_name(f".{path.name}.old")


def refuse_foreign_half(path: Path) -> None:
    """Raise EdgekitError where somebody else's lies where `marked_half` would fill what is to go to a path."""
    half = partial(path)
    if os.path.lexists(half) and (
        half.is_symlink() or not half.is_dir() or (any(half.iterdir()) and not (half / MARK).is_file())
    ):
        raise _foreign(half)


@contextmanager
def marked_half(path: Path) -> Iterator[Path]:
    """Where a folder is filled before it is renamed to a path: inside of its half, which bears the mark and goes at the end.

    What a killed run left there goes first. Raises EdgekitError where what lies there is somebody else's.
    """
    half = partial(path)
    refuse_foreign_half(path)
    if half.exists():
        discard(half, last={MARK})
    half.mkdir()
    (half / MARK).touch()
    try:
        yield half / path.name
    finally:
        with suppress(FileNotFoundError):
            discard(half, last={MARK})


def swap(half: Path, path: Path, last: Collection[str] = (MANIFEST,)) -> None:
    """Put a finished folder in its place. last: what of an older one is deleted last, because it shows whose it is.

    A folder cannot be replaced in one call: a kill between the two renames leaves the older one under its hidden name,
    and `clear_leftovers` puts it back.
    """
    older = old(path)
    if path.exists():
        path.rename(older)
    try:
        half.rename(path)
    except OSError:
        if older.exists():
            older.rename(path)
        raise
    if older.exists():
        discard(older, last=last)


def clear_leftovers(bundle: Path, files: tuple[Path, ...]) -> None:
    """What a killed run left: the older bundle comes back, halves go."""
    older, half = old(bundle), partial(bundle)
    if older.exists() and not bundle.exists():
        older.rename(bundle)
    if older.exists():
        discard(older, last={MANIFEST})
    if half.exists():
        discard(half, last={MARK, MANIFEST})
    for path in files:
        partial(path).unlink(missing_ok=True)


def _refuse_changed(folder: Path) -> None:
    manifest = folder / MANIFEST
    if folder.is_symlink() or not manifest.is_file():
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            return
        raise EdgekitError(f"{folder}: is there and is not a bundle; move it away or choose another --out")
    content = read_json(manifest)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise EdgekitError(f"{manifest}: not a manifest that edgekit wrote; move it away or choose another --out")
    # Python leaves __pycache__ where an app imports the bundle's loader.
    names = {name for name in list_names(folder) if "__pycache__" not in Path(name).parts}
    if added := sorted(names - files.keys() - {MANIFEST}):
        raise EdgekitError(
            f"{folder / added[0]}: not of the bundle that edgekit wrote there, and a new one would replace it; move it away"
            " or choose another --out"
        )
    for name in sorted(names & files.keys()):
        if file_sha256(folder / name) != files[name].get("sha256"):
            raise EdgekitError(
                f"{folder / name}: changed after it was packaged, and a new bundle would replace it; move it away or choose"
                " another --out"
            )


def _foreign(path: Path) -> EdgekitError:
    return EdgekitError(f"{path}: is there and edgekit did not write it; move it away or choose another --out")


def _is_half(folder: Path) -> bool:
    """Whether edgekit wrote it: it bears the mark, or it is a whole bundle, as it is between its last file and its place."""
    if not folder.is_symlink() and (folder / MARK).is_file():
        return True
    try:
        _refuse_changed(folder)
    except (EdgekitError, OSError):
        return False
    return True


def _is_archive(path: Path, root: str) -> bool:
    """Whether the first entry is of a bundle's archive: below its name, and at the time that only edgekit writes."""
    try:
        with tarfile.open(path, "r|gz") as tar:
            first = tar.next()
    except (OSError, EOFError, tarfile.TarError, zlib.error, gzip.BadGzipFile):
        return False
    return first is not None and first.isfile() and first.name.startswith(f"{root}/") and first.mtime == 0


def _is_report(path: Path) -> bool:
    return _has_keys(path, "verdict", "checks", "artifact")


def _is_tuning(path: Path) -> bool:
    return _has_keys(path, "artifact", "best", "tried")


def _is_outcomes(path: Path) -> bool:
    return _has_keys(path, "artifact", "prompts", "right")


def _has_keys(path: Path, *keys: str) -> bool:
    try:
        content = read_json(path)
    except EdgekitError:
        return False
    return isinstance(content, dict) and set(keys) <= content.keys()


def _is_page(path: Path) -> bool:
    try:
        page = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(mark in page for mark in _PAGE_MARKS)
