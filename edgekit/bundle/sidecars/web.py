"""What a page needs of a bundle for browsers: the module that answers, and a page to try it."""

from __future__ import annotations

from pathlib import Path
from string import Template

from edgekit.bundle.sidecars.packing import Packing
from edgekit.outputs import OUTPUTS
from edgekit.probes.web import LOADER
from edgekit.probes.web.npm import PACKAGES
from edgekit.runtimes import onnxruntime

_WASM = "wasm32"


def loader(packing: Packing) -> Path | None:
    """load.mjs, with which the artifact was verified; None of what browsers do not run so."""
    return LOADER if _answers(packing) else None


def page(packing: Packing) -> str | None:
    """index.html, which tries it."""
    if not _answers(packing):
        return None
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    packages = " ".join(package.name for package in PACKAGES.values())
    return Template(text).substitute(name=packing.manifest.name, packages=packages)


def _answers(packing: Packing) -> bool:
    manifest = packing.manifest
    rows = manifest.runtime_name == onnxruntime.NAME and not OUTPUTS[manifest.output].generates
    return rows and manifest.tokenizer is not None and packing.arch == _WASM
