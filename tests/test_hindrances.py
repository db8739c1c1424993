"""What hinders a fair measurement: each in a message of its own, with what mends it, from surveys and trees of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.hindrances import THROTTLED, check_engines, find_hindrances
from edgekit.runtimes import survey as surveying
from edgekit.runtimes.survey import Survey
from tests.devices.surveys import QUIET, arm_cpuinfo, clock, cluster, engine, survey, tree


def found(facts: Survey | Any) -> dict[str, tuple[str, str]]:
    """What each warning says, and what mends it, by its name."""
    return {one.name: (one.found, one.remedy) for one in find_hindrances(facts) if one.status != "ok"}


def test_a_quiet_machine_is_hindered_by_nothing() -> None:
    assert found(survey()) == {}
    told = {one.name: one.found for one in find_hindrances(survey())}
    assert told["free memory"] == "18000 of 24000 MB"
    assert "avx512_vnni" in told["device cpu"]


@pytest.mark.parametrize(
    ("changes", "name", "says", "mends"),
    [
        ({"clusters": [cluster("A", [0, 1, 2, 5], governor="powersave", driver="cpufreq-dt")]}, "governor", "cores 0-2,5: powersave", "echo performance"),
        ({"clusters": [cluster("A", [0], governor="powersave", driver="intel_pstate", preference="power")]}, "energy preference", "cores 0: power", "energy_performance_preference"),
        ({"clusters": [cluster("A", [0], clock_ghz=2.4, limit_ghz=1.5)]}, "highest clock", "1.5 of 2.4 GHz", "scaling_max_freq"),
        ({"power": {"on_battery": True, "percent": 40, "profile": None}}, "power", "on its battery, 40 % left", "plug it in"),
        ({"power": {"on_battery": None, "percent": None, "profile": "low-power"}}, "power profile", "low-power", "platform_profile"),
        ({"heat": {"zones": [{"name": "soc", "celsius": 78.0, "slows_at": 80.0}], "slowed": [], "throttled": None}}, "heat soc", "78 °C", "cool"),
        ({"heat": {"zones": [], "slowed": ["thermal-cpufreq-0"], "throttled": None}}, "cooling", "thermal-cpufreq-0", "fan"),
        ({"memory": {"total_mb": 4000, "available_mb": 2000, "swap_mb": 512, "swap_used_mb": 100}}, "swap", "100 of 512 MB", "swapoff"),
        ({"memory": {"total_mb": 4000, "available_mb": 300, "swap_mb": 0, "swap_used_mb": 0}}, "free memory", "300 of 4000 MB", "close programs"),
        ({"busy": {"seen": QUIET | {"others": 1.2}, "programs": [{"name": "ffmpeg", "pid": 7, "cores": 1.1}]}}, "other load", "1.2 cores busy; ffmpeg (process 7): 1.1", "end them"),
        ({"busy": {"seen": QUIET | {"steal": 0.2}, "programs": []}}, "stolen time", "20%", "not shared"),
        ({"allowed": {"online": 4, "cores": 4, "quota": 1.5}}, "cpu.max", "1.5 of 4 cores", "--cpus"),
        ({"allowed": {"online": 4, "cores": 2, "quota": None}}, "affinity", "2 of 4 cores", "taskset"),
        ({"engines": [engine("onnxruntime", "1.31.1") | {"debug": True}]}, "onnxruntime build", "debug build", "release build"),
        ({"emulated": ["emulated: programs for aarch64 on a kernel for x86_64"]}, "emulated", "kernel for x86_64", "on the board itself"),
        ({"accelerators": [{"name": "GPU", "memory_mb": 6141, "driver": "550", "cuda": "12.4", "vulkan": None, "busy": 0.8, "celsius": 60}]}, "accelerator load", "80% busy", "nvidia-smi"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_each_hindrance_has_its_own_message(changes: dict[str, Any], name: str, says: str, mends: str) -> None:
    ((named, (said, remedy)),) = found(survey(**changes)).items()
    assert (named, says in said, mends in remedy) == (name, True, True), (said, remedy)


def test_what_hinders_nothing_is_no_warning() -> None:
    """intel_pstate's "powersave" is its normal state; a swap that is not used, a battery that charges, a quota of all cores."""
    fair = survey(
        clusters=[cluster("A", [0, 1], governor="powersave", driver="intel_pstate", preference="balance_performance")],
        power={"on_battery": False, "percent": 90, "profile": "balanced"},
        memory={"total_mb": 4000, "available_mb": 3000, "swap_mb": 512, "swap_used_mb": 3},
        allowed={"online": 2, "cores": 2, "quota": 2.0},
        heat={"zones": [{"name": "soc", "celsius": 60.0, "slows_at": 80.0}], "slowed": [], "throttled": 0},
    )
    assert found(fair) == {}


@pytest.mark.parametrize("bit", THROTTLED)
def test_each_bit_of_the_firmwares_word_has_its_own_message(bit: int) -> None:
    """Now, and at some time since the start: under-voltage, a capped clock, throttled, the soft limit."""
    heat = {"zones": [], "slowed": []}
    ((name, (now, remedy)),) = found(survey(heat=heat | {"throttled": 1 << bit})).items()
    ((same, (then, reboot)),) = found(survey(heat=heat | {"throttled": 1 << bit + 16})).items()
    assert name == same == THROTTLED[bit][0]
    assert now.endswith(f"now (get_throttled bit {bit})")
    assert f"since the board started (get_throttled bit {bit + 16})" in then
    assert remedy
    assert "a reboot clears the bit" in reboot


def test_a_hot_and_saving_board_of_files(tmp_path: Path) -> None:
    """From the files of a Raspberry Pi 4 on a weak power supply to its warnings."""
    zone = "sys/class/thermal/thermal_zone0"
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": arm_cpuinfo(*["0xd08"] * 4),
            "proc/meminfo": "MemTotal: 948000 kB\nMemAvailable: 102400 kB\nSwapTotal: 204800 kB\nSwapFree: 102400 kB",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            f"{zone}/type": "cpu-thermal",
            f"{zone}/temp": "83000",
            f"{zone}/trip_point_0_type": "passive",
            f"{zone}/trip_point_0_temp": "80000",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
            "sys/fs/cgroup/cpu.max": "50000 100000",
            **{name: text for cpu in range(4) for name, text in clock(cpu, 1_800_000, "powersave").items()},
        },
    )
    facts = surveying.look(root, engines=False, watch_s=0.01)
    names = {*found(facts)} - {"other load", "stolen time", "affinity"}
    assert names == {
        *("governor", "power supply", "throttled", "heat cpu-thermal", "swap", "free memory", "cpu.max"),
    }
    assert find_hindrances(facts)[0].found.startswith("Raspberry Pi 4 Model B Rev 1.4, ")


def test_engines_of_a_device_are_those_of_here() -> None:
    def judged(*engines: dict[str, Any]) -> list[tuple[str, str, str]]:
        return [
            (one.name, one.status, one.remedy)
            for one in check_engines(survey(engines=[*engines]), "edgekit devices setup ssh://b")
        ]

    import onnxruntime

    here, setup = str(onnxruntime.__version__), "run: edgekit devices setup ssh://b"
    assert judged(engine("onnxruntime", here, "CPUExecutionProvider")) == [("onnxruntime", "ok", "")]
    assert judged(engine("onnxruntime", "1.2.3")) == [("onnxruntime", "problem", setup)]
    assert judged(engine("onnxruntime", None), engine("llama-cpp", None)) == [("onnxruntime", "problem", setup)]
    broken = engine("llama-cpp", None) | {"problem": "libggml.so: cannot open shared object file"}
    assert judged(broken) == [("llama-cpp", "problem", setup)]
