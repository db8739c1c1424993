"""What a probe says, line by line: the events of `edgekit.runtimes.probe` and `edgekit.runtimes.generation` as dataclasses.

Times are milliseconds, memory MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from edgekit.evidence import Shape
from edgekit.runtimes.conditions import State
from edgekit.runtimes.machine import Machine
from edgekit.runtimes.phases import Setting, Window
from edgekit.runtimes.placement import Work
from edgekit.runtimes.timing import Spell
from edgekit.typed_json import MAY_BE_ABSENT, read_table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Neighbours = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Load:
    """The artifact was opened, by which runtime, and the execution providers that are there."""

    ms: float
    runtime: str
    version: str
    available: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class First:
    """The first call, and how long ago the process was started when it had ended; None where nobody tells."""

    ms: float
    alive_ms: float | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class Calls:
    """The timed calls (`latency`), and what the machine did meanwhile.

    warmup: the calls before them; spell: how they went; before, after: what the machine was like (see `runtimes.conditions`).
    A probe that does not tell these leaves them out.
    """

    shape: Shape
    ms: tuple[float, ...]
    neighbours: Neighbours
    warmup: tuple[float, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    spell: Spell | None = field(default=None, metadata=MAY_BE_ABSENT)
    before: State | None = field(default=None, metadata=MAY_BE_ABSENT)
    after: State | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class RealCalls:
    """One call of each text at its own length (`latency_real`)."""

    lengths: tuple[int, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The process's peak (`memory`), of a decoder also before and after the artifact was opened; None where nobody tells."""

    peak_mb: float | None
    baseline_mb: float | None = field(default=None, metadata=MAY_BE_ABSENT)
    loaded_mb: float | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class MachineSpeed:
    """How fast the machine is (`machine`), and what it did while that was measured."""

    speed: Mapping[str, float]
    neighbours: Neighbours


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Times to the first token, a row of them for each prompt length, the first call's first."""

    lengths: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    cold: bool
    threads: int
    threads_batch: int


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Times of each new token behind `depth` tokens; the rest is as in `Calls`."""

    depth: int
    new: int
    ms: tuple[float, ...]
    neighbours: Neighbours
    threads: int
    threads_batch: int
    spell: Spell | None = field(default=None, metadata=MAY_BE_ABSENT)
    before: State | None = field(default=None, metadata=MAY_BE_ABSENT)
    after: State | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Tokens per second by how many threads there are (`threads`)."""

    length: int
    prefill: Mapping[str, float]
    decode: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a tokenizer there reads the prompts' texts (`tokenizer`): how many it was given, and the indices of those that become
    other ids than were sent."""

    texts: int
    differ: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Endless:
    """Bursts after rest and the curve of calls without a pause (`sustained`, see `runtimes.phases`)."""

    asked_s: float
    seconds: float
    bursts: tuple[tuple[float, ...], ...]
    curve: tuple[Window, ...]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """The settings of a sweep and, of each, the medians of its rounds (`tuning`)."""

    settings: tuple[Setting, ...]
    ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a call or a new token costs (`energy`): see `edgekit.runtimes.energy`."""

    net: float
    gross: float
    method: str
    idle_w: float
    calls: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The line `energy`: what was measured or, where that is None, why nothing was."""

    energy_j: Spent | None
    why: str | None


@dataclass(frozen=True, kw_only=True)
class _Device:
    device: Machine


@dataclass(frozen=True, kw_only=True)
class _Work:
    work: Work


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A probe's lines by event, in their order. Reading one raises EdgekitError where it is not there or not what it should be:
    the probe on the device is of another edgekit."""

    events: Mapping[str, Mapping[str, object]]

    def read(self, event: str, kind: type[T]) -> T:
        """One line."""
        return read_table(kind, self.events.get(event), f"the probe's line {event}")

    @property
    def device(self) -> Machine:
        """What the machine is."""
        return read_table(_Device, {"device": self.events.get("device")}, "the probe's lines").device

    @property
    def work(self) -> Work:
        """What one call does."""
        return read_table(_Work, {"work": self.events.get("work")}, "the probe's lines").work

    @property
    def sha256(self) -> str | None:
        """Of the file that ran, as computed there (`done`); None where the probe does not say it."""
        said = self.events.get("done", {}).get("file")
        return said if isinstance(said, str) else None

    @property
    def energy(self) -> Energy:
        """What a call costs; a probe that reads no meter says nothing of it."""
        if "energy" not in self.events:
            return Energy(energy_j=None, why="not measurable here: this probe reads no meter")
        return self.read("energy", Energy)
