"""What was measured, over time: one JSON line for each verify, in a file for each artifact of a recipe on a class of devices.

`<state>/history/<recipe>-<target>-<key>.jsonl`. The key is of the recipe's and the target's name, format, scheme and runtime, the
text's length, and what tells devices apart (`CLASS`): two boards of one make share a file, a new student or engine is the next
point of its line. Two projects whose recipes and targets have the same names share it too.

A line is written by one write(2) to the end of the file, behind a lock, and synced: what was written stays whatever is killed. Of
a line that a power cut tore, the rest is skipped, and the next one begins a line of its own.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, Unpack

from edgekit.errors import EdgekitError
from edgekit.evidence import Report, RuntimeVersion, Shape
from edgekit.state import state_folder
from edgekit.times import FOREIGN
from edgekit.typed_json import MAY_BE_ABSENT, read_table, to_table
from edgekit.workspace import disk_error, fingerprint, locked, make_folder

log = logging.getLogger("edgekit")

# What tells a class of devices apart, of what a machine says of itself.
CLASS = ("arch", "cpu", "part", "cores", "memory_mb")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One comparison of the report: its scores, its loss with bounds, and how many prompts' answers changed."""

    reference: str
    metric: str
    score: float | None
    reference_score: float | None
    lo: float | None
    bound: float | None
    prompts: int
    flips: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One verify: what was judged, where, and what was found.

    at: when, UTC. device: the class's facts (`CLASS`); identity: which one. prompts: a digest of those that it answered. tools:
    versions, edgekit's and those of the libraries that answers depend on. p50_ms, p95_ms: of each process that timed it.
    disturbed: why its times prove nothing. energy_j: net, for each request or token; None where no meter is. incomparable: why
    its times may not be compared with those of its line (see `verify.comparable`); None: written before edgekit asked.
    """

    at: str
    recipe: str
    target: str
    format: str
    scheme: str
    sha256: str
    bytes: int
    runtime: RuntimeVersion
    tools: Mapping[str, str]
    device: Mapping[str, object]
    identity: str
    shape: Shape
    p50_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    memory_mb: float | None
    accuracy: float | None
    prompts: str
    comparisons: tuple[Compared, ...]
    verdict: str
    disturbed: tuple[str, ...]
    energy_j: float | None = None
    incomparable: tuple[str, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)

    @property
    def counts(self) -> bool:
        """Whether its times are compared with others'."""
        return not self.disturbed and not self.incomparable

    @property
    def line(self) -> str:
        """Which line of measurements it belongs to: equal for all that can be compared."""
        keys = (self.recipe, self.target, self.format, self.scheme, self.runtime.name, self.shape.sequence)
        return fingerprint([*keys, {name: self.device.get(name) for name in CLASS}])[:12]


class Origin(TypedDict):
    """What a report does not say of itself (see `Entry`)."""

    recipe: str
    tools: Mapping[str, str]
    identity: str
    prompts: str


def entry_of(report: Report, **origin: Unpack[Origin]) -> Entry:
    """A report as a point of its line, now."""
    return Entry(
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        recipe=origin["recipe"],
        target=report.target,
        format=report.artifact.format,
        scheme=report.artifact.scheme,
        sha256=report.artifact.sha256,
        bytes=report.artifact.bytes,
        runtime=report.runtime,
        tools=dict(origin["tools"]),
        device={name: report.device.get(name) for name in CLASS},
        identity=origin["identity"],
        shape=report.shape,
        p50_ms=tuple(process.p50 for process in report.latency_processes_ms),
        p95_ms=tuple(process.p95 for process in report.latency_processes_ms),
        memory_mb=report.memory_mb,
        accuracy=report.accuracy.get("artifact"),
        prompts=origin["prompts"],
        comparisons=tuple(
            Compared(
                reference=one.reference,
                metric=one.metric,
                score=one.score,
                reference_score=one.reference_score,
                lo=one.lo,
                bound=one.bound,
                prompts=one.prompts,
                flips=sum(one.flips.values()),
            )
            for one in report.comparisons
        ),
        verdict=report.verdict,
        disturbed=report.disturbed,
        energy_j=report.energy_j.net if report.energy_j else None,
        incomparable=_incomparable(report),
    )


def _incomparable(report: Report) -> tuple[str, ...] | None:
    """A line is of one class of devices: that it is not the target's is no reason here, unless it is no real one at all."""
    if report.comparable is None:
        return None
    keep = bool(report.emulated)
    return tuple(reason for reason in report.comparable.reasons if keep or not reason.startswith(FOREIGN))


def folder() -> Path:
    """Where the user's history lies."""
    return state_folder() / "history"


def append(entry: Entry) -> Path:
    """Write an entry at the end of its line's file; the file. Raises EdgekitError where it cannot be written."""
    path = folder() / f"{entry.recipe}-{entry.target}-{entry.line}.jsonl"
    make_folder(path.parent)
    text = json.dumps(to_table(entry), ensure_ascii=False, sort_keys=True) + "\n"
    with locked(path.with_suffix(".lock"), f"{path}: another edgekit is writing it; waiting for it"):
        try:
            _append(path, text.encode())
        except OSError as failed:
            raise disk_error(path, failed) from failed
    return path


def _append(path: Path, line: bytes) -> None:
    with path.open("ab+", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
        os.fsync(stream.fileno())


def read(path: Path) -> list[Entry]:
    """The entries of a file, or of all .jsonl files of a folder, oldest first. Lines that are no entries are skipped with a
    warning.

    Raises EdgekitError where there is no such file or folder, or no file in it.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise EdgekitError(f"{path}: no .jsonl file in it: edgekit build and edgekit verify write them into {folder()}")
    return sorted((entry for file in files for entry in _read_file(file)), key=lambda entry: entry.at)


def _read_file(path: Path) -> list[Entry]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as failed:
        raise EdgekitError(f"{path}: cannot be read: {failed.strerror or failed}") from failed
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(read_table(Entry, json.loads(line), f"{path}: line {number}"))
        except (ValueError, EdgekitError) as wrong:
            log.warning("%s: line %d is left out: %s", path, number, str(wrong).splitlines()[0][:200])
    return found


def by_line(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The entries of each line, oldest first."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.line, []).append(entry)
    return found
