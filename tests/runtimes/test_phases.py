"""Phases that are timed, and what stops a process meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.runtimes import conditions, neighbours, phases
from edgekit.runtimes.timing import Laps

TIMING: dict[str, Any] = {"warmup": 3, "repeats": 40, "least": 5, "seconds": 60.0}
# What a process does that is timed: it prints a line, then works for a while in calls, and says what it noticed.
WORKS = """
import json, sys, time
from edgekit.runtimes import phases
from edgekit.runtimes.timing import Laps
def call():
    end = time.process_time() + 0.002
    while time.process_time() < end: pass
around, laps = phases.around(), Laps()
print("begun", flush=True)
end = time.perf_counter() + float(sys.argv[1])
while time.perf_counter() < end: laps.time(call)
print(json.dumps(around(laps)["neighbours"]))
"""


def work(seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WORKS, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def seen(process: subprocess.Popen[str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(process.communicate(timeout=60)[0])
    return told


def test_steady_calls_end_for_their_number_or_their_time() -> None:
    steady = phases.steady(lambda: None, TIMING)
    assert (len(steady.warmup), len(steady.laps.ms), steady.ended) == (3, 40, "calls")
    assert steady.facts()["spell"] == {"calls": 40, "ended": "calls"}
    short = phases.steady(lambda: time.sleep(0.001), TIMING | {"seconds": 0.0})
    assert (len(short.laps.ms), short.ended) == (5, "time")


def test_waiting_that_all_calls_share_is_no_pause() -> None:
    """As for a GPU; one that waited longer than the others is."""
    laps = Laps()
    for seconds in (0.005, 0.005, 0.005, 0.2, 0.005):
        laps.time(lambda seconds=seconds: time.sleep(seconds))  # type: ignore[misc]
    assert laps.paused_s == pytest.approx(0.195, abs=0.1)
    assert Laps().paused_s == 0.0


def test_bursts_and_a_curve_of_calls_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "REST_S", 0.01)
    monkeypatch.setattr(phases, "_WINDOW_S", 0.05)
    degrees = iter(range(40, 99))
    monkeypatch.setattr(conditions, "temperature_c", lambda _root: float(next(degrees)))
    found = phases.sustained(lambda laps: laps.time(lambda: time.sleep(0.001)), 0.2)
    curve: Any = found["curve"]
    assert found["asked_s"] == 0.2
    assert float(str(found["seconds"])) >= 0.2
    assert len(found["bursts"]) == phases.BURSTS  # type: ignore[arg-type]
    assert 2 <= len(curve) <= 5
    assert [window["seconds"] for window in curve] == sorted(window["seconds"] for window in curve)
    assert all(0.9 < window["p50"] <= window["p95"] and window["calls"] for window in curve)
    assert curve[0]["temperature_c"] < curve[-1]["temperature_c"], "and it warms up"


def test_a_sweep_tries_each_setting_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[phases.Setting] = [{"threads": 1, "cpus": None}, {"threads": 2, "cpus": None}]
    monkeypatch.setattr(phases, "settings", lambda: asked)
    order: list[int] = []

    def timed(threads: int) -> list[float]:
        order.append(threads)
        return [4.0 / threads] * 3

    assert phases.tune(timed) == {"settings": asked, "ms": [[4.0] * phases.ROUNDS, [2.0] * phases.ROUNDS]}
    assert order == [1, 2] * phases.ROUNDS


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux lets a process choose its cores")
def test_a_cluster_is_used_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "clusters", lambda: [[0], [1]])
    before = os.sched_getaffinity(0)
    settings = phases.settings()
    assert [setting for setting in settings if setting["cpus"]] == [
        {"threads": 1, "cpus": [0]},
        {"threads": 1, "cpus": [1]},
    ]
    where: list[set[int]] = []
    monkeypatch.setattr(phases, "settings", lambda: [setting for setting in settings if setting["cpus"]][:1])

    def timed(_threads: int) -> list[float]:
        where.append(os.sched_getaffinity(0))
        return [1.0]

    phases.tune(timed)
    assert where == [{0}] * phases.ROUNDS
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a POSIX system stops processes")
def test_a_process_that_is_stopped_is_noticed() -> None:
    """For real: SIGSTOP for a third of a second, in the middle of its calls."""
    process = work(1.0)
    time.sleep(0.3)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.35)
    process.send_signal(signal.SIGCONT)
    told = seen(process)
    assert told["paused"] > 0.25
    assert any("a call stood still for 0." in reason for reason in neighbours.disturbances([told], 1))


def test_a_file_is_dropped_from_memory_and_still_whole(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"weights" * 1000)
    phases.forget(file)
    assert file.read_bytes() == b"weights" * 1000
