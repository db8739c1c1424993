"""Tidying a cache of finished steps: only what edgekit made is ever deleted, and no link is followed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.workspace import STEPS, Workspace, discard, is_ours, last_used, locked

# What a cache holds besides the folders of steps.
BESIDE = {"locks", "looks.json", "looks.lock"}
# A step's folder has the first 16 digits of its fingerprint for a name; the halves of killed steps are hidden ones beside it.
_FOLDER = re.compile(r"(?P<place>[0-9a-f]{16})|\.(?P<beside>[0-9a-f]{16})\.(?:partial|old)")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A step's folder in a cache, finished or half: its bytes, and when a build last made or used it (seconds since 1970)."""

    step: str
    folder: Path
    bytes: int
    used: float
    finished: bool


def kept(workspace: Workspace) -> list[Kept]:
    """Every folder in a cache that edgekit made, the one unused for longest first.

    Raises EdgekitError where the cache's folder holds other things and nothing of edgekit's: it is no cache.
    """
    found = sorted(_folders(workspace.root), key=lambda one: (one.used, str(one.folder)))
    if not found and workspace.root.is_dir():
        foreign = sorted({path.name for path in workspace.root.iterdir()} - BESIDE - STEPS.keys())
        if foreign:
            raise EdgekitError(
                f"{workspace.root}: no cache of edgekit: it holds {foreign[0]} and no finished step; name the right folder"
                " (--cache, EDGEKIT_CACHE)"
            )
    return found


def choose(found: Sequence[Kept], *, older_than_days: float = 0.0, most_bytes: int | None = None) -> list[Kept]:
    """Which folders to delete: those unused for so long and, with `most_bytes`, only as many as bring the rest below it."""
    horizon = time.time() - older_than_days * 86400
    total, chosen = sum(one.bytes for one in found), []
    for one in found:
        if one.used <= horizon and (most_bytes is None or total > most_bytes):
            chosen.append(one)
            total -= one.bytes
    return chosen


def prune(workspace: Workspace, chosen: Sequence[Kept]) -> list[Kept]:
    """Delete these folders; returns those that are gone. What a build is making at this moment is left, with a warning."""
    gone = []
    for one in chosen:
        match = _FOLDER.fullmatch(one.folder.name)
        assert match is not None
        lock = workspace.lock_file(one.folder.with_name(match["place"] or match["beside"]))
        with locked(lock, f"{one.folder}: a build is making this; left as it is", wait=False) as free:
            # Until the lock was ours, a build may have renamed its partial folder.
            if free and is_ours(one.folder, one.step):
                discard(one.folder)
                gone.append(one)
    return gone


def read_size(text: str) -> int:
    """Bytes from "500 MB", "2GB" or "1000000" (1 MB is 10^6 bytes); EdgekitError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise EdgekitError(f"{text!r}: not a size; write it as 500MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _folders(root: Path) -> Iterator[Kept]:
    for step in STEPS:
        place = root / step
        if place.is_symlink() or not place.is_dir():
            continue
        for folder in place.iterdir():
            if _FOLDER.fullmatch(folder.name) and is_ours(folder, step):
                size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())
                done = folder.name[0] != "." and (folder / f"{step}.json").is_file()
                yield Kept(step=step, folder=folder, bytes=size, used=last_used(folder), finished=done)
