"""The history of measurements: nothing is lost, lines are told apart, and `edgekit history` shows trend and regressions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgekit import history
from edgekit.errors import EdgekitError
from edgekit.evidence import RuntimeVersion, Shape
from edgekit.history import Compared, Entry
from tests.cli.test_json import read
from tests.conftest import ROOT, Answer

Command = Callable[..., Answer]
MACHINE = {"arch": "aarch64", "cpu": "Cortex-A76", "part": "0x41/0xd0b", "cores": 4, "memory_mb": 8192}


def entry(ms: float = 10.0, sha256: str = "a" * 64, at: str = "2026-01-01T10:00:00.000+00:00", **changes: Any) -> Entry:
    """A measurement of eight processes that differ by 1 %."""
    spread = [0.99, 1.01, 1.0, 1.005, 0.995, 1.002, 0.998, 1.0]
    found = Entry(
        at=at,
        recipe="assistant",
        target="board",
        format="onnx",
        scheme="int8-static",
        sha256=sha256,
        bytes=24_000_000,
        runtime=RuntimeVersion(name="onnxruntime", version="1.30"),
        tools={"edgekit": "1.0", "onnxruntime": "1.30"},
        device=MACHINE,
        identity="ssh pi",
        shape=Shape(batch=1, sequence=64, threads=4),
        p50_ms=tuple(ms * factor for factor in spread),
        p95_ms=tuple(1.2 * ms * factor for factor in spread),
        memory_mb=90.0,
        accuracy=0.93,
        prompts="p" * 64,
        comparisons=(right(0.93),),
        verdict="pass",
        disturbed=(),
    )
    return replace(found, **changes)


def right(score: float, *, flips: int = 10, prompts: int = 1000, reference: str = "student") -> Compared:
    """A comparison of right answers with a float student that has 0.935 of them."""
    return Compared(
        reference=reference, metric="accuracy", score=score, reference_score=0.935, lo=None, bound=None, prompts=prompts, flips=flips
    )  # fmt: skip


def test_what_is_written_is_read() -> None:
    first, second = entry(), entry(11.0, "b" * 64, "2026-01-02T10:00:00.000+00:00")
    path = history.append(first)
    assert history.append(second) == path
    assert history.append(replace(first, target="laptop")) != path
    assert history.read(path) == [first, second]
    assert len(history.read(history.folder())) == 3


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"sha256": "c" * 64}, True),
        ({"tools": {}}, True),
        ({"identity": "ssh other"}, True),
        ({"device": {**MACHINE, "cores": 2}}, False),
        ({"scheme": "fp32"}, False),
        ({"recipe": "other"}, False),
        ({"runtime": RuntimeVersion(name="onnxruntime", version="1.31")}, True),
        ({"runtime": RuntimeVersion(name="openvino", version="1.30")}, False),
        ({"shape": Shape(batch=1, sequence=32, threads=4)}, False),
    ],
)
def test_a_line_is_of_what_can_be_compared(change: dict[str, Any], same: bool) -> None:
    assert (replace(entry(), **change).line == entry().line) is same


def test_a_torn_line_costs_nothing_but_itself(caplog: pytest.LogCaptureFixture) -> None:
    path = history.append(entry())
    with path.open("a") as stream:
        stream.write('{"at": "2026-01-0')
    history.append(entry(12.0))
    assert [one.p50_ms[2] for one in history.read(path)] == [10.0, 12.0]
    assert "line 2 is left out" in caplog.text
    with pytest.raises(EdgekitError, match=r"no \.jsonl file in it"):
        history.read(path.parent.parent)


WRITER = """
import os, sys
from tests.test_history import entry
from edgekit import history
os.environ["EDGEKIT_STATE"] = sys.argv[2]
for number in range(10 ** 6):
    history.append(entry(sha256=f"{sys.argv[1]}{number:063d}"))
    sys.stdout.write(f"{number}\\n"); sys.stdout.flush()
"""


def test_nothing_is_lost_to_a_kill_or_another_writer(tmp_path: Path) -> None:
    """Two writers at once, each killed at any moment: what each said is written is there, whole and in order."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, name, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for name in "xy"
    ]
    for child in writers:
        assert child.stdout is not None
        child.stdout.readline()
    time.sleep(0.3)
    said = {}
    for name, child in zip("xy", writers, strict=True):
        child.send_signal(signal.SIGKILL)
        assert child.stdout is not None
        said[name] = 1 + len(child.stdout.read().split())
        child.wait()
    (path,) = (tmp_path / "history").glob("*.jsonl")
    for name, count in said.items():
        found = [one.sha256 for one in history.read(path) if one.sha256[0] == name]
        assert found[:count] == [f"{name}{number:063d}" for number in range(count)]
        assert len(found) <= count + 1, "the one that was written and not told"
    assert len(path.read_text().splitlines()) == len(history.read(path))


def test_the_command_shows_trend_and_regressions(command: Command, tmp_path: Path) -> None:
    assert "nothing measured yet" in command("history").out
    newer = {"edgekit": "1.1", "onnxruntime": "1.31"}
    history.append(entry(10.0))
    history.append(entry(9.0, "b" * 64, "2026-02-01T10:00:00.000+00:00"))
    history.append(entry(9.9, "c" * 64, "2026-03-01T10:00:00.000+00:00", tools=newer))
    history.append(entry(20.0, target="laptop", device={**MACHINE, "cpu": "<N100>"}))
    answer = command("history", "--target", "board", "--svg", str(tmp_path / "trend.svg"))
    assert answer.code == 0, answer.err
    assert "laptop" not in answer.out
    assert [line.split()[-1] for line in answer.out.splitlines()[2:5]] == ["1.30", "0.90x", "worse"]
    told = " ".join(answer.out.split())
    assert "since then changed: edgekit 1.0 to 1.1, onnxruntime 1.30 to 1.31" in told
    assert "p50_ms: 9.9 ms, was 9: 1.100 x" in told
    found = read(command("history", "--json"))
    verdicts = [[one["against"] and one["against"]["verdict"] for one in line] for line in found["lines"]]
    assert sorted(verdicts, key=len) == [[None], [None, "pass", "fail"]]
    picture = ElementTree.parse(tmp_path / "trend.svg").getroot()
    circles = picture.findall(".//{http://www.w3.org/2000/svg}circle")
    assert [circle.get("class") for circle in circles] == ["dot", "dot", "worse"]
    command("history", str(history.folder()), "--svg", str(tmp_path / "all.svg"))
    assert "&lt;N100&gt;" in (tmp_path / "all.svg").read_text()


def test_what_may_not_be_compared_is_shown_and_does_not_count(command: Command, tmp_path: Path) -> None:
    """Neither as the slower one, nor as the one that the next is held against, nor in the trend."""
    busy = {"incomparable": ("other programs worked on 1.0 cores beside it",)}
    history.append(entry(10.0, incomparable=()))
    history.append(entry(20.0, "b" * 64, "2026-02-01T10:00:00.000+00:00", **busy))
    history.append(entry(9.9, "c" * 64, "2026-03-01T10:00:00.000+00:00", incomparable=()))
    answer = command("history", "--svg", str(tmp_path / "trend.svg"))
    rows = answer.out.splitlines()[3:5]
    assert rows[0].endswith("not comparable"), answer.out
    assert rows[1].endswith("0.99x"), answer.out
    told = " ".join(answer.out.split())
    assert "bbbbbbbb: not comparable: other programs worked on 1.0 cores beside it" in told
    picture = ElementTree.parse(tmp_path / "trend.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert [circle.get("class") for circle in picture.iter(f"{space}circle")] == ["dot", "apart", "dot"]
    (trend,) = picture.iter(f"{space}polyline")
    assert len(trend.get("points", "").split()) == 2
    (line,) = read(command("history", "--json"))["lines"]
    assert [one["incomparable"] for one in line] == [[], [*busy["incomparable"]], []]


def test_a_file_of_another_program_is_left_out(command: Command, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"at": 3}) + "\nno json\n\n")
    answer = command("history", str(tmp_path / "x.jsonl"))
    assert answer.code == 0
    assert "nothing measured yet" in answer.out
