"""A build that is killed at any moment and run again ends in the same bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Project

# One kill in each step that takes time; the delay is drawn from a seed.
KILLED = ("finetune", "distill", "calibrate", "export", "verify")


def kill_in(project: Project, step: str, delay: float, out: Path) -> bool:
    """Start a build and kill it `delay` seconds after a step began; False where it ended before."""
    process = subprocess.Popen(
        project.command("build", "--target", "first", "--out", out),
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    timer: threading.Timer | None = None
    for line in process.stderr:
        if line.startswith(f"  {step} ") and "done" not in line and timer is None:
            timer = threading.Timer(delay, process.kill)
            timer.start()
    process.wait()
    if timer is not None:
        timer.cancel()
    return process.returncode == -9


@pytest.mark.e2e
def test_killed_in_every_step_the_archive_is_the_same(tiny: Project, built: Mapping[str, Any], tmp_path: Path) -> None:
    rng = random.Random(20261121)
    project = tiny.with_cache(tmp_path / "cache")
    out = tmp_path / "dist"
    killed = [step for step in KILLED if kill_in(project, step, rng.uniform(0.05, 1.5), out)]
    assert len(killed) >= 4, f"only killed in {killed}: the steps are too quick for these delays"
    project.run("build", "--target", "first", "--out", out)
    assert project.sha256(out / Path(built["archive"]).name) == project.sha256(built["archive"])
    left = [path for place in (tmp_path / "cache", out) for path in place.rglob("*.partial*")]
    assert left == []
    shutil.rmtree(tmp_path / "cache")
