"""Phases in figures: what a probe said of sustained calls and of settings."""

from __future__ import annotations

import pytest

from edgekit.probes.lines import Lines
from edgekit.times import Tried
from edgekit.verify.phases import best, read_sustained


def window(seconds: float, p50: float, slowed: float | None, heat: float | None) -> dict[str, float | None]:
    known = {"seconds": seconds, "calls": 9, "p50": p50, "p95": 2 * p50}
    return {**known, "temperature_c": heat, "clock_mhz": None, "slowed": slowed}


def lines(curve: list[dict[str, float | None]]) -> Lines:
    return Lines(
        events={
            "load": {"ms": 40.0, "runtime": "onnxruntime", "version": "1", "available": []},
            "first": {"ms": 5.0, "alive_ms": None},
            "sustained": {"asked_s": 8.0, "seconds": 8.1, "bursts": [[1.0, 1.2], [1.0, 0.8]], "curve": curve},
        }
    )


def test_throttling_is_the_end_of_the_curve_against_a_burst() -> None:
    curve = [window(place, 1.0 if place < 6 else 2.0, 1 if place == 6 else 0, 50.0 + place) for place in range(1, 9)]
    found = read_sustained(lines(curve))
    assert (found.burst_p50, found.last_p50, found.slowdown) == (1.0, 2.0, 2.0)
    assert (found.throttled, found.cold, found.seconds) == (True, 45.0, 8.1)
    assert [moment.temperature_c for moment in found.curve][-1] == 58.0


@pytest.mark.parametrize(("slowed", "throttled"), [(None, None), (0, False)])
def test_what_a_device_does_not_tell_is_none(slowed: float | None, throttled: bool | None) -> None:
    found = read_sustained(lines([window(1.0, 1.0, slowed, None)]))
    assert found.throttled is throttled
    assert found.curve[0].temperature_c is None


def test_the_fewest_threads_that_are_nearly_as_fast() -> None:
    tried = [Tried(threads=threads, cpus=None, p50=p50) for threads, p50 in ((1, 10.0), (2, 5.2), (4, 5.0), (8, 6.0))]
    assert best(tried).threads == 2
    assert best([*tried, Tried(threads=2, cpus=(4, 5), p50=5.1)]).cpus == (4, 5)
    assert best(tried[:1]).threads == 1
