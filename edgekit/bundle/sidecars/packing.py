"""What a sidecar is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.loaders import Loader, find_loader
from edgekit.bundle.manifest import Manifest
from edgekit.evidence import Report


@dataclass(frozen=True, kw_only=True)
class Packing:
    """A bundle that is being written: the folder of the artifact, the manifest without its files and digest, the report, and the
    target's `hardware.arch`.

    A sidecar says nothing that a clock measured: two builds give the same bundle.
    """

    artifact: Path
    manifest: Manifest
    report: Report
    arch: str

    @property
    def loader(self) -> Loader:
        """The loader that ships."""
        loader = find_loader(self.manifest.runtime_name, self.manifest.task, self.manifest.output)
        assert loader is not None
        return loader
