"""Measurements: what a probe said, as a dataclass that reads and writes its JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.evidence import Rates
from edgekit.probes import Lines
from edgekit.probes.lines import Load
from edgekit.runtimes.machine import describe
from edgekit.verify.measurements import FILE, Speed, Timed, read_measurements, write
from tests.verify.test_kept import measured

RATES = Rates(decode=1.0, prefill=2.0)
SPEED = Speed(ttft_ms={"16": 3}, ttft_cold_ms={}, tokens_per_second=RATES, threads={"decode": {"1": 2.0}}, memory_mb={})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    whole = replace(
        measured(),
        device=describe(),
        work={"provider": "CPU", "matmul_ops": {"CPU": 5}, "devices": ["a", "b"], "flash_attention": True},
        available=("CPU",),
        earlier=(Timed(times=(1.5,), first=(2.0,), neighbours={"load": None, "seconds": 1}),),
        real_times=(1.0,),
        real_lengths=(8,),
        generation=SPEED,
    )
    write(tmp_path, whole, {})
    assert read_measurements(tmp_path) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"work": {"provider": "CPU", "where": "CPU"}}, r"measurements\.json: work\.where: unknown key"),
        ({"work": {"devices": ["a", 1]}}, r"measurements\.json: work\.devices\.1: expected a text, got 1"),
        ({"work": []}, r"measurements\.json: work: expected a table"),
        ({"device": {}}, r"measurements\.json: device\.\w+: missing key"),
        ({"load_ms": None}, r"measurements\.json: load_ms: expected a number"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write(tmp_path, replace(measured(), device=describe(), real_times=(), real_lengths=(), available=()), {})
    table = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    (tmp_path / FILE).write_text(json.dumps(table | changes), encoding="utf-8")
    with pytest.raises(EdgekitError, match=message):
        read_measurements(tmp_path)


def test_a_line_that_a_probe_does_not_say_is_named() -> None:
    with pytest.raises(EdgekitError, match="the probe's line load: expected a table, got None"):
        Lines(events={}).read("load", Load)
