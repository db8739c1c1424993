"""One of the two that `edgekit diff` compares: a bundle, a release or a model file alone, with what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.open import Bundle, open_bundle
from edgekit.errors import EdgekitError
from edgekit.evidence import Report, read_report
from edgekit.outcomes import Outcomes, read_outcomes
from edgekit.release.contents import BUNDLE, RELEASE, read_release, report_name

MODELS = (".onnx", ".ort", ".gguf")
_ARCHIVE = ".tar.gz"


@dataclass(frozen=True, kw_only=True)
class Side:
    """What lies at a path. bundle: None of a model file alone. file: the model. reports: what was measured of this very model,
    outcomes: and what it answered then, prompt by prompt."""

    path: Path
    kind: str
    bundle: Bundle | None
    file: Path
    reports: tuple[Report, ...] = ()
    outcomes: Outcomes | None = None

    @property
    def manifest(self) -> Manifest | None:
        """What the bundle says of itself."""
        return self.bundle.manifest if self.bundle else None


def open_side(path: Path) -> Side:
    """A bundle's folder or archive with the report beside it, a release's folder with its evidence, or a model file alone.

    Raises EdgekitError for what is none of them, and a bundle that is not whole.
    """
    if path.is_file() and path.suffix in MODELS:
        return Side(path=path, kind="model file", bundle=None, file=path)
    if (path / RELEASE).is_file():
        count = read_release(path).reports
        places = [path / report_name(number) for number in range(1, count + 1)]
        return _side(path, "release", open_bundle(path / BUNDLE), places)
    bundle = open_bundle(path)
    where = path.absolute()
    name = where.name.removesuffix(_ARCHIVE)
    side = _side(path, "bundle", bundle, [where.with_name(f"{name}.report.json")])
    try:
        outcomes = read_outcomes(where.with_name(f"{name}.outcomes.json"))
    except EdgekitError:
        return side
    of_it = outcomes is not None and outcomes.artifact == bundle.manifest.artifact.sha256
    return replace(side, outcomes=outcomes) if of_it else side


def _side(path: Path, kind: str, bundle: Bundle, places: list[Path]) -> Side:
    """With those of the reports that are there, can be read, and are of this model."""
    found = []
    for place in places:
        try:
            report = read_report(place)
        except EdgekitError:
            continue
        if report.artifact.sha256 == bundle.manifest.artifact.sha256:
            found.append(report)
    return Side(path=path, kind=kind, bundle=bundle, file=bundle.folder / bundle.manifest.model, reports=tuple(found))
