"""What the host does for every probe: it sends artifact and question, starts the probe there, and checks what comes back."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.probes.lines import Lines
from edgekit.probes.probe import Answer, Question
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.probe import PROTOCOL
from edgekit.workspace import file_sha256

if TYPE_CHECKING:
    from edgekit.devices import Device, Finished

_OUTPUTS = "measured/outputs.npz"
# What a process ends with that the system kills for want of memory: SIGKILL, by itself or by way of a shell.
_KILLED = {-9, 137}
_ILLEGAL = {-4, 132}
# What an engine, NumPy, Python or C++ says where it gets no memory.
_NO_MEMORY = re.compile(r"MemoryError|bad[_ ]alloc|(?:annot|ailed to|nable to|an't) allocate\b")


@dataclass(frozen=True, kw_only=True)
class Program:
    """How a probe is started on a device, and what is said where it fails.

    command: less the request's path, which comes last. renew: the command line of edgekit that puts this machine's version of the
    engine there. version: of the engine that must answer, where it is not this machine's. explain: what a last line on standard
    error means; None where it says nothing more.
    """

    command: Sequence[str]
    renew: str
    env: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    explain: Callable[[str], str | None] = lambda _last: None


def exchange(device: Device, question: Question, program: Program) -> Answer:
    """Send the artifact and the question to the device, run the probe on them there; what it said and made.

    Raises DeviceFailed where it does not finish, and for lines that are no answer to this question.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        request, result = Path(scratch, "request"), Path(scratch, "result")
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
        ended = device.run([*program.command, f"{pushed}/request.json"], timeout_s=question.timeout_s, env=program.env)
        events, numbers = read_lines(ended.stdout)
        if ended.returncode != 0 or (numbers is not None and "done" not in events):
            raise DeviceFailed(f"{question.file}: {why(ended, program)}")
        problem = _doubt(events, numbers, question, request / "request.json")
        if problem := problem or _other_version(device, events, program):
            raise DeviceFailed(f"{device.identity}: {question.file}: {problem}")
        if question.request["timing"].get("only"):
            return Answer(lines=Lines(events=events), arrays={})
        device.fetch(Path(_OUTPUTS).parent.as_posix(), result)
        if file_sha256(result / Path(_OUTPUTS).name) != events["done"]["outputs"]:
            raise DeviceFailed(f"{device.identity}: {_OUTPUTS}: another sha256 than the probe wrote; run it again")
        with np.load(result / Path(_OUTPUTS).name, allow_pickle=False) as arrays:
            return Answer(lines=Lines(events=events), arrays={name: arrays[name] for name in arrays.files})


def read_lines(stdout: str) -> tuple[dict[str, dict[str, object]], list[object] | None]:
    """The lines by event, and their numbers; None where one that begins as a line of the protocol is none."""
    events: dict[str, dict[str, object]] = {}
    numbers: list[object] = []
    for line in stdout.splitlines():
        if not line.startswith("{"):
            continue  # what a library says
        try:
            event = json.loads(line)
        except ValueError:
            return events, None
        numbers.append(event.pop("seq", None))
        events[str(event.pop("event", ""))] = event
    return events, numbers


def _doubt(
    events: Mapping[str, Mapping[str, object]], numbers: list[object] | None, question: Question, request: Path
) -> str | None:
    """Why this is no answer to this question; None where it is."""
    done = events.get("done", {})
    if numbers is None or numbers != list(range(len(numbers))) or len(events) != len(numbers):
        return "what the probe said is garbled: lines are damaged, missing or of another probe; run it again"
    if done.get("protocol") != PROTOCOL:
        return f"the probe there speaks version {done.get('protocol')} of its protocol, not {PROTOCOL}"
    if done.get("request") != file_sha256(request):
        return "the probe answered another question; does another edgekit work there? Run it again"
    if done.get("file") != (question.sha256 or file_sha256(question.file)):
        return (
            "the artifact that ran there has another sha256 than this one: nothing that it answered counts; run edgekit devices"
            " clean, then build again"
        )
    return None


def _other_version(device: Device, events: Mapping[str, Mapping[str, object]], program: Program) -> str | None:
    """What is wrong with the version of a remote device's engine: the artifact was made for, and checked with, the one here."""
    load = events["load"]
    there = str(load["version"])
    if program.version is not None:
        return (
            None
            if there == program.version
            else f"{load['runtime']} {there} answered, not {program.version}; run it again"
        )
    try:
        here = RUNTIMES[str(load["runtime"])].version() if device.REMOTE else None
    except EdgekitError:
        return None
    if here is None or here.split(".")[:2] == there.split(".")[:2]:
        return None
    return f"{load['runtime']} {there} is installed there, and {here} here; run: {program.renew}"


def why(ended: Finished, program: Program) -> str:
    """Why a probe ended otherwise than it should, and what to do."""
    code = ended.returncode
    last = next(
        (line.strip() for line in reversed(ended.stderr.splitlines()) if line.strip()), "nothing on standard error"
    )
    if code in _KILLED:
        return (
            "the system killed the probe, most likely for want of memory; free some, or use a smaller student or scheme"
        )
    if code in _ILLEGAL:
        return (
            "an instruction that this CPU does not have (SIGILL): the engine there was built for a newer one; run:"
            f" {program.renew}"
        )
    lasts = ended.stderr.split("\n")[-8:]
    if short := next((line.strip() for line in reversed(lasts) if _NO_MEMORY.search(line)), None):
        return f"the probe got no more memory ({short[-200:]}); free some, or use a smaller student or scheme"
    told = program.explain(last)
    return (
        told
        or f"the probe ended with exit code {code}: {last[:400]}; `edgekit inspect` on the artifact says what is in it"
    )
