"""When a build contacts a device: never where nothing changed, always for a new measurement, and with --fresh."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.runtimes import machine
from edgekit.verify import hardware, latency, measurements
from tests.conftest import Answer
from tests.devices.board import Board, drop_in
from tests.e2e.conftest import SLOWEST

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]
TARGET = """\
title = "A board"
[hardware]
arch = "{arch}"
cpu = "any"
cores = 2
features = []
memory_mb = 4096
sources = ["made up for a test"]
[export.text-classification]
format = "onnx"
scheme = "fp32"
[runtime.onnxruntime]
threads = 1
[budget]
p95_ms = 1000
[device]
kind = "board"
address = "pi"
"""


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> type[Board]:
    return drop_in(monkeypatch)


@pytest.fixture
def build(
    board: type[Board], project: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Builds the project for a board, which forgets what it was asked before."""
    monkeypatch.setitem(measurements.TIMING, "seconds", 0.1)
    monkeypatch.setattr(latency, "PROCESSES", 1)
    monkeypatch.setattr(hardware, "mismatches", lambda *_, **__: [])
    # A board's own `python3` is the one that runs the tests.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    (project.parent / "board.toml").write_text(TARGET.format(arch=machine.describe()["arch"]), encoding="utf-8")

    def run(*arguments: str) -> None:
        board.calls.clear()
        answer = command("build", "-t", "board.toml", *arguments)
        assert answer.code in {0, 3}, answer.err

    return run


def test_a_build_contacts_a_device_only_to_measure(build: Callable[..., None], board: type[Board], state: Path) -> None:
    build()
    assert board.calls["facts"] == 1
    assert min(board.calls[name] for name in ("push", "run", "fetch")) > 0
    build()
    assert board.calls == {}, "nothing changed"
    board.says = {"system": "a newer kernel"}
    build()
    assert board.calls == {}, "what changed there is not seen before it is asked"
    build("--fresh")
    assert board.calls["facts"] == 1
    assert board.calls["run"] > 0
    build()
    assert board.calls == {}, "the verdict of the newer kernel is there"
    (measured,) = (state / "measured").iterdir()
    assert len(list(measured.glob("*.json"))) == 2
