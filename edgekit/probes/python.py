"""The probe for devices with Python, NumPy and the engine: it pushes `edgekit.runtimes` and starts an interpreter there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices.code import copy_runtimes
from edgekit.devices.setup import ENGINES
from edgekit.probes.exchange import Program, exchange
from edgekit.runtimes import RUNTIMES

if TYPE_CHECKING:
    from edgekit.devices import Device
    from edgekit.probes.probe import Answer, Question

NAME = "python"


def ask(device: Device, question: Question) -> Answer:
    """Send the artifact, the code that runs it and the question to the device; what the code said and made there.

    Raises DeviceFailed where it does not finish.
    """
    renew, runtime = f"edgekit devices setup {device.identity}", question.request["runtime"]

    def explain(last: str) -> str | None:
        if not last.startswith("ModuleNotFoundError"):
            return None
        pip = f"run there: python3 -m pip install {RUNTIMES[runtime].PACKAGE.name} numpy"
        remedy = f"run: {renew}" if device.REMOTE and runtime in ENGINES else pip
        return f"the device's Python lacks a library ({last}); {remedy}"

    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        code = Path(scratch, "code")
        copy_runtimes(code)
        command, env = [device.python, "-m", "edgekit.runtimes.probe"], {"PYTHONPATH": device.push(code)}
        return exchange(device, question, Program(command=command, env=env, renew=renew, explain=explain))
