"""What a report says of times beside the judged ones: whether they may be compared, how they hold out, and the best setting.

Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgekit.typed_json import MAY_BE_ABSENT

# How the reason begins that a machine may not vouch for a target. Within one class of devices times may be compared all the same.
FOREIGN = "not the target's machine"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a machine was like: degrees Celsius of its hottest zone, MHz, the governor with its driver, "mains" or "battery", and
    the cores' worth of time that it gave; None where it does not tell."""

    temperature_c: float | None
    clock_mhz: float | None
    governor: str | None
    driver: str | None
    power: str | None
    limit_cores: float | None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """How many tokens a decoder answered with, how many answers ended for a stop token and how many for their length, and the
    seed: None, because the likeliest token is taken each time."""

    tokens: int
    stopped: int
    cut: int
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparable:
    """Whether the times may be compared with others', why not, and what answers for it.

    start: of the judged calls, and how many calls warmed each process up. before, after: the machine around all processes. load:
    means over the processes (see `runtimes.neighbours`). sha256: of the file that ran, computed where it ran; None: not told.
    processes: how many timed it; spread: the largest of their medians by the smallest.
    """

    comparable: Literal["yes", "no"]
    reasons: tuple[str, ...]
    start: str
    before: Conditions | None
    after: Conditions | None
    load: Mapping[str, float | None]
    sha256: str | None
    processes: int
    spread: float
    answers: Answered | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """How long a call should take by what the machine can do and how long it took, ms (see `verify.roofline`).

    ratio: the measured speed by the predicted one, below 1 where it is slower. bound: what most of the prediction is. note: why
    both differ, where the ratio is outside 0.6 to 1.1; "unexplained" where no fact says why.
    """

    predicted_ms: float
    measured_ms: float
    ratio: float
    bound: Literal["compute", "memory", "dispatch"]
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A point of a curve of sustained calls: seconds since it began, the calls in it, quantiles in ms, and the machine then."""

    seconds: float
    calls: int
    p50: float
    p95: float
    temperature_c: float | None
    clock_mhz: float | None
    slowed: float | None


@dataclass(frozen=True, kw_only=True)
class Sustained:
    """Calls without a pause for `seconds`, of `asked_s`; ms.

    burst: of the first calls after a rest. last: of the last quarter of the curve. slowdown: last by burst, of their medians.
    throttled: whether heat or the power supply lowered the clock; None where the system does not tell. cold: opening a file that
    the system had dropped from its memory, and the first call.
    """

    asked_s: float
    seconds: float
    burst_p50: float
    burst_p95: float
    last_p50: float
    last_p95: float
    slowdown: float
    throttled: bool | None
    cold: float
    curve: tuple[Moment, ...]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A setting of a sweep: threads, the cores that they may use (None: all), and its median call in ms."""

    threads: int
    cpus: tuple[int, ...] | None
    p50: float


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The setting that is best for an artifact on a device: the fewest threads that are nearly as fast as the fastest."""

    artifact: str
    runtime: str
    version: str
    device: str
    cpu: str
    sequence: int
    best: Tried
    tried: tuple[Tried, ...]
