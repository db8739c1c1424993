"""What a phone's shell and the native probe say of it: of a phone's own files as Android shows them, and of one behind adb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.devices import AdbDevice
from edgekit.devices.native import Platform
from edgekit.devices.shell_survey import SAVER, ask_shell, lay_out, read_survey
from edgekit.errors import DeviceFailed
from edgekit.hindrances import find_hindrances
from edgekit.pipeline import check_target
from edgekit.runtimes.onnxruntime.throughput import saturation
from edgekit.target import check_targets, load_target
from tests.conftest import Answer
from tests.devices.native import HERE, lay_probe
from tests.devices.phone import BATTERY, THERMAL, Phone
from tests.devices.surveys import arm_cpuinfo, clock

ANDROID = Platform(arch=HERE.arch, system="android")
# A phone of three kinds of cores: one Cortex-X2, three A710, four A510.
PARTS = ("0xd46",) * 4 + ("0xd47",) * 3 + ("0xd48",)
CLOCKS = (1_800_000,) * 4 + (2_550_000,) * 3 + (3_050_000,)
STAT = "cpu  {busy} 0 0 1000 0 0 0 0 0 0\n" + "\n".join(f"cpu{index} 1 0 0 1 0 0 0 0 0 0" for index in range(8))
FILES = {
    "/proc/cpuinfo": arm_cpuinfo(*PARTS),
    "/proc/meminfo": "MemTotal: 7800000 kB\nMemAvailable: 3100000 kB\nSwapTotal: 4000000 kB\nSwapFree: 1000000 kB",
    "/proc/self/status": "Name:\tcat\nCpus_allowed_list:\t0-3,5-7",
    "/proc/sys/kernel/osrelease": "5.10.149-android12",
    **{f"/{path}": text for cpu, highest in enumerate(CLOCKS) for path, text in clock(cpu, highest, "walt").items()},
    "/before/programs": "812 (surface flinger) S 1 1 0 0 -1 0 0 0 0 0 100 20 0 0",
    "/before/uptime": "5000.00 30000.00",
    "/before/stat": STAT.format(busy=1000),
    "/after/programs": "812 (surface flinger) S 1 1 0 0 -1 0 0 0 0 0 150 30 0 0\n9 (new) S 1 1 0 0 -1 0 0 0 0 0 5 5 0 0",
    "/after/uptime": "5001.25 30000.00",
    "/after/stat": STAT.format(busy=1100),
}
TOLD = {"arch": "aarch64", "android": "14", "abis": "arm64-v8a", "model": "Pretend 8"}
# Of a phone that is held down: the HAL's part of the service's text, as ThermalManagerService.dump writes it.
HOT = (
    THERMAL.replace("Thermal Status: 0", "Thermal Status: 2")
    + """\
Current cooling devices from HAL:
\tCoolingDevice{mValue=3, mType=2, mName=thermal-cpufreq-2}
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
\tCoolingDevice{mValue=1, mType=6, mName=lcd-backlight}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=skin, mHotThrottlingThresholds=[NaN, 37.0, 39.0, 41.0, NaN, NaN, 55.0], mColdThrottlingThresholds=[NaN]}
\tTemperatureThreshold{mType=0, mName=CPU0, mHotThrottlingThresholds=[NaN, NaN, NaN, 95.0, NaN, NaN, NaN], mColdThrottlingThresholds=[NaN]}
"""
)


def shown(files: dict[str, str]) -> str:
    """What the script prints of these files."""
    return "".join(f"EDGEKIT-FILE {path}\n{text}\n\n" for path, text in files.items()) + "EDGEKIT-SHOWN\n"


def test_a_phones_files_are_read_as_those_of_any_linux(tmp_path: Path) -> None:
    lay_out(shown(FILES), tmp_path)
    survey = read_survey(tmp_path, TOLD, f"{BATTERY}{THERMAL}low_power: 0\n")
    assert [(one["cpu"], one["cpus"], one["clock_ghz"]) for one in survey["clusters"]] == [
        ("Cortex-X2", [7], 3.05), ("Cortex-A710", [4, 5, 6], 2.55), ("Cortex-A510", [0, 1, 2, 3], 1.8),
    ]  # fmt: skip
    machine = survey["machine"]
    assert (machine["arch"], machine["part"], machine["cores"], machine["memory_mb"]) == (
        "aarch64",
        "0x41/0xd46",
        7,
        7617,
    )
    assert survey["allowed"] == {"online": 8, "cores": 7, "quota": None}
    assert (survey["system"], survey["board"]) == ("Android 14, Pretend 8", None)
    assert survey["memory"] == {"total_mb": 7617, "available_mb": 3027, "swap_mb": 0, "swap_used_mb": 0}
    # The service's cached 31.4 degrees of its skin are of an earlier event.
    assert survey["heat"]["zones"] == [
        {"name": "CPU0", "celsius": 48.0, "slows_at": None}, {"name": "skin", "celsius": 33.5, "slows_at": None},
    ]  # fmt: skip
    assert survey["power"] == {"on_battery": False, "percent": 87, "profile": None}
    assert survey["busy"]["seen"] == {"seconds": 1.25, "others": 0.8, "steal": 0.0, "cpus": 8}
    assert survey["busy"]["programs"] == [{"name": "surface flinger", "pid": 812, "cores": 0.48}]
    findings = {one.name: one for one in find_hindrances(survey)}
    assert {name for name, one in findings.items() if one.status != "ok"} == {"other load", "affinity"}
    assert findings["governor"].found == "walt"


def test_what_hinders_a_phone_has_a_phones_remedy(tmp_path: Path) -> None:
    """Nobody has sudo there."""
    slow = {f"/{path}": text for path, text in clock(0, 1_800_000, "powersave", scaling_max_freq="900000").items()}
    lay_out(shown({**FILES, **slow}), tmp_path)
    unplugged = BATTERY.replace("USB powered: true", "USB powered: false")
    survey = read_survey(tmp_path, TOLD, f"{unplugged}{HOT}low_power: 1\n")
    assert survey["heat"]["zones"][1] == {"name": "skin", "celsius": 33.5, "slows_at": 37.0}
    assert survey["heat"]["slowed"] == ["thermal-cpufreq-2", "Android's thermal status: moderate"]
    assert survey["power"] == {"on_battery": True, "percent": 87, "profile": SAVER}
    findings = {one.name: one for one in find_hindrances(survey) if one.status != "ok"}
    expected = {"governor", "highest clock", "power", "power saving", "cooling", "heat skin", "other load", "affinity"}
    assert findings.keys() == expected
    assert "0.9 of 1.8 GHz" in findings["highest clock"].found
    assert findings["power saving"].remedy.endswith("adb shell settings put global low_power 0")
    assert "adb shell su -c 'echo performance | tee /sys" in findings["governor"].remedy
    assert not any("sudo" in one.remedy for one in findings.values())


def test_a_device_that_shows_little(tmp_path: Path) -> None:
    """Where its shell may read next to nothing, the rest is unknown, and nothing hinders that nobody has seen."""
    lay_out(shown({"/proc/cpuinfo": arm_cpuinfo("0xd05")}), tmp_path)
    survey = read_survey(tmp_path, {"arch": "aarch64"}, "")
    assert (survey["machine"]["cpu"], survey["machine"]["cores"], survey["system"]) == ("Cortex-A55", 1, "Linux")
    assert survey["busy"] == {"seen": {"seconds": 0.0, "others": None, "steal": None}, "programs": []}
    assert [one for one in find_hindrances(survey) if one.status != "ok"] == []
    with pytest.raises(DeviceFailed, match="was cut; run it again"):
        lay_out(shown(FILES)[:-20], tmp_path)
    lay_out("EDGEKIT-FILE /../outside\nwritten\n\nEDGEKIT-SHOWN\n", tmp_path / "below")
    assert not (tmp_path / "outside").exists()


def test_doctor_and_probe_of_a_phone(
    own_adb: None, phone: Phone, command: Callable[..., Answer], tmp_path: Path
) -> None:
    """Commands and programs run for real behind adb: before the probe is built doctor says so, and probe what to run; then the
    file that is written is a target."""
    url = phone.url.replace("adb:", "adb://")
    bare = command("doctor", "--device", url, "--json")
    engine = next(one for one in json.loads(bare.out)["findings"] if one["name"] == "onnxruntime")
    build = f"edgekit devices native --arch {HERE.arch} --system android"
    assert (bare.code, engine["remedy"]) == (1, f"run: {build}")
    assert f"no native probe is built for {ANDROID}" in engine["found"]
    refused = command("targets", "probe", "--name", "my-phone", "--device", url, "--out", tmp_path, "--json")
    assert (refused.code, f"run: {build}" in refused.out) == (4, True)

    lay_probe(HERE, ANDROID)
    fit = command("doctor", "--device", url, "--json")
    findings = {one["name"]: one for one in json.loads(fit.out)["findings"]}
    assert (fit.code, findings["onnxruntime"]["status"]) == (0, "ok")
    assert findings["device"]["found"].endswith("Android 14, Pretend 8")
    done = command("targets", "probe", "--name", "my-phone", "--device", url, "--out", tmp_path, "--busy", "--json")
    assert done.code == 0, done.err
    path = json.loads(done.out)["file"]
    assert check_targets([path], check_target) == {path: None}
    target = load_target(path)
    assert target.device == phone.table()
    assert target.export_for("text-classification")["container"] == "ort"
    assert target.export_for("text-classification")["reduce_range"] is saturation()["u8s8"]
    assert target.probed["saturates"] == saturation()
    measured = target.probed["measured"]
    assert isinstance(measured, dict)
    assert all(0.1 < measured[key] < 20_000 for key in ("bandwidth_gbs", "read_gbs", "fp32_gflops", "int8_gops"))
    with AdbDevice(phone.table()) as device:
        facts = device.facts()
    assert (target.hardware.cpu, target.hardware.cores) == (facts["cpu"], facts["cores"])


def test_a_probe_that_does_not_run_there(own_adb: None, phone: Phone) -> None:
    folder = lay_probe(HERE, ANDROID)
    made = folder.resolve()
    folder.unlink()
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(b"no library" if path.name == "libonnxruntime.so" else path.read_bytes())
        (folder / path.name).chmod(0o755)
    with AdbDevice(phone.table()) as device:
        problem = ask_shell(device, speed=False)["engines"][0]["problem"]
        assert problem is not None
        assert "onnxruntime does not load" in problem
        with pytest.raises(
            DeviceFailed, match=r"ends with exit code 1: onnxruntime does not load.*; run: edgekit devices"
        ):
            ask_shell(device, speed=True)
