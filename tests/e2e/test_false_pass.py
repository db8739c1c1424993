"""A sample of the planted routes to a pass (`benchmarks/false_pass.py` has them all), on the products of one shared build."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from false_pass import ROUTES, Bench, Run
from tiny_project import TARGET

from tests import warm
from tests.e2e.conftest import SLOWEST, Project

pytestmark = pytest.mark.timeout(SLOWEST)


class WarmBench(Bench):
    """A bench whose runs begin with the libraries imported."""

    def run(self, *arguments: str | Path, **variables: str) -> Run:
        """Run edgekit in the folder."""
        started = warm.start(["-m", "edgekit", *arguments], self.folder, self.environment(**variables))
        out, err = started.communicate()
        return Run(code=started.returncode or 0, out=out, err=err)


def one(tiny: Project, step: str, fits: Callable[[Mapping[str, Any]], bool]) -> tuple[Path, Mapping[str, Any]]:
    """The first of a step's products in the cache that fits, and its manifest: other tests add more."""
    made = {path.parent: json.loads(path.read_text()) for path in sorted(tiny.cache.glob(f"{step}/*/{step}.json"))}
    return next((place, manifest) for place, manifest in made.items() if fits(manifest))


@pytest.fixture(scope="module")
def bench(tiny: Project, built: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The tiny project with its own products as the stage commands would leave them, and prompts that were looked at."""
    folder = tmp_path_factory.mktemp("false-pass") / "project"
    shutil.copytree(tiny.folder, folder, ignore=shutil.ignore_patterns(".edgekit", "dist", "other"))
    (folder / "targets" / "first.toml").write_text(TARGET.format(scheme="int8-dynamic"))  # quickly exported
    sha256 = json.loads((tiny.folder / built["report"]).read_text())["artifact"]["sha256"]
    found = {"artifact": one(tiny, "export", lambda made: made["facts"]["sha256"] == sha256)}
    student, calibration = (found["artifact"][1]["inputs"][key] for key in ("student", "calibration"))
    found["student"] = one(tiny, "distill", lambda made: made["digest"] == student)
    found["calibration"] = one(tiny, "calibrate", lambda made: made["digest"] == calibration)
    # Other tests record few prompts, and other students.
    found["reference"] = one(
        tiny, "record", lambda made: made["facts"]["rows"]["verify"] == 400 and made["inputs"]["student"] == student
    )
    teacher = found["reference"][1]["inputs"]["teacher"]
    found["teacher"] = one(tiny, "finetune", lambda made: made["digest"] == teacher)
    for name, (place, _) in found.items():
        shutil.copytree(place, folder / "work" / name)
    made_here = WarmBench(folder=folder, state=tmp_path_factory.mktemp("state"))
    made_here.must("verify", "work/artifact", "work/reference", "-t", "first", "--out", "work/report")
    assert made_here.report("work/report")["verdict"] == "pass"
    return made_here


SAMPLE = (
    "a reference of another teacher",
    "a report made on other prompts",
    "calibrated on the verify prompts",
    "the same file with another max_length",
)


@pytest.mark.parametrize("route", SAMPLE)
def test_a_planted_route_does_not_pass(bench: Bench, route: str) -> None:
    told = ROUTES[route](bench)
    assert told.held, told.said


def test_what_is_honest_is_packaged(bench: Bench) -> None:
    bench.must("package", "work/artifact", "work/report", "-t", "first", "--out", "work/dist")
    assert list(Path(bench.folder / "work" / "dist").glob("*.tar.gz"))
