"""A student that fits its target is the student of so many layers, to the byte, and stays it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_project import RECIPE, TARGET

from tests.e2e.conftest import SLOWEST, Project

pytestmark = pytest.mark.timeout(SLOWEST)


def test_a_fitted_student_is_that_of_its_layers(tiny: Project, built: Mapping[str, Any], tmp_path: Path) -> None:
    """Of a teacher of three layers two fit: the artifact is that of `layers = 2`, whatever a later build would measure."""
    folder = tmp_path / "fitted"
    shutil.copytree(tiny.folder, folder, ignore=shutil.ignore_patterns("dist", ".edgekit"))
    (folder / "recipe.toml").write_text(RECIPE.replace("layers = 2", 'fit = "layers"'))
    project = Project(folder=folder, cache=tiny.cache)
    limited = TARGET.format(scheme="auto") + "\n[budget]\nsequence = 16\nbytes = {}\n"
    (folder / "targets" / "first.toml").write_text(limited.format(10**9))
    wide = json.loads(project.run("build", "--json", "--dry-run", "--target", "first").stdout)["plans"][0]["fit"]
    for one in wide["candidates"]:
        assert 0.0 < one["limits"]["p50_ms"] < 1000.0
        assert 20.0 < one["memory_mb"] < 1000.0
        assert 0 < one["bytes"] <= one["bytes_most"]
    assert not (folder / "dist").exists(), "a dry run locks nothing"
    most = {one["student"]["layers"]: one["bytes_most"] for one in wide["candidates"]}
    assert wide["candidates"][wide["chosen"]]["student"] == {"layers": 3}
    assert most[1] < most[2] < most[3]

    (folder / "targets" / "first.toml").write_text(limited.format(most[2]))
    ran = project.run("build", "--json", "--target", "first")
    (bundle,) = json.loads(ran.stdout)["bundles"]
    assert bundle["sha256"] == built["sha256"]
    assert bundle["bytes"] <= most[2]
    assert "2 layers, auto" in " ".join(ran.stderr.split())
    (lock,) = (folder / "dist").glob("*.lock.json")
    kept = lock.read_text()
    entry = json.loads(kept)["student"][Path(bundle["bundle"]).name]
    assert entry["candidates"][entry["chosen"]]["student"] == {"layers": 2}

    # A machine that would measure something else: nothing that was measured is there any more.
    shutil.rmtree(tiny.cache / "pace")
    again = project.run("build", "--json", "--target", "first")
    assert "pace" not in again.stderr
    assert json.loads(again.stdout)["bundles"][0]["archive_sha256"] == bundle["archive_sha256"]
    assert lock.read_text() == kept
