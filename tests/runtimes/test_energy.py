"""Energy meters, against trees of files as systems have them: what is counted, wraps, gaps, and what proves nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.runtimes import energy
from edgekit.runtimes.energy import Channel, Meter, Sample, Unknown

RANGE_J = 262_143.328850
"""What Linux says of Intel's packages: 2^32 units of 61 microjoules."""


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def rapl(root: Path, *, package_j: float = 5.0, dram_j: float = 1.0) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    write(
        root,
        {
            f"{zone}/name": "package-0",
            f"{zone}/energy_uj": int(package_j % RANGE_J * 1e6),
            f"{zone}/max_energy_range_uj": int(RANGE_J * 1e6),
            f"{zone}/intel-rapl:0:0/name": "core",
            f"{zone}/intel-rapl:0:0/energy_uj": 1,
            f"{zone}/intel-rapl:0:0/max_energy_range_uj": int(RANGE_J * 1e6),
            f"{zone}/intel-rapl:0:1/name": "dram",
            f"{zone}/intel-rapl:0:1/energy_uj": int(dram_j % RANGE_J * 1e6),
            f"{zone}/intel-rapl:0:1/max_energy_range_uj": int(RANGE_J * 1e6),
            "sys/class/powercap/intel-rapl:1/name": "psys",
            "sys/class/powercap/intel-rapl:1/energy_uj": 9,
            "sys/class/powercap/intel-rapl:1/max_energy_range_uj": int(RANGE_J * 1e6),
            "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
            "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 9,
        },
    )


def ina226(root: Path, watts: float = 5.0) -> None:
    write(root, {"sys/class/hwmon/hwmon3/name": "ina226", "sys/class/hwmon/hwmon3/in0_input": 2,
                 "sys/class/hwmon/hwmon3/in1_input": 5100, "sys/class/hwmon/hwmon3/curr1_input": 900,
                 "sys/class/hwmon/hwmon3/power1_input": int(watts * 1e6)})  # fmt: skip


def jetson(root: Path, watts: float = 5.0) -> None:
    """INA3221: no power, three rails, of which VDD_IN feeds the others."""
    folder = "sys/class/hwmon/hwmon1"
    write(root, {f"{folder}/name": "ina3221"})
    for index, (label, part) in enumerate((("VDD_IN", 1.0), ("VDD_CPU_GPU_CV", 0.5), ("VDD_SOC", 0.3)), 1):
        write(root, {f"{folder}/in{index}_label": label, f"{folder}/in{index}_input": 5000,
                     f"{folder}/curr{index}_input": int(1000 * part * watts / 5)})  # fmt: skip


def battery(root: Path, watts: float = 5.0, status: str = "Discharging", *, power: bool = False) -> None:
    folder = "sys/class/power_supply/BAT0"
    write(root, {f"{folder}/type": "Battery", f"{folder}/status": status,
                 "sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/mouse/type": "Battery",
                 "sys/class/power_supply/mouse/scope": "Device", "sys/class/power_supply/mouse/status": "Discharging"})  # fmt: skip
    if power:
        write(root, {f"{folder}/power_now": int(watts * 1e6)})
    else:
        # Vendors disagree about the sign of what flows out.
        write(root, {f"{folder}/voltage_now": 11_400_000, f"{folder}/current_now": -int(watts / 11.4 * 1e6)})


@pytest.mark.parametrize(
    ("make", "method", "watts"),
    [
        (ina226, "INA226 hwmon3 1", 5.0),
        (jetson, "INA3221 VDD_IN", 5.0),
        (battery, "battery gauge BAT0", 5.0),
        (lambda root: battery(root, power=True), "battery gauge BAT0", 5.0),
        (rapl, "RAPL package-0, package-0 dram", None),
    ],
)
def test_what_a_machine_has_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], method: str, watts: float | None
) -> None:
    monkeypatch.setenv("PATH", "")
    make(tmp_path)
    meter, why = energy.find(tmp_path)
    assert meter is not None, why
    assert meter.method == method
    if watts is not None:
        assert sum(value or 0.0 for value in meter.look()) == pytest.approx(watts, rel=1e-3)


def test_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert energy.find(tmp_path) == (
        None,
        "no meter that edgekit reads (RAPL, INA2xx, a discharging battery, a Pi 5's power chip)",
    )
    battery(tmp_path, status="Charging")
    assert energy.find(tmp_path) == (None, "the battery does not discharge: unplug the charger to measure by its gauge")
    rapl(tmp_path)
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.unlink()
    counter.mkdir()  # as unreadable as what only root may read, for root too
    (tmp_path / "sys/class/powercap/intel-rapl:0/intel-rapl:0:1/energy_uj").unlink()
    meter, why = energy.find(tmp_path)
    assert (meter, why.split(";")[0]) == (None, "RAPL counters are there, and only root may read them")
    told = energy.spent(lambda: None, meter=None) if energy.find()[0] is None else None
    assert told is None or (told["energy_j"] is None and str(told["why"]).startswith("not measurable here: "))


class Load:
    """A machine's power over time, W: an idle floor, a load that comes and goes, noise of sines; and its exact integral."""

    def __init__(self, numbers: random.Random) -> None:
        self.waves = [(numbers.uniform(0.5, 3), numbers.uniform(0.05, 0.6), numbers.uniform(0, 6)) for _ in range(4)]
        self.floor = 4 + sum(size for size, _, _ in self.waves)

    def watts(self, at: float) -> float:
        return self.floor + sum(size * math.sin(speed * at + phase) for size, speed, phase in self.waves)

    def joules(self, end: float) -> float:
        return self.floor * end + sum(
            size / speed * (math.cos(phase) - math.cos(speed * end + phase)) for size, speed, phase in self.waves
        )


@pytest.mark.parametrize("seed", range(8))
def test_counters_with_wraps_and_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Two counters that begin again every few minutes, looked at when a busy machine comes to it, some looks failing."""
    monkeypatch.setenv("PATH", "")
    numbers = random.Random(seed)
    load, begin = Load(numbers), RANGE_J - numbers.uniform(0, 1500)
    rapl(tmp_path, package_j=begin, dram_j=begin / 2)
    meter, _ = energy.find(tmp_path)
    assert meter is not None
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    package, dram = zone / "energy_uj", zone / "intel-rapl:0:1/energy_uj"
    samples, at = [(0.0, meter.look())], 0.0
    while at < 400:
        at += numbers.choice((1.0, 1.2, 1.7, 9.0))
        package.write_text(
            "" if at < 400 and numbers.random() < 0.2 else str(int((begin + load.joules(at)) % RANGE_J * 1e6))
        )
        dram.write_text(str(int((begin / 2 + load.joules(at) / 10) % RANGE_J * 1e6)))
        samples.append((at, meter.look()))
    assert any(seen[0] is None for _, seen in samples)
    assert begin + load.joules(at) > RANGE_J, "it went round"
    assert energy.energy_j(meter.channels, samples) == pytest.approx(1.1 * load.joules(at), rel=0.01)


@pytest.mark.parametrize("seed", range(8))
def test_powers_with_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A power that changes, read ten times a second or when the machine comes to it; some readings fail."""
    monkeypatch.setenv("PATH", "")
    numbers = random.Random(seed)
    load = Load(numbers)
    ina226(tmp_path, load.watts(0.0))
    meter, _ = energy.find(tmp_path)
    assert meter is not None
    power, samples, at = tmp_path / "sys/class/hwmon/hwmon3/power1_input", [(0.0, meter.look())], 0.0
    for number in range(200):
        at += numbers.choice((0.1, 0.1, 0.11, 0.4))
        power.write_text("" if number < 199 and numbers.random() < 0.2 else str(int(load.watts(at) * 1e6)))
        samples.append((at, meter.look()))
    assert energy.energy_j(meter.channels, samples) == pytest.approx(load.joules(at), rel=0.01)


def counted(*samples: tuple[float, float | None]) -> tuple[list[Channel], list[Sample]]:
    return [Channel(read=lambda: None, range_j=100.0)], [(at, (value,)) for at, value in samples]


@pytest.mark.parametrize(
    ("samples", "joules"),
    [
        ([(0, 10), (0.05, 30)], 20),
        ([(0, 90), (0.05, 5)], 15),
        ([(0, 90), (0.04, None), (0.05, 5), (0.09, 20)], 30),
        ([(0, 90), (0.2, 5)], "may have gone round more than once"),
        ([(0, 50), (0.01, 2)], "its counter was reset"),
        ([(0, None), (0.01, 2), (0.02, 3)], "could not be read when the calls began or ended"),
        ([(0, 1), (0.01, 2), (0.02, None)], "could not be read when the calls began or ended"),
    ],
)
def test_what_a_counter_proves(samples: list[tuple[float, float | None]], joules: float | str) -> None:
    channels, seen = counted(*samples)
    if isinstance(joules, str):
        with pytest.raises(Unknown, match=joules):
            energy.energy_j(channels, seen)
    else:
        assert energy.energy_j(channels, seen) == pytest.approx(joules)


def test_a_long_gap_in_a_power_is_not_guessed() -> None:
    samples: list[Sample] = [(0.0, (5.0,)), (0.1, (5.0,)), (2.0, (5.0,))]
    with pytest.raises(Unknown, match=r"could not be read for 1\.9 s"):
        energy.energy_j([Channel(read=lambda: None)], samples)


class Clock:
    """Time that passes only when something sleeps or works, and a machine whose power depends on what it does."""

    def __init__(self, idle: tuple[float, float] = (5.0, 5.0), busy: float = 9.0, ripple: float = 0.01) -> None:
        self.now, self.joules, self.looks, self.calls = 0.0, 7.0, 0, 0
        self.idle, self.busy, self.ripple, self.works = idle, busy, ripple, False

    def pass_(self, seconds: float, *, works: bool) -> None:
        self.works = works
        self.now, self.joules = self.now + seconds, self.joules + seconds * self.watts
        if works:
            self.calls += 1

    @property
    def watts(self) -> float:
        return self.busy if self.works else self.idle[1 if self.calls else 0]

    def meter(self, *, counter: bool) -> Meter:
        def power() -> float:
            self.looks += 1
            return self.watts * (1 + self.ripple * (self.looks % 13 - 6) / 2)

        channel = Channel(read=lambda: self.joules % 50.0, range_j=50.0) if counter else Channel(read=power)
        return Meter(method="a test's", every_s=0.0005, channels=(channel,))


@pytest.fixture
def spend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., energy.Told]:
    """Measure calls of 0.02 s on a machine of `Clock`'s; samples are taken at each step of its time."""

    def run(counter: bool, **machine: Any) -> energy.Told:
        clock = Clock(**machine)
        meter = clock.meter(counter=counter)

        def watched(meter: Meter, during: Callable[[], None]) -> list[Sample]:
            samples = [(clock.now, meter.look())]

            def step(seconds: float, *, works: bool) -> None:
                left = seconds
                while left > 1e-9:
                    Clock.pass_(clock, min(0.02, left), works=works)
                    samples.append((clock.now, meter.look()))
                    left -= 0.02

            monkeypatch.setattr(energy.time, "sleep", lambda seconds: step(seconds, works=False))
            monkeypatch.setattr(energy.time, "monotonic", lambda: clock.now)
            clock.step = step  # type: ignore[attr-defined]
            during()
            return samples

        monkeypatch.setattr(energy, "_watched", watched)
        return energy.spent(lambda: clock.step(0.02, works=True), meter=meter)  # type: ignore[attr-defined]

    return run


@pytest.mark.parametrize("counter", [True, False])
def test_net_is_above_idle(spend: Callable[..., energy.Told], counter: bool) -> None:
    """9 W while it works and 5 W idle, 50 calls a second: 0.18 J gross, 0.08 J net; the counter goes round many times."""
    told = spend(counter)
    found = told["energy_j"]
    assert found is not None, told["why"]
    assert found["gross"] == pytest.approx(0.18, rel=0.01)
    assert found["net"] == pytest.approx(0.08, rel=0.02)
    assert found["method"] == "a test's"
    assert found["calls"] in {300, 301}
    assert found["idle_w"] == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize(
    ("counter", "machine", "why"),
    [
        (True, {"idle": (5.0, 6.5)}, "idle power was 5 W before and 6.5 W after, and 9 W while it worked"),
        (True, {"busy": 5.0}, "idle power was 5 W before and 5 W after, and 5 W while it worked"),
        (False, {"ripple": 0.0}, "it gave only 2 different readings"),
    ],
)
def test_what_proves_nothing_is_not_told(
    spend: Callable[..., energy.Told], counter: bool, machine: dict[str, Any], why: str
) -> None:
    told = spend(counter, **machine)
    assert told["energy_j"] is None
    assert str(told["why"]).startswith(f"not measured: {why}")


def test_a_real_thread_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """In real time, of a counter that rises by 100 J a second of the clock while calls run and by 40 J otherwise."""
    monkeypatch.setattr(energy, "IDLE_S", 0.3)
    monkeypatch.setattr(energy, "BUSY_S", 0.5)
    begun = energy.time.monotonic()
    works = [0.0]

    def read() -> float:
        return (40 * (energy.time.monotonic() - begun) + 60 * works[0]) % 1000

    def call() -> None:
        start = energy.time.monotonic()
        energy.time.sleep(0.01)
        works[0] += energy.time.monotonic() - start

    meter = Meter(method="a test's", every_s=0.05, channels=(Channel(read=read, range_j=1000.0),))
    found = energy.spent(call, meter=meter)["energy_j"]
    assert found is not None
    assert found["net"] * found["calls"] == pytest.approx(60 * works[0], rel=0.02)


# As a Raspberry Pi 5 prints it (`vcgencmd pmic_read_adc`), shortened.
PMIC = """\
 3V7_WL_SW_A current(0)=0.10000000A
   3V3_SYS_A current(1)=0.50000000A
  VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
  VDD_CORE_V volt(15)=0.75000000V
     EXT5V_V volt(24)=5.14550000V
      BATT_V volt(25)=0.00000000V
"""
# As macOS prints it (`powermetrics --samplers cpu_power,gpu_power,ane_power`), shortened.
POWERMETRICS = """\
*** Sampled system activity (Sat Nov 28 12:00:00 2026 +0000) (102.04ms elapsed) ***
E-Cluster Power: 20 mW
CPU Power: 1250 mW
GPU Power: 30 mW
ANE Power: 0 mW
Combined Power (CPU + GPU + ANE): 1280 mW
"""


def test_what_programs_print() -> None:
    assert energy.pmic_watts(PMIC) == pytest.approx(0.1 * 3.7 + 0.5 * 3.3 + 2.0 * 0.75)
    assert energy.pmic_watts("VCHI initialization failed\n") is None
    assert energy.powermetrics_watts(POWERMETRICS) == pytest.approx(1.28)
    older = POWERMETRICS.replace("Combined", "Package").replace("E-Cluster Power: 20 mW\n", "")
    assert energy.powermetrics_watts(older.partition("Package")[0]) == pytest.approx(1.28)
    assert energy.powermetrics_watts("powermetrics must be invoked as the superuser\n") is None


def test_a_pi_is_asked_by_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = pmic_read_adc ] && /bin/cat <<'END'\n{PMIC}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    meter, _ = energy.find(tmp_path)
    assert meter is not None
    assert meter.method == "vcgencmd pmic_read_adc"
    assert meter.look() == (pytest.approx(3.52),)
