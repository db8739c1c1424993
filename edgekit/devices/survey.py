"""What a device is and in which state: `edgekit.runtimes.survey`, run there by the code that is pushed, or its shell."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices.adb import AdbDevice
from edgekit.devices.code import copy_runtimes
from edgekit.devices.shell_survey import ask_shell
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.runtimes.survey import Survey
from edgekit.typed_json import read_table

if TYPE_CHECKING:
    from edgekit.devices.device import Device

# Emulated boards take a minute to measure.
_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class _Said:
    device: Survey


def ask_survey(device: Device, *, speed: bool = False) -> Survey:
    """What the device says of itself; with `speed` it measures its own, too.

    Raises DeviceFailed where it does not answer, EdgekitError for a device that has neither Python nor a shell.
    """
    if isinstance(device, AdbDevice):
        return ask_shell(device, speed=speed)
    if device.PROBE != "python":
        raise EdgekitError(f"{device.identity}: has no Python that could measure it; give the address of one that has")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        copy_runtimes(Path(scratch))
        ended = device.run(
            [device.python, "-m", "edgekit.runtimes.survey", *(["speed"] if speed else [])],
            timeout_s=_TIMEOUT_S,
            env={"PYTHONPATH": device.push(Path(scratch))},
        )
    lines = ended.stdout.splitlines()
    if ended.returncode != 0 or not lines:
        last = (ended.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
        remedy = f"run: edgekit devices setup {device.identity}" if device.REMOTE else "is this edgekit's own Python?"
        raise DeviceFailed(
            f"{device.identity}: does not say what it is (exit code {ended.returncode}: {last[:300]}); {remedy}"
        )
    try:
        table = json.loads(lines[-1])
    except ValueError as garbled:
        raise DeviceFailed(f"{device.identity}: what it says of itself is garbled; run it again") from garbled
    return read_table(_Said, {"device": table}, device.identity).device
