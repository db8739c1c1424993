"""Random recipes, targets, data files and checkpoints: an error is one line, and nothing of the user's is touched."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from random_projects import Project, projects, run, write

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


def tried(count: int, checkpoint: Path, *options: str) -> Counter[int | None]:
    """The exit codes of `edgekit build` on so many random projects; fails at the first that is not as it should be."""
    codes: Counter[int | None] = Counter()

    @settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET)
    @given(project=projects())
    def attempt(project: Project) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            write(project, checkpoint, Path(scratch))
            code, wrong = run(Path(scratch), "build", "-r", "recipe.toml", "-t", "./target.toml", *options)
            assert wrong == []
            codes[code] += 1

    attempt()
    return codes


def test_a_dry_run_ends_in_a_plan_or_in_one_error(checkpoint: Path) -> None:
    codes = tried(500, checkpoint, "--dry-run")
    assert codes.keys() == {0, 1}
    assert min(codes.values()) > 50, "one in ten is right, and one in ten is refused"


def test_a_build_ends_in_a_bundle_or_in_one_error(checkpoint: Path) -> None:
    assert tried(8, checkpoint).keys() <= {0, 1, 3}
