"""A build for a Raspberry Pi, judged by an emulated one behind SSH: accuracy from ARM, speed not proven."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer
from tests.devices.sshd import Reachable
from tests.e2e.conftest import SLOWEST

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]


def test_from_a_bare_board_to_a_verdict(
    arm_board: Reachable, project: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of README: without an engine there it says what to run; then it judges; then nothing is left there."""
    monkeypatch.setenv("PATH", f"{arm_board.commands}{os.pathsep}{os.environ['PATH']}")
    build = ("build", "--recipe", project, "--target", "raspberrypi", "--device", arm_board.url, "--json")
    bare = command(*build)
    assert bare.code == 4, bare.err
    assert f"run: edgekit devices setup {arm_board.url}" in bare.out
    assert command("devices", "setup", arm_board.url).code == 0

    done = command(*build)
    assert done.code == 0, done.err
    report = json.loads(done.out)["bundles"][0]["report"]
    said = json.loads(Path(report).read_text(encoding="utf-8")) if isinstance(report, str) else report
    assert (said["device"]["arch"], said["device"]["cpu"]) == ("aarch64", "Cortex-A76")
    verdicts = {check["name"]: check for check in said["checks"]}
    for name in ("p95_ms", "memory_mb"):
        assert verdicts[name]["verdict"] == "not proven"
        assert "emulated" in json.dumps(verdicts[name])
    assert said["emulated"] is True
    accuracy = [entry for entry in said["comparisons"] if entry["verdict"] is not None]
    assert accuracy
    cleaned = command("devices", "clean", arm_board.url, "--json")
    assert json.loads(cleaned.out)["bytes"] > 10**8
