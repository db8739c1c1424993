"""What a page needs of a bundle for browsers: the module that answers, and a page to try it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

from edgekit.bundle.sidecars.packing import Packing
from edgekit.outputs import OUTPUTS
from edgekit.probes.web import LOADER, WRITER
from edgekit.probes.web.npm import PACKAGES
from edgekit.runtimes import llamacpp, onnxruntime

_WASM = "wasm32"


@dataclass(frozen=True, kw_only=True)
class _Page:
    """The module that the artifact was verified with, a page beside this file, and the packages that both need."""

    module: Path
    page: str
    packages: tuple[str, ...]


_ROWS = _Page(module=LOADER, page="page.html", packages=("onnxruntime-web", "tokenizers"))
_TOKENS = _Page(module=WRITER, page="writer.html", packages=("wllama",))


def loader(packing: Packing) -> Path | None:
    """load.mjs, with which the artifact was verified; None of what browsers do not run so."""
    kind = _kind(packing)
    return None if kind is None else kind.module


def page(packing: Packing) -> str | None:
    """index.html, which tries it."""
    kind = _kind(packing)
    if kind is None:
        return None
    text = Path(__file__).with_name(kind.page).read_text(encoding="utf-8")
    packages = " ".join(PACKAGES[name].name for name in kind.packages)
    return Template(text).substitute(name=packing.manifest.name, packages=packages)


def _kind(packing: Packing) -> _Page | None:
    """None of other targets, of what pages do not run, and of models that talk: nothing was judged that fills their template."""
    manifest = packing.manifest
    if packing.arch != _WASM:
        return None
    if OUTPUTS[manifest.output].generates:
        return _TOKENS if manifest.runtime_name == llamacpp.NAME and not manifest.chats else None
    return _ROWS if manifest.runtime_name == onnxruntime.NAME and manifest.tokenizer is not None else None
