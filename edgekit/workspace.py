"""The step cache: one folder per finished step, named by the fingerprint of its inputs.

A product is a folder that ends in `<step>.json`, written last: if the JSON is there, the step is complete. A step runs in a
partial folder beside its place, under a lock, and is renamed when all its files are on disk; a killed step leaves a partial
folder that the next run takes over (a resumable step continues in it, any other starts it afresh).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from edgekit.closure import source_files
from edgekit.errors import EdgekitError, Unfinished
from edgekit.schema import dump_json, read_json

log = logging.getLogger("edgekit")

# Weights are asked for often in a build; what is smaller is quicker to read than to remember.
_LARGE = 1 << 20
_SOURCE = Path(__file__).parent
_READ = "edgekit.pipeline.origin"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step's product depends on beside its inputs: where its code begins (a change in any file that runs makes a new
    fingerprint), and the libraries that it uses. resumable: it finds what it wrote before it was killed. beside: patterns of
    files in its folder that are no part of the product."""

    code: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    resumable: bool = False
    beside: tuple[str, ...] = ()


_TRAINING = ("torch", "transformers", "tokenizers", "accelerate")
# What a training tells of its steps.
_TOLD = ("training.jsonl", "tensorboard/events.*")
# What is drawn of a verify step in a folder of the user's.
PAGE = "report.html"
_ASKING = ("torch", "transformers", "tokenizers")
_EXPORTING = ("torch", "transformers", "tokenizers", "optimum", "numpy")
STEPS: dict[str, Step] = {
    "prompts": Step(code=("edgekit.prompts",)),
    "check": Step(code=("edgekit.tasks",), libraries=("torch", "transformers")),
    "create": Step(code=("edgekit.distill", _READ), libraries=_TRAINING, resumable=True, beside=_TOLD),
    "merge": Step(code=("edgekit.distill.adapter", _READ), libraries=("torch", "transformers", "peft")),
    "rename": Step(code=("edgekit.pipeline.teacher",)),
    "finetune": Step(code=("edgekit.distill", _READ), libraries=_TRAINING, resumable=True, beside=_TOLD),
    "signals": Step(code=("edgekit.distill", _READ), libraries=_TRAINING, resumable=True),
    "importance": Step(code=("edgekit.distill", _READ), libraries=_TRAINING),
    "distill": Step(code=("edgekit.distill", _READ), libraries=_TRAINING, resumable=True, beside=_TOLD),
    "control": Step(code=("edgekit.distill", _READ), libraries=_TRAINING, resumable=True, beside=_TOLD),
    "linear": Step(code=("edgekit.linear", _READ), libraries=("onnx", "tokenizers", "numpy")),
    "qad": Step(code=("edgekit.qad", _READ), libraries=_TRAINING, resumable=True, beside=_TOLD),
    # Whom an endpoint has answered is asked once, whatever else of edgekit changes.
    "asked": Step(code=("edgekit.written.endpoint",), resumable=True),
    "answers": Step(code=("edgekit.written.answers", _READ), libraries=_ASKING, resumable=True),
    "labels": Step(code=("edgekit.written.labels", _READ), libraries=_ASKING, resumable=True),
    "labelled": Step(code=("edgekit.written.audit",)),
    "answered": Step(code=("edgekit.written.sift",)),
    "record": Step(code=("edgekit.record", _READ), libraries=("torch", "transformers", "tokenizers")),
    "calibrate": Step(code=("edgekit.calibrate", _READ), libraries=("torch", "transformers", "tokenizers", "numpy")),
    # And what the format names (`formats.library_versions`), which these steps have among their inputs.
    "trace": Step(code=("edgekit.export",), libraries=_EXPORTING),
    "export": Step(code=("edgekit.export", _READ), libraries=_EXPORTING),
    "pace": Step(code=("edgekit.pace", "edgekit.devices", _READ), libraries=_EXPORTING),
    "verify": Step(
        code=("edgekit.verify", "edgekit.devices", _READ), libraries=("tokenizers", "numpy"), beside=(PAGE,)
    ),
}


class FileEntry(TypedDict):
    """A file of a product, as its manifest has it."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Product:
    """A finished step's folder and what its manifest says."""

    step: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 over the product's files: what a later step's fingerprint depends on."""
        return str(self.manifest["digest"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the step wrote about its product."""
        return dict(self.manifest["facts"])

    def check(self) -> None:
        """Compare every file with the manifest; EdgekitError names the first that differs."""
        files = self.manifest["files"]
        if fingerprint({name: entry["sha256"] for name, entry in files.items()}) != self.digest:
            raise EdgekitError(
                f"{self.folder / self.step}.json: its digest is not that of its files; it was edited by hand: make it again"
            )
        for name, entry in files.items():
            path = self.folder / name
            if not _is_inside(path, self.folder):
                raise EdgekitError(f"{self.folder}: the manifest names a path outside the folder: {name}")
            if not path.is_file():
                raise EdgekitError(f"{path}: missing; make this step again")
            if file_sha256(path) != entry["sha256"]:
                raise EdgekitError(
                    f"{path}: its sha256 is not the manifest's; the file was changed after the step finished: make the step"
                    " again in another folder"
                )


def library_version(name: str, *distributions: str) -> str:
    """The installed version of a library. EdgekitError where it is not installed.

    distributions: what may have installed it, where that is not called as the library is.
    """
    for distribution in distributions or (name,):
        with suppress(metadata.PackageNotFoundError):
            return _distribution_version(distribution)
    raise EdgekitError(f"{name} is not installed; run: pip install {name}")


@lru_cache(maxsize=256)
def _distribution_version(name: str) -> str:
    """Asked of many steps, and each time its whole metadata is parsed."""
    return metadata.version(name)


def installed_version(name: str) -> str | None:
    """A library's version, None where it is not installed."""
    try:
        return library_version(name)
    except EdgekitError:
        return None


def fingerprint(value: object) -> str:
    """sha256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces; a large file is read once for as long as its size and times stay."""
    seen = path.stat()
    if seen.st_size < _LARGE:
        return _sha256(path)
    return _sha256_once(path.resolve(), seen.st_size, seen.st_mtime_ns, seen.st_ino)


@lru_cache(maxsize=1024)
def _sha256_once(path: Path, _size: int, _modified: int, _inode: int) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Every file below a folder as {relative posix path: {bytes, sha256}}, in sorted order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    }


def list_names(folder: Path) -> set[str]:
    """What `list_files` names, and links that lead nowhere or to folders; a link is not followed."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def open_product(folder: Path, step: str) -> Product:
    """A finished step's folder; EdgekitError where it is not one."""
    manifest = folder / f"{step}.json"
    if not manifest.is_file():
        raise EdgekitError(f"{folder}: no {step}.json in it: not the finished folder of a {step} step")
    content = read_json(manifest)
    if (
        not isinstance(content, dict)
        or {"digest", "facts", "files", "step"} - set(content)
        or content["step"] != step
        or not all(isinstance(content[key], dict) for key in ("facts", "files"))
        or not all(isinstance(entry, dict) and "sha256" in entry for entry in content["files"].values())
    ):
        raise EdgekitError(f"{manifest}: not a manifest that edgekit wrote; make this step again")
    return Product(step=step, folder=folder, manifest=content)


def write_product(folder: Path, step: str, *, key: str, inputs: object, facts: Mapping[str, object]) -> Product:
    """Sync a folder's files to disk and write its manifest last. `key` is the fingerprint of all that made it."""
    files = {name: entry for name, entry in list_files(folder).items() if not _is_beside(name, step)}
    for name in files:
        sync(folder / name)
    manifest = {
        "step": step,
        "key": key,
        "inputs": inputs,
        "files": files,
        "digest": fingerprint({name: entry["sha256"] for name, entry in files.items()}),
        "facts": facts,
    }
    write_atomically(folder / f"{step}.json", dump_json(manifest))
    return open_product(folder, step)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file beside its place, sync it, then rename it: readers see the old file or the new one, never a half."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        sync(partial)
        partial.replace(path)
    except OSError as failed:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise disk_error(path, failed) from failed


def disk_error(path: Path, failed: OSError) -> EdgekitError:
    """What to tell a user about a failed write, or about a read that failed for the same reasons."""
    place = failed.filename if isinstance(failed.filename, str) else path
    return EdgekitError(f"{place}: cannot be written: {failed.strerror or failed}; free space or choose another folder")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; EdgekitError where the place cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failed:
        raise disk_error(folder, failed) from failed


@contextmanager
def locked(path: Path, busy: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file; where another holds it, log `busy` and wait for it, or with `wait` off give False at once.

    Raises EdgekitError where the file cannot be written. It stays when the lock is released: another may be waiting for it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=1 if wait else 0)
    except Timeout:
        log.warning(busy)
        if not wait:
            yield False
            return
        lock.acquire()
    except OSError as failed:
        raise disk_error(path, failed) from failed
    try:
        yield True
    finally:
        lock.release()


class NotMade(Exception):
    """A step that is not there, in a workspace that only looks."""


class Workspace:
    """A folder of finished steps. One that only looks makes none: a step that is not there raises NotMade."""

    def __init__(self, root: Path, *, makes: bool = True) -> None:
        self.root = root
        self._makes = makes

    def once(
        self,
        step: str,
        inputs: object,
        make: Callable[[Path], Mapping[str, object]],
        *,
        at: Path | None = None,
        fresh: bool = False,
    ) -> Product:
        """Return the finished product of these inputs, or make it.

        `make` fills the folder that it is given and returns the facts for its manifest. It runs under a lock, so two builds
        at once make a step once. A resumable step finds what it wrote before it was killed. `at` is a folder of the user's to
        use instead of the workspace's own place (what the workspace holds is copied there); `fresh` makes the product again.
        """
        key, resumable = self._key(step, inputs), STEPS[step].resumable
        place = at.resolve() if at else self.root / step / key[:16]
        if (done := _finished(place, step, key, ours=at is None)) and not fresh:
            log.info("%s: kept %s", step, done.folder)
            return done
        if not self._makes:
            raise NotMade(step)
        partial = place.with_name(f".{place.name}.partial")
        if at is not None:
            _refuse_foreign(place, step)
        make_folder(place.parent)
        with locked(self.lock_file(place), f"{place}: another build is making this; waiting for it"):
            if (done := _finished(place, step, key, ours=at is None)) and not fresh:
                return done
            complete = _finished(partial, step, key, ours=True) is not None
            if partial.exists() and not complete and not (resumable and _made_for(partial) == key):
                discard(partial)
            kept = None if fresh else _finished(self.root / step / key[:16], step, key, ours=True)
            try:
                if not complete:
                    partial.mkdir(exist_ok=True)
                    (partial / _KEY).write_text(key)
                if kept is not None:
                    shutil.copytree(kept.folder, partial, dirs_exist_ok=True)
                elif not complete:
                    facts = make(partial)
                    write_product(partial, step, key=key, inputs=inputs, facts=facts)
                (partial / _KEY).unlink(missing_ok=True)
                _replace(partial, place)
            except BaseException as failed:
                told = _explain(failed, place)
                # What was killed or cut off continues where it was; anything else starts afresh: its half is only litter.
                if not resumable or (isinstance(told, EdgekitError) and not isinstance(told, Unfinished)):
                    shutil.rmtree(partial, ignore_errors=True)
                if told is not failed:
                    raise told from failed
                raise
        return open_product(place, step)

    def products(self) -> Iterator[Product]:
        """Every finished product, sorted by step and name."""
        for step in sorted(STEPS):
            for manifest in sorted(self.root.glob(f"{step}/*/{step}.json")):
                yield open_product(manifest.parent, step)

    def is_current(self, product: Product) -> bool:
        """Whether the code and the libraries of now would make the same of a product's inputs."""
        return bool(product.manifest.get("key") == self._key(product.step, product.manifest.get("inputs")))

    def _key(self, step: str, inputs: object) -> str:
        versions = {name: library_version(name) for name in STEPS[step].libraries}
        return fingerprint({"step": step, "inputs": inputs, "versions": versions, "code": _code_digest(step)})

    def lock_file(self, place: Path) -> Path:
        """Of a place: in the workspace, not beside the place: a folder that a user names gets nothing but the product."""
        locks = self.root / "locks"
        make_folder(locks)
        return locks / f"{fingerprint(str(place.resolve()))[:16]}.lock"


# Names the fingerprint that a partial folder is being made for.
_KEY = ".key"
_MARKS = frozenset({_KEY, *(f"{step}.json" for step in STEPS)})


# What the disk says when it is full, read-only or not ours.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
_FULL_BYTES = 64 * 1024


def _explain(failed: BaseException, place: Path) -> BaseException:
    """The error that a user is told: a full or read-only disk by name, whatever library ran into it; else the error itself."""
    if isinstance(failed, OSError) and failed.errno in DISK_ERRORS:
        return disk_error(place, failed)
    if not isinstance(failed, EdgekitError | KeyboardInterrupt) and shutil.disk_usage(place.parent).free < _FULL_BYTES:
        return EdgekitError(
            f"{place}: cannot be written: no space is left on the disk; free some or choose another folder"
        )
    return failed


def _finished(place: Path, step: str, key: str, *, ours: bool) -> Product | None:
    """The product at a place, if it has this key. One that was damaged is absent where the place is ours, else an error."""
    manifest = place / f"{step}.json"
    if not manifest.is_file():
        return None
    try:
        product = open_product(place, step)
        if product.manifest.get("key") != key:
            return None
        product.check()
    except EdgekitError as damaged:
        if not ours:
            raise
        log.warning("%s; it is made again", damaged.message)
        return None
    with suppress(OSError):
        os.utime(manifest)
    return product


def last_used(folder: Path) -> float:
    """When a product was made or last reused: its manifest's time; without one, the folder's."""
    manifest = folder / f"{folder.parent.name}.json"
    return (manifest if manifest.is_file() else folder).stat().st_mtime


def _made_for(partial: Path) -> str | None:
    return (partial / _KEY).read_text() if (partial / _KEY).is_file() else None


def is_ours(folder: Path, step: str) -> bool:
    """Whether edgekit made a folder for a step: finished, half (its mark lies in it), or still empty. A link never is."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return (folder / _KEY).is_file() or (folder / f"{step}.json").is_file() or not any(folder.iterdir())


def discard(folder: Path, last: Collection[str] = _MARKS) -> None:
    """Delete a folder of edgekit's own, links as links; what shows whose it is goes last, so that a killed deletion can go on."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in last:
            entry.unlink()
    shutil.rmtree(folder)


def _refuse_foreign(place: Path, step: str) -> None:
    """What is not exactly a product of this step is the user's, and so is a product with a file that was changed or added."""
    for beside in (place.with_name(f".{place.name}.partial"), place.with_name(f".{place.name}.old")):
        if os.path.lexists(beside) and not is_ours(beside, step):
            raise EdgekitError(f"{beside}: already there, and not edgekit's; move it away or choose another --out")
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not (place / f"{step}.json").is_file():
        raise EdgekitError(f"{place}: already there, and not the folder of a {step} step; choose another --out")
    product = open_product(place, step)
    product.check()
    added = sorted(name for name in list_names(place) - product.manifest["files"].keys() if not _is_beside(name, step))
    if added:
        raise EdgekitError(
            f"{place / added[0]}: not of the {step} step that made this folder; move it away or choose another --out"
        )


def _replace(partial: Path, place: Path) -> None:
    """Put a finished folder in its place; an older product stays until the new one is complete."""
    old = place.with_name(f".{place.name}.old")
    if old.exists():
        discard(old)
    if place.exists():
        place.rename(old)
    partial.rename(place)
    sync(place.parent)
    if old.is_symlink():
        old.unlink()
    elif old.exists():
        discard(old)


@lru_cache(maxsize=32)
def _code_digest(step: str) -> str:
    """Of the code that a step runs; read once by a process, which goes on with the code that it began with."""
    return fingerprint(
        {path.relative_to(_SOURCE).as_posix(): file_sha256(path) for path in source_files(STEPS[step].code)}
    )


def sync(path: Path) -> None:
    """Have the disk hold a file, or on POSIX a folder's entries; where the file system can't, that is only logged."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows syncs only what is open for writing; POSIX opens a folder only for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError:
        log.debug("%s: this file system has no fsync", path)
    finally:
        os.close(descriptor)


def _is_beside(name: str, step: str) -> bool:
    """Whether a file in a step's folder, by its relative path, is edgekit's and no part of the product."""
    return any(fnmatchcase(name, pattern) for pattern in (f"{step}.json", _KEY, *STEPS[step].beside))


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
