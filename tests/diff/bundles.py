"""Small bundles that differ in what a test wants: packed for real, or with another manifest than edgekit would write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import FileEntry, Manifest, read_manifest
from edgekit.bundle.package import Lineage, PackageInputs, package
from edgekit.recipe import Issue
from edgekit.schema import read_json
from edgekit.workspace import file_sha256, list_names
from tests.artifacts import make_artifact, make_report, make_target
from tests.bundle.test_golden import SPOKEN


def pack(folder: Path, name: str, issue: Issue | None = None, **made: Any) -> Path:
    """A bundle with golden answers, below `folder`; made: what `make_artifact` takes."""
    work = folder / f"made-{name}"
    artifact = make_artifact(work / "artifact", **made)
    make_report(work / "report", artifact)
    (work / "calibrate.jsonl").write_text("".join(json.dumps({"text": text, "label": None}) + "\n" for text in SPOKEN))
    inputs = PackageInputs(
        artifact=artifact,
        report=work / "report",
        name=name,
        recipe="demo",
        target=make_target(work),
        lineage=Lineage(),
        calibrate=work,
        issue=issue,
    )
    return package(inputs, folder / "dist").bundle


def rewrite(bundle: Path, to: Path, change: Callable[[Manifest], Manifest]) -> Path:
    """A copy of a bundle with another manifest, whole in itself; its files may have been changed before."""
    if to != bundle:
        shutil.copytree(bundle, to)
    path = to / "bundle.json"
    manifest = change(read_manifest(read_json(path), str(path)))
    files = {
        name: FileEntry(bytes=(to / name).stat().st_size, sha256=file_sha256(to / name))
        for name in sorted(list_names(to) - {"bundle.json"})
    }
    artifact = replace(manifest.artifact, sha256=files[manifest.model].sha256, bytes=files[manifest.model].bytes)
    path.write_text(replace(manifest, artifact=artifact).with_files(files).to_json())
    return to
