"""A bundle that is there: opened, checked against its manifest, and used through the loader that ships with it."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit import __version__
from edgekit.bundle.archive import extract, stays_inside
from edgekit.bundle.destination import MANIFEST
from edgekit.bundle.loaders import BOUND, find_loader
from edgekit.bundle.manifest import MANIFEST_FORMAT, Manifest, digest_of, read_manifest
from edgekit.bundle.mistaken import other_than_bundle
from edgekit.bundle.tuning import use_tuning
from edgekit.errors import EdgekitError
from edgekit.outputs import OUTPUTS
from edgekit.runtimes import RUNTIMES
from edgekit.schema import read_json
from edgekit.tokenizing import readable_part
from edgekit.workspace import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llama_cpp import Llama


log = logging.getLogger("edgekit")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose files have the hashes that its manifest says; from an archive, it lives as long as this object."""

    folder: Path
    manifest: Manifest


class Loaded(Protocol):
    """What the loaders have in common that ship for rows and for texts (`bundle.loaders`)."""

    manifest: Mapping[str, object]

    def __call__(self, text: str, /, **options: object) -> object:
        """The answer to a text."""


class Speaker(Loaded, Protocol):
    """A loader that generates text."""

    folder: Path
    """Where the bundle lies."""
    chats: bool
    """Whether it takes conversations."""

    llama: Llama
    """What generates, of one in a GGUF file alone."""

    def stream(self, said: str | Sequence[Mapping[str, object]] | Sequence[int], /, **options: object) -> Iterator[str]:
        """The answer, piece by piece."""


def open_bundle(path: Path) -> Bundle:
    """Open a bundle's folder or archive and check it against its manifest.

    Raises EdgekitError for an edited manifest, a path outside the bundle, a file that is missing or changed, and what is no
    bundle, saying what it is.
    """
    if not (path.is_dir() or path.is_file()):
        raise EdgekitError(f"{path}: no such bundle; name a bundle's folder or its .tar.gz")
    if other := other_than_bundle(path):
        raise EdgekitError(other)
    if path.is_dir():
        return Bundle(folder=path, manifest=check_bundle(path))
    scratch = Path(tempfile.mkdtemp(prefix="edgekit-"))
    try:
        folder = extract(path, scratch)
        bundle = Bundle(folder=folder, manifest=check_bundle(folder))
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(bundle, shutil.rmtree, scratch, ignore_errors=True)
    return bundle


def run_bundle(
    path: Path, texts: Sequence[str], *, prompt: str | None = None, threads: int | None = None, tuned: bool = False
) -> list[object]:
    """A bundle's answer to each text, through the very loader that ships: {label, score, scores}, list[float] or a text.

    prompt: the name of what comes before each text; None: the model's default. tuned: take the setting that lies beside it, where
    threads are not given (see `bundle.tuning`). Raises EdgekitError for whatever `open_bundle`
    refuses, a prompt that the bundle has not, and where the runtime cannot open the model.
    """
    bundle = open_bundle(path)
    before = _prompt(bundle, path, prompt)
    opened = load_bundle(bundle, path, threads=threads, tuned=tuned)
    named = {} if prompt is None else {"prompt": prompt}
    output = bundle.manifest.output
    answers = [opened(_readable(opened, output, text, before), **named) for text in texts]
    return [OUTPUTS[output].plain(answer) for answer in answers]


def _prompt(bundle: Bundle, path: Path, name: str | None) -> str:
    """What comes before a text: the prompt of that name, or the model's default; EdgekitError where it has none of that name."""
    manifest = bundle.manifest
    if name is None:
        return manifest.prompt
    if name and name not in manifest.prompts:
        known = f"it has {', '.join(sorted(manifest.prompts))}" if manifest.prompts else "it has none"
        raise EdgekitError(f"{path}: no prompt {name!r}: {known}")
    return manifest.prompts[name] if name else ""


def _readable(opened: Loaded, output: str, text: str, before: str) -> str:
    """A text without what its loader's tokenizer would only cut off, which for megabytes takes half a minute."""
    tokenizer = getattr(opened, "tokenizer", None)
    return text if tokenizer is None or OUTPUTS[output].generates else readable_part(tokenizer, text, before)


def open_speaker(path: Path, *, threads: int | None = None, tuned: bool = False) -> Speaker | None:
    """The loader of a bundle that generates text, opened; None for a bundle that gives rows. tuned: as for `run_bundle`.

    Raises as `load_bundle` does.
    """
    bundle = open_bundle(path)
    kind = OUTPUTS.get(bundle.manifest.output)
    return load_bundle(bundle, path, threads=threads, tuned=tuned) if kind is None or kind.generates else None


def load_bundle(bundle: Bundle, path: Path, *, threads: int | None = None, tuned: bool = False) -> Speaker:
    """The loader's own object over a bundle that was opened from `path`.

    The code that runs is edgekit's own copy, never a bundle's: a bundle may come from anywhere. Raises EdgekitError where the
    runtime is absent or cannot open the model.
    """
    manifest = bundle.manifest
    name, output = manifest.runtime_name, manifest.output
    found = find_loader(name, manifest.task, output)
    if found is None:
        raise EdgekitError(f"{path}: edgekit {__version__} has no loader for {output} in {name}; use a newer edgekit")
    loader = found.path
    threads = use_tuning(path, manifest) if tuned and threads is None else threads
    shipped = (manifest.files or {}).get("load.py")
    if shipped is None or shipped.sha256 != file_sha256(loader):
        log.warning("%s: its load.py is not that of edgekit %s, which answers here", path, __version__)
    runtime = RUNTIMES[name]
    spec = importlib.util.spec_from_file_location("edgekit_bundle_loader", loader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        # What a loader says itself is a RuntimeError, or llama_cpp's ValueError.
        refusals: tuple[type[Exception], ...] = (*runtime.load_errors(), RuntimeError, ValueError)
        spec.loader.exec_module(module)
        module.__file__ = str(BOUND)  # what it looks for beside itself is edgekit's own too
    except ModuleNotFoundError as absent:
        package = runtime.PACKAGE
        wanted = package.requirement if absent.name == package.module else absent.name
        raise EdgekitError(f"{path}: {absent.name} is not installed; run: pip install {wanted}") from absent
    try:
        # The files were checked when the bundle was opened.
        opened: Speaker = module.Bundle(bundle.folder, threads=threads, check=False)
    except refusals as refused:
        raise EdgekitError(f"{path}: {str(refused).splitlines()[0]}") from refused
    return opened


def check_bundle(folder: Path) -> Manifest:
    """The manifest of a bundle's folder; EdgekitError where it is not edgekit's, or a file is missing or was changed."""
    path = folder / MANIFEST
    if not path.is_file():
        raise EdgekitError(f"{folder}: no {MANIFEST} in it: not a bundle")
    table = read_json(path)
    if (
        not isinstance(table, dict)
        or {"digest", "files", "format_version", "model", "tokenizer"} - set(table)
        or not isinstance(table["files"], dict)
    ):
        raise EdgekitError(f"{path}: not a manifest that edgekit wrote")
    if table["format_version"] != MANIFEST_FORMAT:
        raise EdgekitError(
            f"{path}: format_version {table['format_version']}: written by another edgekit; build it again"
        )
    names = [*table["files"], str(table["model"]), *([str(table["tokenizer"])] if table["tokenizer"] else [])]
    for name in names:
        if not stays_inside(folder, name):
            raise EdgekitError(f"{path}: names a path outside the bundle: {name}; do not use this bundle")
    if digest_of(table) != table["digest"]:
        raise EdgekitError(
            f"{path}: changed after it was written (its digest does not match); package the artifact again"
        )
    manifest = read_manifest(table, str(path))
    files = manifest.files or {}
    for name in names:
        file = folder / name
        if name not in files or not file.is_file():
            raise EdgekitError(f"{file}: missing; fetch or package the bundle again")
        if file_sha256(file) != files[name].sha256:
            raise EdgekitError(f"{file}: its sha256 is not the manifest's; fetch or package the bundle again")
    return manifest
