"""What the machine did meanwhile, read from Linux's counters."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.runtimes import neighbours

STAT = "cpu  {user} 0 {system} 900 0 0 0 {steal} 0 0\ncpu0 1 0 0 0 0 0 0 0 0 0\ncpu1 1 0 0 0 0 0 0 0 0 0\n"


def test_counters_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, group, heat = tmp_path / "stat", tmp_path / "group" / "cpu.stat", tmp_path / "cpu0" / "thermal_throttle"
    group.parent.mkdir()
    task = tmp_path / "tasks" / "1"
    task.mkdir(parents=True)
    heat.mkdir(parents=True)
    stat.write_text(STAT.format(user=100, system=100, steal=0))
    (task / "schedstat").write_text("5000000000 0 1")
    group.write_text("usage_usec 1\nthrottled_usec 0\n")
    (heat / "core_throttle_count").write_text("3\n")
    monkeypatch.setattr(neighbours, "_STAT", str(stat))
    monkeypatch.setattr(neighbours, "_TASKS", str(tmp_path / "tasks"))
    monkeypatch.setattr(neighbours, "own_groups", lambda: [group.parent])
    monkeypatch.setattr(neighbours, "_HEAT", (str(tmp_path), "cpu*/thermal_throttle/*_throttle_count"))
    monkeypatch.setattr(neighbours, "_PI", str(tmp_path / "get_throttled"))
    moments, own = iter([(10.0, 70.0), (12.0, 75.5)]), iter([1.0, 3.0])
    monkeypatch.setattr(neighbours, "_moment", lambda: next(moments))
    monkeypatch.setattr(neighbours, "_slept", lambda: 0.0)
    monkeypatch.setattr(neighbours.time, "process_time", lambda: next(own))
    tell = neighbours.watch()
    # In ticks of 10 ms: 3 s of all work, of which this process did 2, and 0.42 s were stolen; it waited 2 s beside them.
    stat.write_text(STAT.format(user=350, system=150, steal=42))
    (task / "schedstat").write_text("7000000000 2000000000 1")
    group.write_text("usage_usec 1\nthrottled_usec 500000\n")
    (heat / "core_throttle_count").write_text("5\n")
    told = tell()
    assert told["cpus"] == 2
    assert told["seconds"] == 2.0
    assert told["others"] == pytest.approx((3.0 - 2.0 - 0.02) / 2.0)
    assert told["steal"] == pytest.approx((0.42 - 0.02) / 2.0 / 2)
    assert told["waited"] == 0.5
    assert told["throttled"] == 0.25
    assert told["slowed"] == 2
    assert told["stepped"] == 3.5


def test_a_core_that_is_lost_between_two_readings_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine stops the process for 0.1 s between the two clocks, four times of five; a clock that is set is seen."""
    real, turns, step = time.time, itertools.count(), 0.0

    def read() -> float:
        if next(turns) % 5:
            time.sleep(0.1)
        return real() + step

    monkeypatch.setattr(neighbours.time, "time", read)
    tell = neighbours.watch()
    assert abs(tell()["stepped"] or 0.0) < 0.02
    step = -7.0
    assert tell()["stepped"] == pytest.approx(-7.0, abs=0.02)


def test_what_is_not_told_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_STAT", "_TASKS", "_PI"):
        monkeypatch.setattr(neighbours, name, str(tmp_path / "absent"))
    monkeypatch.setattr(neighbours, "own_groups", list)
    told = neighbours.watch()()
    assert told["others"] is told["steal"] is told["waited"] is told["throttled"] is None
    # A sandbox that has the file, with nothing in it.
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(neighbours, "_STAT", str(tmp_path / "stat"))
    assert neighbours.watch()()["others"] is None


def test_a_lowered_clock_of_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = tmp_path / "get_throttled"
    monkeypatch.setattr(neighbours, "_PI", str(word))
    monkeypatch.setattr(neighbours, "_HEAT", (str(tmp_path), "none"))
    for told, slowed in (("50000", 0), ("50005", 1), ("0x4", 1), ("", 0), ("odd", 0)):
        word.write_text(told)
        assert neighbours.watch()()["slowed"] == slowed, told


@pytest.mark.skipif(sys.platform != "linux", reason="counters of Linux")
def test_a_busy_neighbour_is_seen() -> None:
    """A real program beside this one, for half a second of work."""
    tell = neighbours.watch()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
        told = tell()
    finally:
        busy.kill()
        busy.wait()
    assert (told["others"] or 0.0) > 0.2 or (told["waited"] or 0.0) > 0.1


QUIET = {
    "seconds": 2.0,
    "cpus": 4,
    "others": 0.1,
    "steal": 0.0,
    "waited": 0.01,
    "throttled": 0.0,
    "slowed": 0,
    "load": 9.0,
}


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({}, None),
        ({"waited": 0.3}, "its threads waited 30% of their time for a core"),
        ({"others": 2.4}, "other programs took 2.4 of 4 cores"),
        ({"steal": 0.2}, "the hypervisor gave 20% of the cores' time to others"),
        ({"throttled": 0.5}, "its container was denied a core 50% of the time"),
        ({"slowed": 1}, "heat or the power supply lowered its clock"),
        ({"waited": None, "others": None}, "load 9.0 on 4 cores"),
        ({"waited": None, "others": None, "load": 2.6}, None),
        ({"paused": 0.31}, "a call stood still for 0.31 s: its process was stopped, or had no core"),
        ({"paused": 0.012}, None),
        ({"slept": 600.0}, "the machine was suspended meanwhile"),
    ],
)
def test_what_disturbs_a_machine_is_told(told: dict[str, Any], says: str | None) -> None:
    assert neighbours.disturbances([QUIET | told, QUIET | told], 2) == ([] if says is None else [says])
    # One process of ten met something short.
    if says is not None and not {"lowered", "load", "still", "suspended"} & {*says.split()}:
        assert neighbours.disturbances([QUIET | told | {"seconds": 0.1}, *[QUIET] * 9], 2) == []


def test_a_clock_that_was_set_is_told() -> None:
    """By how much, where that is more than a clock that is kept right is turned."""
    assert neighbours.stepped([QUIET, QUIET | {"stepped": -3.0}]) == -3.0
    assert neighbours.stepped([QUIET | {"stepped": 0.04}, {}]) is None
    assert neighbours.stepped([QUIET | {"stepped": 0.6, "seconds": 600.0}]) is None, "turned while ten minutes passed"


def test_a_step_of_the_clock_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    tell = neighbours.watch()
    monkeypatch.setattr(neighbours.time, "time", lambda: real() + 3600.0)
    told = tell()
    assert told["stepped"] == pytest.approx(3600.0, abs=5.0)
    assert neighbours.stepped([told]) == told["stepped"]
