"""What accelerators a machine has, as their drivers' own tools tell: NVIDIA's nvidia-smi, and vulkaninfo of any maker's."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from typing import TypedDict

_QUERY = ("name", "memory.total", "driver_version", "utilization.gpu", "temperature.gpu")
_NVIDIA = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]


class Accelerator(TypedDict):
    """memory_mb: its own, MiB, None where it shares the machine's; cuda, vulkan: the newest version that its driver has; busy:
    the share of the last moments in which some program used it."""

    name: str
    memory_mb: int | None
    driver: str | None
    cuda: str | None
    vulkan: str | None
    busy: float | None
    celsius: int | None


def say(command: Sequence[str]) -> str:
    """What a tool prints; nothing where it is not there, fails or hangs."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def find_accelerators(say: Callable[[Sequence[str]], str] = say) -> list[Accelerator]:
    """The machine's accelerators: NVIDIA's, then those that only Vulkan knows. say: runs a tool."""
    found = read_nvidia(text, say(["nvidia-smi"])) if (text := say(_NVIDIA)) else []
    for other in read_vulkan(say(["vulkaninfo", "--summary"])):
        known = next((one for one in found if one["name"] == other["name"]), None)
        if known is None:
            found.append(other)
        else:
            known["vulkan"] = other["vulkan"]
    return found


def read_nvidia(query: str, banner: str) -> list[Accelerator]:
    """The accelerators of nvidia-smi's table of _QUERY; `banner` is what it prints when asked for nothing, with CUDA's version.

    A figure that a board does not tell is "[N/A]" or "[Not Supported]".
    """
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", banner)
    found: list[Accelerator] = []
    for line in query.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(_QUERY):
            continue
        name, memory, driver, busy, celsius = fields
        found.append(
            {
                "name": name,
                "memory_mb": int(memory) if memory.isdigit() else None,
                "driver": driver if re.match(r"\d", driver) else None,
                "cuda": cuda[1] if cuda else None,
                "vulkan": None,
                "busy": int(busy) / 100 if busy.isdigit() else None,
                "celsius": int(celsius) if celsius.isdigit() else None,
            }
        )
    return found


def read_vulkan(summary: str) -> list[Accelerator]:
    """The accelerators of `vulkaninfo --summary`; one that the CPU plays (llvmpipe) is none."""
    found: list[Accelerator] = []
    for block in re.split(r"^GPU\d+:\s*$", summary, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^\s+(\w+)\s*=\s*(.*?)\s*$", block, re.MULTILINE))
        if "deviceName" not in fields or fields.get("deviceType", "").endswith("_CPU"):
            continue
        version = re.search(r"\d+\.\d+\.\d+", fields.get("apiVersion", ""))
        driver = " ".join(fields[key] for key in ("driverName", "driverInfo") if fields.get(key))
        found.append(
            {
                "name": fields["deviceName"],
                "memory_mb": None,
                "driver": driver or None,
                "cuda": None,
                "vulkan": version[0] if version else None,
                "busy": None,
                "celsius": None,
            }
        )
    return found
