"""Random recipes, targets, data files and checkpoints: an error is one line, and nothing of the user's is touched."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from random_projects import Project, attempt, half_written, make_checkpoints, projects

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def tried(count: int, checkpoints: dict[str, Path], *options: str) -> Counter[int | None]:
    """The exit codes of `edgekit build` on so many random projects; fails at the first that is not as it should be."""
    codes: Counter[int | None] = Counter()

    @settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET)
    @given(project=projects())
    def try_one(project: Project) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            code, wrong = attempt(project, checkpoints, Path(scratch), *options)
            assert wrong == []
            codes[code] += 1

    try_one()
    return codes


def test_a_dry_run_ends_in_a_plan_or_in_one_error(checkpoints: dict[str, Path]) -> None:
    codes = tried(200, checkpoints, "--dry-run")
    assert codes.keys() == {0, 1, 2}
    assert min(codes[0], codes[1]) > 20, "one in ten is right, and one in ten is refused"


@pytest.mark.usefixtures("record_forked")
def test_a_build_ends_in_a_bundle_or_in_one_error(checkpoints: dict[str, Path]) -> None:
    assert tried(8, checkpoints).keys() <= {0, 1, 2, 3}


def test_what_is_half_written_is_found(tmp_path: Path) -> None:
    assert half_written(tmp_path, dry=True) == []
    for path in (".edgekit/export/.0a.partial", ".edgekit/record/0b", "dist/x"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "dist" / "x" / "bundle.json").write_text("{}")
    found = half_written(tmp_path, dry=False)
    assert [line.split(":")[0] for line in found] == ["half written"] * 3
    assert len(half_written(tmp_path, dry=True)) == 5
