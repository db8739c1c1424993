"""What a machine is and in which state, from trees of files as Linux shows them, and of this machine for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.runtimes import survey, timing
from edgekit.runtimes.onnxruntime import throughput
from tests.devices.surveys import arm_cpuinfo, clock, tree


def test_big_and_little_cores_are_told_apart(tmp_path: Path) -> None:
    """An RK3588: four Cortex-A55 first, then two pairs of Cortex-A76, whose last pair is clocked a little higher."""
    files = {"proc/cpuinfo": arm_cpuinfo(*["0xd05"] * 4, *["0xd0b"] * 4)}
    for cpu, (capacity, highest) in enumerate(
        [(530, 1_800_000)] * 4 + [(1024, 2_256_000)] * 2 + [(1024, 2_304_000)] * 2
    ):
        files |= clock(cpu, highest) | {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": str(capacity)}
    files |= clock(6, 2_304_000, governor="powersave", scaling_max_freq="1200000")
    found = survey.clusters(tree(tmp_path, files))
    assert [(one["cpu"], one["cpus"], one["capacity"], one["clock_ghz"]) for one in found] == [
        ("Cortex-A76", [6, 7], 1024, 2.304),
        ("Cortex-A76", [4, 5], 1024, 2.256),
        ("Cortex-A55", [0, 1, 2, 3], 530, 1.8),
    ]
    assert (found[0]["governor"], found[0]["limit_ghz"], found[1]["limit_ghz"]) == ("powersave", 1.2, None)


def test_a_system_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    found = survey.look(tmp_path, engines=False, watch_s=0.01)
    assert (found["clusters"], found["heat"]["zones"], found["board"], found["power"]["on_battery"]) == (
        [],
        [],
        None,
        None,
    )
    assert found["memory"]["total_mb"] == 0
    assert json.loads(json.dumps(found)) == found


def test_memory_and_swap(tmp_path: Path) -> None:
    text = "MemTotal: 3884092 kB\nMemFree: 90000 kB\nMemAvailable: 204800 kB\nSwapTotal: 524288 kB\nSwapFree: 262144 kB"
    found = survey.memory(tree(tmp_path, {"proc/meminfo": text}))
    assert found == {"total_mb": 3793, "available_mb": 200, "swap_mb": 512, "swap_used_mb": 256}


def test_heat_of_zones_cooling_devices_and_the_firmwares_word(tmp_path: Path) -> None:
    zone, fan = "sys/class/thermal/thermal_zone0", "sys/class/thermal/cooling_device"
    files = {
        f"{zone}/type": "cpu-thermal",
        f"{zone}/temp": "81400",
        f"{zone}/trip_point_0_type": "active",
        f"{zone}/trip_point_0_temp": "50000",
        f"{zone}/trip_point_1_type": "passive",
        f"{zone}/trip_point_1_temp": "80000",
        f"{zone}/trip_point_2_type": "critical",
        f"{zone}/trip_point_2_temp": "110000",
        "sys/class/thermal/thermal_zone1/type": "broken",
        f"{fan}0/type": "pwm-fan",
        f"{fan}0/cur_state": "4",
        f"{fan}1/type": "thermal-cpufreq-0",
        f"{fan}1/cur_state": "2",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
    }
    found = survey.look(tree(tmp_path, files), engines=False, watch_s=0.01)["heat"]
    assert found["zones"] == [{"name": "cpu-thermal", "celsius": 81.4, "slows_at": 80.0}]
    assert found["slowed"] == ["thermal-cpufreq-0"]
    assert found["throttled"] == 0x50005


@pytest.mark.parametrize(
    ("files", "on_battery"),
    [
        ({}, None),
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging", "BAT0/capacity": "71", "AC/type": "Mains", "AC/online": "0"}, True),
        ({"BAT0/type": "Battery", "BAT0/status": "Charging", "AC/type": "Mains", "AC/online": "1"}, False),
        ({"BAT0/type": "Battery", "BAT0/status": "Not charging"}, False),
        ({"hid/type": "Battery", "hid/scope": "Device", "hid/status": "Discharging"}, None),
    ],
    ids=["none", "draining", "charging", "full", "a mouse's"],
)  # fmt: skip
def test_where_the_current_comes_from(files: dict[str, str], on_battery: bool | None, tmp_path: Path) -> None:
    root = tree(tmp_path, {f"sys/class/power_supply/{name}": text for name, text in files.items()})
    assert survey.power(root)["on_battery"] is on_battery


def test_what_a_control_group_gives(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "150000 100000"})
    assert survey.allowed(root)["quota"] == 1.5


def test_programs_that_work_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processor time that they took while the machine was watched; not by what they took before."""
    after = {1: ("init", 90_000), 7: ("ffmpeg", 130), 8: ("cat", 61), os.getpid(): ("python", 900)}
    ticks = iter([{1: ("init", 90_000), 7: ("ffmpeg", 100), 8: ("cat", 60)}, after])
    monkeypatch.setattr(survey, "_ticks", lambda _: next(ticks))
    monkeypatch.setattr(survey.neighbours, "watch", lambda: lambda: {"seconds": 0.3})
    monkeypatch.setattr(survey.os, "sysconf", lambda _: 100)
    assert survey.watch(Path("/"), 0.0)["programs"] == [{"name": "ffmpeg", "pid": 7, "cores": 1.0}]


def test_processor_time_of_programs_is_read() -> None:
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        end = time.monotonic() + 30
        while survey._ticks(Path("/")).get(spinning.pid, ("", 0))[1] < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        spinning.kill()
        spinning.wait()


def test_a_debug_build_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    told = "ORT Build Info: git-branch=main, git-commit-id=abc, build type=Debug, cmake cxx flags: -g"
    assert next(one for one in survey._engines() if one["name"] == "onnxruntime")["debug"] is False
    monkeypatch.setattr(onnxruntime, "get_build_info", lambda: told)
    assert next(one for one in survey._engines() if one["name"] == "onnxruntime")["debug"] is True


def test_bytes_saturate_where_the_cpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured agrees with what the features promise."""
    from edgekit.runtimes.machine import describe, saturates

    monkeypatch.setattr(throughput, "_SIDE", 64)
    facts = describe()
    assert throughput.saturation()["u8s8"] is saturates(facts["arch"], facts["features"])
    assert throughput.saturation()["u8u8"] is False


def test_an_accelerators_speed_is_that_of_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator is here: the CPU runs the same models with the same bound memory."""
    monkeypatch.setattr(timing, "_SPELL_S", 0.02)
    found = throughput.speed_of("CPUExecutionProvider", "cpu", side=64, copied=1 << 16)
    assert set(found) == {"gpu_copy_gbs", "gpu_fp16_gflops"}
    assert all(0 < value < 1e5 for value in found.values())
    assert throughput.speed_of("CUDAExecutionProvider", "cuda", side=64, copied=1 << 16) == {}
    assert throughput.accelerator_speed() == {}
