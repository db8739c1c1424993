"""Two artifacts take turns on a device with Python: `edgekit.runtimes.turns` is started there, and its lines are checked."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import DeviceFailed
from edgekit.probes import python
from edgekit.probes.exchange import read_lines, why
from edgekit.runtimes.machine import Machine
from edgekit.runtimes.turns import NAMES, PROTOCOL
from edgekit.typed_json import read_table
from edgekit.workspace import file_sha256

if TYPE_CHECKING:
    from edgekit.devices import Device
    from edgekit.probes.lines import Neighbours

Side = tuple[Path, str, Mapping[str, object]]
"""A model's file, its runtime and the runtime's options."""
# A slow board may need minutes for a round; an hour is a hang.
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Answering:
    """What ran one side. load_ms: until it was ready."""

    runtime: str
    version: str
    threads: int | None
    load_ms: float


@dataclass(frozen=True, kw_only=True)
class _Turns:
    ms: tuple[tuple[float, float], ...]
    neighbours: tuple[Mapping[str, float | None], ...]


@dataclass(frozen=True, kw_only=True)
class _Device:
    device: Machine


@dataclass(frozen=True, kw_only=True)
class Round:
    """Pairs of times in ms, the first side's first, of one process for each side; what the machine is, and what each
    side saw of its neighbours."""

    device: Machine
    sides: tuple[Answering, Answering]
    ms: tuple[tuple[float, float], ...]
    neighbours: tuple[Neighbours, ...]


def take_turns(device: Device, sides: Sequence[Side], request: Mapping[str, object]) -> Round:
    """One round on the device. request: prompt, ids, tokens, first, pairs and seed of `edgekit.runtimes.turns`.

    Raises DeviceFailed where the device has no Python, where it does not finish, or where what it says is not the answer to this.
    """
    if device.PROBE != python.NAME:
        raise DeviceFailed(
            f"{device.identity}: runs no Python, in which two artifacts take turns; compare on local or ssh"
        )
    with (
        tempfile.TemporaryDirectory(prefix="edgekit-") as scratch,
        python.program(device, sides[0][1], "edgekit.runtimes.turns") as program,
    ):
        folder = Path(scratch)
        asked = [
            {"runtime": runtime, "file": f"{device.push(file.parent)}/{file.name}", "options": dict(options)}
            for file, runtime, options in sides
        ]
        (folder / "request.json").write_text(json.dumps({**request, "sides": asked}), encoding="utf-8")
        command = [*program.command, f"{device.push(folder)}/request.json"]
        ended = device.run(command, timeout_s=_TIMEOUT_S, env=program.env)
        where = " and ".join(str(file) for file, _, _ in sides)
        if ended.returncode != 0:
            raise DeviceFailed(f"{where}: {why(ended, program)}")
        lines, numbers = read_lines(ended.stdout)
        wanted = [file_sha256(file) for file, _, _ in sides]
        done = lines.get("done", {})
        if numbers is None or numbers != list(range(len(numbers))) or done.get("protocol") != PROTOCOL:
            raise DeviceFailed(f"{device.identity}: {where}: what was said there is garbled or cut; run it again")
        if done.get("files") != wanted or done.get("request") != file_sha256(folder / "request.json"):
            raise DeviceFailed(
                f"{device.identity}: {where}: other files ran there than these; run edgekit devices clean, then again"
            )
    about = "the lines of edgekit.runtimes.turns"
    turns = read_table(_Turns, lines.get("turns"), f"{about}: turns")
    first, second = (read_table(Answering, lines.get(name), f"{about}: {name}") for name in NAMES)
    told = read_table(_Device, {"device": lines.get("device")}, about).device
    return Round(device=told, sides=(first, second), ms=turns.ms, neighbours=turns.neighbours)
