"""Recovery: what may be done where a gate failed, the cheapest first, and what was tried. It reads and writes its own JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from edgekit.typed_json import MAY_BE_ABSENT

# What failed, and in words.
FAILURES: Mapping[str, str] = MappingProxyType(
    {
        "quantization": "quantization takes more accuracy than it may",
        "student": "the float student itself is not good enough: no way to quantize helps",
        "teacher": "the teacher itself is not good enough: no student of it will be",
        "speed": "the artifact is too slow",
        "size": "the artifact is too large",
    }
)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One thing that may be done: what, what to expect of it, how long it takes here (seconds, as `pipeline.cost` estimates), and
    the arguments that the same command gets for it; --format and --scheme among them are instead of all that it has."""

    name: str
    gain: str
    seconds: int
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What was seen of an artifact on the recovery split, or why it was not made.

    name: of its rung. seconds: that making and judging it took in this run. check: the worst of those that keep it from holding,
    else the one that is nearest to its limit, with what was measured, loss, interval and limit as in `evidence.Check`. holds:
    whether all checks that count are proven there, or seen to lose half of their limits at most; within: whether none is seen
    to lose more than its limit.
    """

    name: str
    seconds: float
    holds: bool = False
    within: bool = False
    check: str | None = None
    measured: int | float | str | None = None
    loss: float | None = None
    interval: tuple[float | None, float | None] | None = None
    limit: int | float | str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """What `build --recover` did: minutes that it had, prompts of the recovery split, what the artifact that failed does on them,
    then each rung in its turn; the one that was chosen, if any, why it stopped, and the arguments that keep the choice."""

    minutes: float
    prompts: int
    start: Tried
    tried: tuple[Tried, ...]
    chosen: str | None
    stopped: str
    keep: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Which kinds of failure there are (keys of FAILURES), what may be done about them, and what was done."""

    failures: tuple[str, ...]
    rungs: tuple[Rung, ...]
    ladder: Ladder | None = field(default=None, metadata=MAY_BE_ABSENT)
