"""Surveys of machines that are not at hand: a known one to change, and trees of files as Linux shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MACHINE: Mapping[str, Any] = {
    "arch": "x86_64",
    "cpu": 'Some "quoted" CPU',
    "part": None,
    "cores": 2,
    "features": ["fpu", "avx2", "avx512_vnni"],
    "memory_mb": 24000,
    "clock_ghz": None,
    "governor": None,
    "system": "Linux 6.1",
    "python": "3.11.2",
}
SPEED = {"bandwidth_gbs": 16.5659, "int8_gops": 191.4, "fp32_gflops": 92.61, "read_gbs": 17.91}
QUIET = {"seconds": 1.0, "cpus": 2, "others": 0.0, "steal": 0.0, "waited": 0.0, "throttled": 0.0, "slowed": 0}


def survey(**changes: Any) -> dict[str, Any]:
    """What a quiet machine of two cores says of itself, measured; changed where `changes` names a key."""
    return {
        "machine": dict(MACHINE),
        "system": "Debian GNU/Linux 12 (bookworm), Linux 6.1",
        "board": None,
        "clusters": [cluster('Some "quoted" CPU', [0, 1])],
        "memory": {"total_mb": 24000, "available_mb": 18000, "swap_mb": 0, "swap_used_mb": 0},
        "heat": {"zones": [], "slowed": [], "throttled": None},
        "power": {"on_battery": None, "percent": None, "profile": None},
        "allowed": {"online": 2, "cores": 2, "quota": None},
        "busy": {"seen": dict(QUIET), "programs": []},
        "engines": [engine("onnxruntime", "1.31.1", "CPUExecutionProvider"), engine("llama-cpp", None)],
        "accelerators": [],
        "speed": {
            "rounds": [dict(SPEED)] * 3,
            "saturates": {"u8s8": False, "s8s8": False, "u8u8": False},
            "seen": dict(QUIET),
        },
        "emulated": [],
        **changes,
    }


def cluster(cpu: str, cpus: list[int], **changes: Any) -> dict[str, Any]:
    """Cores that are alike."""
    unknown = ("capacity", "clock_ghz", "limit_ghz", "governor", "driver", "preference")
    return {"cpu": cpu, "cpus": cpus, **dict.fromkeys(unknown), **changes}


def engine(name: str, version: str | None, *providers: str) -> dict[str, Any]:
    """A runtime's library."""
    return {"name": name, "version": version, "problem": None, "debug": False, "providers": list(providers)}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """A folder with these files, by their paths."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n", encoding="utf-8")
    return root


def clock(cpu: int, highest: int, governor: str = "schedutil", **more: str) -> dict[str, str]:
    """A core's files of cpufreq; kHz."""
    folder = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
    files = {"cpuinfo_max_freq": str(highest), "scaling_governor": governor, "scaling_max_freq": str(highest), **more}
    return {f"{folder}/{name}": text for name, text in files.items()}


def arm_cpuinfo(*parts: str) -> str:
    """/proc/cpuinfo of cores of these parts, all of Arm's."""
    return "\n\n".join(
        f"processor\t: {index}\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: {part}"
        for index, part in enumerate(parts)
    )
