"""The probe for devices with Python, NumPy and the engine: it pushes `edgekit.runtimes` and starts an interpreter there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
SUSTAINS = True


def ask(device: Device, question: Question) -> Answer:
    """Send the artifact, the code that runs it and the question to the device; what the code said and made there.

    Raises DeviceFailed where it does not finish.
    """
    with program(device, question.request["runtime"], "edgekit.runtimes.probe") as probe:
        return exchange(device, question, probe)


@contextmanager
def program(device: Device, runtime: str, module: str) -> Iterator[Program]:
    """A module of `edgekit.runtimes` as a program of the device's Python, its code pushed there; it opens this runtime."""
    renew = ENGINES.get(runtime, ENGINES["onnxruntime"]).format(device=device.identity)

    def explain(last: str) -> str | None:
        if not last.startswith("ModuleNotFoundError"):
            return None
        pip = f"run there: python3 -m pip install {RUNTIMES[runtime].PACKAGE.name} numpy"
        remedy = f"run: {renew}" if device.REMOTE and runtime in ENGINES else pip
        return f"the device's Python lacks a library ({last}); {remedy}"

    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        code = Path(scratch, "code")
        copy_runtimes(code)
        env = {"PYTHONPATH": device.push(code)}
        yield Program(command=[device.python, "-m", module], env=env, renew=renew, explain=explain)
