"""Measurements are kept in the user's state: measuring an artifact again until it passes is several looks at one thing.

`<state>/measured/<key>/<name>.json`, a file for each measurement: {"processes": [{times, first, neighbours}], "disturbed":
[reason]}. The key is of what was measured where; nothing but the times' judgement reads it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgekit.errors import EdgekitError
from edgekit.schema import dump_json, read_json
from edgekit.state import state_folder
from edgekit.typed_json import read_table, to_table
from edgekit.verify.measurements import Measurements, Timed
from edgekit.workspace import fingerprint, make_folder, write_atomically

# What tells machines apart that have one identity, as every "local" one has: a new kernel or Python is the same machine.
_DEVICE: tuple[Literal["arch", "cpu", "part", "cores", "memory_mb"], ...] = (
    "arch",
    "cpu",
    "part",
    "cores",
    "memory_mb",
)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One measurement's timed calls, and why they prove nothing of a quiet machine."""

    processes: tuple[Timed, ...]
    disturbed: tuple[str, ...]


def keep(
    measured: Measurements, *, device: str, artifact: str, options: Mapping[str, object], disturbed: Sequence[str]
) -> Measurements:
    """The same with the processes of earlier measurements of this artifact there; this one is kept for later ones.

    device: its identity, so that no other board's measurements count. artifact: the digest of its file. disturbed: why this one
    proves nothing of a quiet machine; it is kept, and does not count later. Raises EdgekitError where the state folder cannot be
    read or written.
    """
    folder = _folder(measured, device, artifact, options)
    found = _with_earlier(measured, folder)
    make_folder(folder)
    own = Kept(processes=measured.processes, disturbed=tuple(disturbed))
    write_atomically(folder / f"{uuid.uuid4().hex}.json", dump_json(to_table(own)))
    return found


def with_earlier(measured: Measurements, *, device: str, artifact: str, options: Mapping[str, object]) -> Measurements:
    """The same as `keep` gives, of a measurement that is not yet kept."""
    return _with_earlier(measured, _folder(measured, device, artifact, options))


def _with_earlier(measured: Measurements, folder: Path) -> Measurements:
    earlier = [kept for kept in map(_read, sorted(folder.glob("*.json"))) if not kept.disturbed]
    return replace(
        measured,
        earlier=tuple(process for kept in earlier for process in kept.processes),
        measurement=len(earlier) + 1,
    )


def _folder(measured: Measurements, device: str, artifact: str, options: Mapping[str, object]) -> Path:
    key = {
        "artifact": artifact,
        "runtime": to_table(measured.runtime),
        "options": dict(options),
        "shape": to_table(measured.shape),
        "first": measured.real_lengths[:1] if measured.generation else None,
        "device": {name: measured.device[name] for name in _DEVICE} | {"identity": device},
    }
    return state_folder() / "measured" / fingerprint(key)


def _read(path: Path) -> Kept:
    try:
        return read_table(Kept, read_json(path), str(path))
    except EdgekitError as wrong:
        raise EdgekitError(f"{path}: not a measurement that edgekit kept ({wrong.message}); remove it") from wrong
