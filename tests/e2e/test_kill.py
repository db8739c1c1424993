"""A build that is killed at any moment and run again ends in the same bytes."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SLOWEST, STEPS, Project

# A kill that came too late is tried again, sooner.
TRIES = 6


def seconds_by_step(told: str) -> dict[str, float]:
    """How long each step of a build took, by what it told."""
    return {step: float(seconds) for step, seconds in re.findall(r"^  (\w+) +done, ([\d.]+) s$", told, re.MULTILINE)}


def kill_in(project: Project, step: str, delay: float, out: Path) -> bool:
    """Start a build and kill it `delay` seconds after a step began; False where the step was done before."""
    process = project.start("build", "--target", "first", "--out", out)
    assert process.stderr is not None
    timer: threading.Timer | None = None
    done = False
    for line in process.stderr:
        if not line.startswith(f"  {step} "):
            continue
        done = done or "done" in line
        if timer is None and not done:
            timer = threading.Timer(delay, process.kill)
            timer.start()
    process.wait()
    if timer is not None:
        timer.cancel()
    return process.returncode == -9 and not done


@pytest.mark.e2e
@pytest.mark.timeout(SLOWEST)
def test_killed_in_every_step_the_archive_is_the_same(
    tiny: Project, first_build: subprocess.CompletedProcess[str], built: Mapping[str, Any], tmp_path: Path
) -> None:
    rng = random.Random(20261121)
    took = seconds_by_step(first_build.stderr)
    assert tuple(took) == STEPS
    project, out = tiny.with_cache(tmp_path / "cache"), tmp_path / "dist"
    for step in STEPS:
        for attempt in range(TRIES):
            if kill_in(project, step, rng.uniform(0, took[step]) / 2**attempt, out):
                break
            shutil.rmtree(tmp_path / "cache" / step, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
        else:
            pytest.fail(f"no kill hit {step} in {TRIES} tries")
    project.run("build", "--target", "first", "--out", out)
    (archive,) = out.glob("*.tar.gz")
    assert project.sha256(archive) == project.sha256(built["archive"])
    left = [path for place in (tmp_path / "cache", out) for path in place.rglob("*.partial*")]
    assert left == []
