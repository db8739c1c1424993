"""When a build contacts a device: never where nothing changed, always for a new measurement, and with --fresh."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.runtimes import machine
from edgekit.verify import hardware, kept, latency, measurements
from tests.conftest import Answer
from tests.devices.board import Board

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
address = "{address}"
"""
Build = Callable[..., Answer]


@pytest.fixture
def build(
    board: type[Board], project: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Builds the project for a board, whose address may be given, and forgets what the board was asked before."""
    monkeypatch.setitem(measurements.TIMING, "seconds", 0.1)
    monkeypatch.setattr(latency, "PROCESSES", 1)
    monkeypatch.setattr(hardware, "mismatches", lambda *_: [])
    # A board's own `python3` is the one that runs the tests.
    (project.parent / "bin").mkdir()
    (project.parent / "bin" / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def run(*arguments: str, address: str = "pi") -> None:
        arch = machine.describe()["arch"]
        Path("board.toml").write_text(TARGET.format(arch=arch, address=address), encoding="utf-8")
        board.calls.clear()
        answer = command("build", "-t", "board.toml", *arguments)
        assert answer.code in {0, 3}, answer.err

    return run


def test_a_build_contacts_the_device_only_to_measure(build: Callable[..., None], board: type[Board]) -> None:
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
    build(address="pj")
    assert board.calls["facts"] == 1
    assert board.calls["run"] > 0


def test_measurements_of_one_board_never_count_for_another(build: Callable[..., None], state: Path) -> None:
    """Both are this machine, so that nothing but the address tells them apart."""

    def counted() -> list[int]:
        return sorted(len(list(folder.glob("*.json"))) for folder in (state / "measured").iterdir())

    build()
    assert counted() == [1]
    build("--fresh")
    assert counted() == [2]
    build(address="pj")
    assert counted() == [1, 2]
    report = json.loads(Path("dist/recipe-board.report.json").read_text(encoding="utf-8"))
    assert report["measurement"] == 1
