"""EMBEDDINGS: what an app on a platform is given to use a bundle, by runtime, modality, output and platform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.bundle.loaders import BOUND, LOADERS
from edgekit.bundle.manifest import Manifest
from edgekit.runtimes import RUNTIMES
from edgekit.tasks import TASKS

PLATFORMS: Mapping[str, str] = {
    "python": "Python",
    "node": "Node.js",
    "electron": "Electron",
    "web": "a web page",
    "c": "C",
    "android": "Android",
    "ios": "iOS",
}
"""The names that `edgekit embed --for` takes, and what they are called."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What an app on one platform is given to use a bundle that lies as `bundle/` beside it.

    files: by their names in the app, the files here that they are copies of. install: command lines. use: an app's lines, in
    `language`. notes: what else the app's author must know, a sentence each. ran: where this ran, for README's table; "not run"
    where it did not.
    """

    files: Mapping[str, Path]
    install: tuple[str, ...]
    use: str
    language: str
    ran: str
    notes: tuple[str, ...] = field(default=())


def _python(key: tuple[str, str, str]) -> Embedding:
    loader = LOADERS[key]
    return Embedding(
        files={"load.py": loader.path},
        install=(f"pip install {' '.join(loader.needs)}",),
        use=f'from load import Bundle\n\nbundle = Bundle("bundle")\n{loader.use}',
        language="python",
        ran="Python 3.11 on x86-64 and on the emulated boards",
    )


EMBEDDINGS: dict[tuple[str, str, str, str], Embedding] = {(*key, "python"): _python(key) for key in LOADERS}


def find_embedding(manifest: Manifest, platform: str) -> Embedding | None:
    """What an app on a platform is given to use a bundle; None where this edgekit has nothing for it."""
    kind = TASKS.get(manifest.task)
    found = kind and EMBEDDINGS.get((manifest.runtime_name, kind.MODALITY, manifest.output, platform))
    if not found or platform != "python":
        return found or None
    runtime = RUNTIMES[manifest.runtime_name]
    name = runtime.distribution(manifest.runtime)
    install = tuple(line.replace(f" {runtime.PACKAGE.name} ", f" {name} ") for line in found.install)
    more = {BOUND.name: BOUND} if manifest.runtime.get("cuda_graphs") and manifest.tokenizer else {}
    return replace(found, install=install, files={**found.files, **more})


def platforms_of(manifest: Manifest) -> list[str]:
    """The platforms that there is something for."""
    return [name for name in PLATFORMS if find_embedding(manifest, name) is not None]
