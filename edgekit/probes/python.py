"""The probe for devices with Python, NumPy and the engine: it pushes `edgekit.runtimes` and starts an interpreter there."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices.code import copy_runtimes
from edgekit.errors import DeviceFailed
from edgekit.probes.lines import Lines
from edgekit.probes.probe import Answer, Question
from edgekit.runtimes import RUNTIMES

if TYPE_CHECKING:
    from edgekit.devices import Device

NAME = "python"
_OUTPUTS = "measured/outputs.npz"
# What a process ends with that the system kills for want of memory: SIGKILL, by itself or by way of a shell.
_KILLED = {-9, 137}


def ask(device: Device, question: Question) -> Answer:
    """Send the artifact, the code that runs it and the question to the device; what the code said and made there.

    Raises DeviceFailed where it does not finish.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        code, request, result = Path(scratch, "code"), Path(scratch, "request"), Path(scratch, "result")
        copy_runtimes(code)
        request.mkdir()
        result.mkdir()
        np.savez(request / "inputs.npz", allow_pickle=False, **question.inputs)
        paths = {
            "file": f"{device.push(question.file.parent)}/{question.file.name}",
            "inputs": "inputs.npz",
            "outputs": _OUTPUTS,
        }
        (request / "request.json").write_text(json.dumps({**question.request, **paths}), encoding="utf-8")
        pushed = device.push(request)
        ended = device.run(
            [device.python, "-m", "edgekit.runtimes.probe", f"{pushed}/request.json"],
            timeout_s=question.timeout_s,
            env={"PYTHONPATH": device.push(code)},
        )
        lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
        events = {event.pop("event"): event for event in map(json.loads, lines)}
        if ended.returncode != 0 or "done" not in events:
            why = _why(ended.returncode, ended.stderr, question.request["runtime"])
            raise DeviceFailed(f"{question.file}: {why}")
        if question.request["timing"].get("only"):
            return Answer(lines=Lines(events=events), arrays={})
        device.fetch(Path(_OUTPUTS).parent.as_posix(), result)
        with np.load(result / Path(_OUTPUTS).name, allow_pickle=False) as arrays:
            return Answer(lines=Lines(events=events), arrays={name: arrays[name] for name in arrays.files})


def _why(code: int, stderr: str, runtime: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "nothing on standard error")
    if code in _KILLED:
        return (
            "the system killed the probe, most likely for want of memory; free some, or use a smaller student or scheme"
        )
    if last.startswith("ModuleNotFoundError"):
        wanted = RUNTIMES[runtime].PACKAGE.name
        return f"the device's Python lacks a library ({last}); run there: python3 -m pip install {wanted} numpy"
    return f"the probe ended with exit code {code}: {last[:400]}; `edgekit inspect` on the artifact says what is in it"
