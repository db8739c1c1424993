"""Two cuts at random moments of a build that measures on a device: no wrong verdict, no lost result, no process left, and it goes on.

`benchmarks/soak.py --cuts 100` is the whole of it.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from device_cuts import Bench, cut, finish
from tiny_project import TARGET

from tests import warm
from tests.devices.sshd import Reachable
from tests.e2e.conftest import SLOWEST, Project


@pytest.mark.e2e
@pytest.mark.timeout(SLOWEST)
def test_after_random_cuts_the_verdict_is_the_same(stand_in: Reachable, project: Path, tmp_path: Path) -> None:
    """edgekit itself while the probe runs, and the other side while it pushes; the build behind the last goes on from there."""
    assert stand_in.home is not None
    device = "".join(f"{key} = {json.dumps(value)}\n" for key, value in stand_in.table().items())
    (tmp_path / "board.toml").write_text(TARGET.format(scheme="fp32") + "[device]\n" + device, encoding="utf-8")
    environment = Project(folder=tmp_path, cache=tmp_path / "cache").environment()
    environment |= {
        "PATH": f"{stand_in.commands}{os.pathsep}{os.environ['PATH']}",
        "EDGEKIT_STATE": str(tmp_path / "state"),
    }
    command = ["-m", "edgekit", "build", "--target", "board.toml", "--json"]
    bench = Bench(
        host=stand_in,
        cache=tmp_path / "cache",
        out=tmp_path / "dist",
        state=tmp_path / "state",
        start=lambda: warm.start(command, tmp_path, environment),
    )
    code, expected = finish(bench)
    assert (code, bench.results()) == (0, 1)
    assert json.loads(expected)[0]["accuracy"], expected
    chance = random.Random(20261128)
    rows = [cut(bench, victim, moment, chance, expected) for victim, moment in (("client", "run"), ("server", "push"))]
    assert [row for row in rows if row["wrong"] or row["left"]] == []
    assert any(row["hit"] for row in rows), rows
    done = bench.results()
    bench.forget(device=False)
    assert finish(bench) == (0, expected)
    assert bench.results() == done + 1
