"""What tells an emulator from a real machine, and that a busy real one is none."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from edgekit.runtimes import machine, timing
from edgekit.runtimes.emulation import emulation, floors

BOARD: Any = {"arch": "aarch64", "cores": 4, "clock_ghz": 2.4, "features": ["asimd", "asimddp"]}
# As qemu's Cortex-A76 measured them on a machine of 2.4 GHz.
EMULATED = {"fp32_gflops": 0.215, "int8_gops": 3.35}


def test_a_fifth_of_cores_times_clock_times_lanes() -> None:
    """128 bits are 4 floats or 16 bytes; without a dot product a product of bytes takes 16 bits."""
    assert floors(BOARD) == pytest.approx({"fp32_gflops": 4 * 2.4 * 4 / 5, "int8_gops": 4 * 2.4 * 16 / 5})
    assert floors(BOARD | {"features": ["asimd"]})["int8_gops"] == pytest.approx(4 * 2.4 * 8 / 5)
    wide = BOARD | {"arch": "x86_64", "features": ["avx2", "avx512f", "avx512_vnni"]}
    assert floors(wide) == pytest.approx({"fp32_gflops": 4 * 2.4 * 16 / 5, "int8_gops": 4 * 2.4 * 64 / 5})
    assert floors(BOARD | {"clock_ghz": None}, 2.4) == floors(BOARD)


def test_an_emulator_is_known_by_what_it_reaches() -> None:
    """Also where nobody tells a clock, and at the speed of an emulator on a machine twice as fast."""
    assert len(emulation(BOARD, EMULATED)) == 2
    for features in (["asimd", "asimddp"], ["asimd"]):
        unclocked = BOARD | {"clock_ghz": None, "features": features}
        assert "emulated" in emulation(unclocked, {key: 2 * value for key, value in EMULATED.items()})[0]
    # HPL of one core of a Raspberry Pi 5 and of a Pi 4 (targets/), at a third of their clock.
    assert emulation(BOARD, {"fp32_gflops": 32.1 / 3}) == []
    assert emulation(BOARD | {"clock_ghz": 1.8, "features": ["asimd"]}, {"fp32_gflops": 11.6 / 3}) == []
    assert emulation(BOARD, {}) == []


def test_a_kernel_of_another_kind_gives_an_emulator_away(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/sys/kernel/arch": "x86_64"}
    monkeypatch.setattr(machine, "read_file", lambda path: files.get(str(path), ""))
    assert machine._emulator("aarch64") == "programs for aarch64 on a kernel for x86_64"
    assert machine._emulator("x86_64") is machine._emulator("i686") is None
    files["/proc/sys/kernel/arch"] = "aarch64"
    assert machine._emulator("armv7l") is machine._emulator("aarch64") is None
    assert machine._emulator("x86_64") == "programs for x86_64 on a kernel for aarch64"
    files.clear()
    assert machine._emulator("aarch64") is None
    assert emulation(BOARD | {"emulator": "programs for aarch64 on a kernel for x86_64"}, {}) != []


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that take a core each, until the block ends."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_spin, daemon=True) for _ in range(processes)]
    for one in running:
        one.start()
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.join()


def test_waiting_is_no_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SPELL_S", 0.02)
    assert timing.fastest(lambda: time.sleep(0.01)) >= 0.01
    assert timing.worked(lambda: time.sleep(0.01)) < 0.005


def test_what_a_host_took_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel takes what its host gave to others off a thread's time: such calls say nothing of how long one takes."""
    clock = iter(second for call in range(1000) for second in (float(call), call + (0.0 if call % 8 == 3 else 0.5)))
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    assert timing.worked(lambda: time.sleep(0.001), spell_s=0.05) == 0.5
    monkeypatch.setattr(time, "thread_time", lambda: 1.0)
    assert timing.worked(lambda: time.sleep(0.001), spell_s=0.05) >= 0.001


def test_a_busy_machine_is_as_fast_as_a_quiet_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three programs for each core leave a quarter of the time by the wall's clock; what is measured is processor time."""
    monkeypatch.setattr(timing, "_SPELL_S", 0.3)
    facts = machine.describe()
    quiet = machine.measure()
    with busy(3 * (os.cpu_count() or 1)):
        loaded = machine.measure()
    assert emulation(facts, quiet) == emulation(facts, loaded) == []
    for key in ("fp32_gflops", "int8_gops"):
        # Caches are shared, and the clock of a core may fall where all work.
        assert loaded[key] > 0.3 * quiet[key]
        assert facts["cores"] * loaded[key] > 3 * floors(facts)[key]
