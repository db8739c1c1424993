"""Planted disturbances: each is flagged with its reason, and a quiet record is not. The hundred are in benchmarks/."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.verify.comparable import Asked, count_answers, cut, judge
from edgekit.verify.latency import PROCESSES
from edgekit.verify.measurements import Timed
from tests.runtimes.test_neighbours import QUIET

SHA = "a" * 64
STATE: dict[str, Any] = {
    "temperature_c": 50.0,
    "clock_mhz": 2400.0,
    "governor": "ondemand",
    "driver": "cpufreq-dt",
    "power": None,
    "limit_cores": None,
}
ASKED = Asked(sha256=SHA, threads=2, planned=PROCESSES)


def process(seed: int = 0, **seen: Any) -> Timed:
    """A process on a quiet machine, which saw something else where `seen` says so."""
    times = tuple(np.exp(np.random.default_rng(seed).normal(2.0, 0.03, 200)).tolist())
    return Timed(
        times=times,
        neighbours=QUIET | {"paused": 0.001, "stepped": 0.0, "slept": 0.0} | seen,
        warmup=times[:10],
        spell={"calls": 200, "ended": "calls"},
        before=STATE | {"temperature_c": 45.0},
        after=STATE,
        sha256=SHA,
    )


def record(**seen: Any) -> list[Timed]:
    """All processes of a measurement, of which the third saw something."""
    return [process(index, **(seen if index == 2 else {})) for index in range(PROCESSES)]


def all_saw(**seen: Any) -> list[Timed]:
    return [process(index, **seen) for index in range(PROCESSES)]


def with_state(**changes: Any) -> list[Timed]:
    """As if the machine had changed while the last process ran."""
    *first, last = record()
    return [*first, replace(last, after=STATE | changes)]


def test_a_quiet_record_is_comparable_and_says_what_it_is() -> None:
    found = judge(record(), ASKED, count_answers(np.array([0, 3, 11]), 8))
    assert (found.comparable, found.reasons) == ("yes", ())
    assert found.start == "warm, after 11 calls"
    assert (found.sha256, found.processes) == (SHA, PROCESSES)
    assert found.before is not None
    assert found.after is not None
    assert (found.before.temperature_c, found.after.temperature_c, found.after.governor) == (45.0, 50.0, "ondemand")
    assert 1.0 < found.spread < 1.05
    assert found.answers is not None
    assert (found.answers.tokens, found.answers.stopped, found.answers.cut, found.answers.seed) == (11, 1, 1, None)


@pytest.mark.parametrize(
    ("processes", "reason"),
    [
        (all_saw(others=1.0), "other programs worked on 1.0 cores beside it"),
        (all_saw(others=2.4), "other programs took 2.4 of 4 cores"),
        (all_saw(throttled=0.5), "its container was denied a core 50% of the time"),
        (with_state(limit_cores=1.0), "the cores that its control group may take changed: 1 and all"),
        ([replace(it, before=STATE | {"limit_cores": 1.0}, after=STATE | {"limit_cores": 1.0}) for it in record()],
         "its control group may take 1 cores, and it has 2 threads"),
        ([replace(it, sha256="b" * 64) for it in record()], "another file ran than the one that was built: sha256 bbbbbbbbbbbb"),
        ([*record()[:-1], replace(record()[-1], sha256="b" * 64)], "another file ran than the one that was built"),
        ([replace(it, sha256=None) for it in record()], "the device does not tell which bytes ran"),
        (record()[:4], "4 of 8 processes: it was stopped before its end"),
        ([*record()[:-1], replace(record()[-1], times=record()[-1].times[:100])], "100 of 200 calls are there: the record was cut"),
        (record()[:1], "one process: nobody knows how far others would lie apart"),
        (record(paused=0.3), "a call stood still for 0.30 s: its process was stopped, or had no core"),
        (record(stepped=-3600.0), "the clock of the day was set by -3.6e+03 s while it was timed"),
        (record(slept=60.0), "the machine was suspended meanwhile"),
        (record(slowed=1), "heat or the power supply lowered its clock"),
        (with_state(governor="powersave"), "the governor changed: ondemand and powersave"),
        ([replace(it, before=STATE | {"governor": "powersave"}, after=STATE | {"governor": "powersave"}) for it in record()],
         "the governor powersave keeps the clock low"),
        (with_state(power="battery"), "the power source changed: None and battery"),
        ([replace(it, before=STATE | {"power": "battery"}, after=STATE | {"power": "battery"}) for it in record()],
         "it ran on a battery"),
        ([*record()[:-1], replace(record()[-1], times=tuple(2 * time for time in record()[-1].times))],
         "the medians of its processes differ by a factor of 2."),
    ],
)  # fmt: skip
def test_a_disturbance_is_flagged_with_its_reason(processes: list[Timed], reason: str) -> None:
    found = judge(processes, ASKED)
    assert found.comparable == "no"
    assert any(it.startswith(reason) for it in found.reasons), found.reasons


def test_what_a_driver_means_by_powersave() -> None:
    state = STATE | {"governor": "powersave", "driver": "intel_pstate"}
    assert judge([replace(it, before=state, after=state) for it in record()], ASKED).comparable == "yes"


def test_the_machine_of_another_target_is_a_reason() -> None:
    found = judge(record(), replace(ASKED, foreign=["arch aarch64, not x86_64"]))
    assert found.reasons == ("not the target's machine: arch aarch64, not x86_64",)


def test_a_measurement_that_ended_at_a_look_is_whole() -> None:
    assert cut([process(index) for index in range(12)], 16) == []
    assert cut([process(index) for index in range(11)], 16) == ["11 of 16 processes: it was stopped before its end"]


def test_what_a_probe_does_not_tell_is_no_reason() -> None:
    """A probe of another kind says times and which bytes ran."""
    bare = [Timed(times=it.times, sha256=SHA) for it in record()]
    found = judge(bare, ASKED)
    assert (found.comparable, found.before, found.start) == ("yes", None, "warm")
    assert set(found.load.values()) == {None}
