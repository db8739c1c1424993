"""Whole builds in processes of their own, as a user runs them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_project import make_project

from tests import warm

ROOT = Path(__file__).resolve().parents[2]
# Seconds: the first test that asks for a build pays for it, on any machine.
SLOWEST = 3600
STEPS = ("finetune", "distill", "linear", "record", "calibrate", "export", "verify", "package")


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder with a recipe, and edgekit run in it."""

    folder: Path
    cache: Path
    made: Mapping[str, Path] = field(default_factory=dict)
    """The product of each step but the last in the fixture's own build: tests add others to the cache."""

    def environment(self) -> dict[str, str]:
        """The variables of a run."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        return kept | {"PYTHONPATH": path, "NO_COLOR": "1", "EDGEKIT_CACHE": str(self.cache), "HF_HUB_OFFLINE": "1"}

    def start(self, *arguments: str | Path, alone: bool = False) -> warm.Forked | subprocess.Popen[str]:
        """Run edgekit in the folder; alone: in a Python of its own, with its own hash seed (`tests.warm`)."""
        begin = warm.alone if alone else warm.start
        return begin(["-m", "edgekit", *arguments], self.folder, self.environment())

    def run(self, *arguments: str | Path, code: int = 0, alone: bool = False) -> subprocess.CompletedProcess[str]:
        """Run edgekit in the folder to its end and expect an exit code."""
        started = self.start(*arguments, alone=alone)
        out, err = started.communicate()
        assert started.returncode == code, f"{arguments}: exit {started.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, code, out, err)

    def build(self, *arguments: str, code: int = 0, alone: bool = False) -> Mapping[str, Any]:
        """`edgekit build --json`; returns its object."""
        return dict(json.loads(self.run("build", "--json", *arguments, code=code, alone=alone).stdout))

    def sha256(self, archive: str | Path) -> str:
        """The hash of a file in the folder."""
        return hashlib.sha256((self.folder / archive).read_bytes()).hexdigest()

    def with_cache(self, cache: Path) -> Project:
        """The same folder with another cache."""
        return Project(folder=self.folder, cache=cache)


def compared(told: str) -> list[dict[str, str]]:
    """What a build of several artifacts compares on the terminal, by figure; its table is turned where it is too wide."""
    lines = told.splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("target "))
    rows = [re.split(" {2,}", line) for line in itertools.takewhile(str.strip, lines[begin:])]
    head, *artifacts = rows if rows[0][1] == "format" else zip(*rows, strict=True)
    return [dict(zip(head, artifact, strict=True)) for artifact in artifacts]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project; its folder has a space in its name, as users' folders do."""
    folder = tmp_path_factory.mktemp("tiny") / "a project"
    make_project(folder)
    return Project(folder=folder, cache=folder / ".edgekit")


@pytest.fixture(scope="session")
def first_build(tiny: Project) -> subprocess.CompletedProcess[str]:
    """The tiny project built once for its first target."""
    return tiny.run("build", "--json", "--target", "first", alone=True)


@pytest.fixture(scope="session")
def built(first_build: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    """The entry of `bundles` of that build."""
    return dict(json.loads(first_build.stdout)["bundles"][0])


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An empty folder in which the demo was built."""
    folder = tmp_path_factory.mktemp("demo")
    project = Project(folder=folder, cache=folder / ".edgekit")
    project.run("build", "--target", "raspberrypi", alone=True)
    found = {step: list(project.cache.glob(f"{step}/*/{step}.json")) for step in STEPS[:-1]}
    assert {step: len(manifests) for step, manifests in found.items()} == dict.fromkeys(STEPS[:-1], 1)
    return replace(project, made={step: manifest.parent for step, (manifest,) in found.items()})
