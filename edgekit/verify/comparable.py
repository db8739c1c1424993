"""May the times of a measurement be compared with others'? What makes people distrust published numbers is asked of the record.

Was it warm; which temperature, governor and power source before and after; what else ran; which bytes ran; how many tokens, and
why did an answer end; how far do processes lie apart. What a device does not tell is shown as null and is no reason. This is
stricter than what keeps a limit from being judged (`neighbours.disturbances`): a program on a core of its own slows nothing
that can be proven, but two numbers, one with it and one without, are not of one machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.runtimes import neighbours
from edgekit.times import FOREIGN, Answered, Comparable, Conditions
from edgekit.verify import latency

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.conditions import State
    from edgekit.verify.measurements import Timed

# The cores' worth of other programs' work that a quiet machine stays below: its own services, and this measurement's.
_BESIDE = 0.25
# Processes whose medians differ by more are not of one thing.
_SPREAD = 1.25
# Governors that keep the clock at its lowest. By "powersave" these drivers mean that they choose the clock by the work.
_SLOW_GOVERNORS = {"powersave"}
_CHOOSING_DRIVERS = {"intel_pstate", "amd-pstate-epp", "amd_pstate_epp"}
_LOADS = ("others", "waited", "steal", "throttled", "load", "stepped")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What should have run: the sha256 of the artifact's file, its threads, and how many processes were planned at most. foreign:
    why the machine may not vouch for the target."""

    sha256: str
    threads: int
    planned: int
    foreign: Sequence[str] = ()


def judge(processes: Sequence[Timed], asked: Asked, answers: Answered | None = None) -> Comparable:
    """Whether the times of these processes may be compared with others', and the record that says so."""
    reasons = why_not(processes, asked)
    first, told = processes[0], [process.neighbours for process in processes]
    ran = {process.sha256 for process in processes}
    return Comparable(
        comparable="no" if reasons else "yes",
        reasons=tuple(reasons),
        start=_start(processes),
        before=_conditions(first.before),
        after=_conditions(processes[-1].after),
        load={key: _rounded(neighbours.mean(told, key)) for key in _LOADS},
        sha256=ran.pop() if len(ran) == 1 else None,
        processes=len(processes),
        spread=round(spread(processes), 4),
        answers=answers,
    )


def why_not(processes: Sequence[Timed], asked: Asked) -> list[str]:
    """Why the times of these processes may not be compared with others'; empty where they may."""
    told = [process.neighbours for process in processes]
    found = [
        *_bytes(processes, asked.sha256),
        *cut(processes, asked.planned),
        *neighbours.disturbances(told, asked.threads),
    ]
    beside = neighbours.mean(told, "others")
    if beside is not None and beside > _BESIDE and not any("other programs" in reason for reason in found):
        found.append(f"other programs worked on {beside:.1f} cores beside it")
    if step := neighbours.stepped(told):
        found.append(f"the clock of the day was set by {step:+.3g} s while it was timed")
    states = [state for process in processes for state in (process.before, process.after) if state is not None]
    found += _states(states, asked.threads)
    if len(processes) == 1:
        found.append("one process: nobody knows how far others would lie apart")
    elif spread(processes) > _SPREAD:
        found.append(f"the medians of its processes differ by a factor of {spread(processes):.2f}")
    if asked.foreign:
        found.append(f"{FOREIGN}: {'; '.join(asked.foreign)}")
    return found


def cut(processes: Sequence[Timed], planned: int) -> list[str]:
    """Why a measurement is not whole: processes, or calls of one, are missing."""
    found = []
    if len(processes) not in latency.looks(planned):
        found.append(f"{len(processes)} of {planned} processes: it was stopped before its end")
    for process in processes:
        spell = process.spell
        if spell is not None and len(process.times) != spell["calls"]:
            found.append(f"{len(process.times)} of {spell['calls']} calls are there: the record was cut")
            break
    return found


def spread(processes: Sequence[Timed]) -> float:
    """The largest of the processes' medians by the smallest."""
    levels = [latency.level(process.times, 0.5) for process in processes]
    return max(levels) / max(min(levels), 1e-9)


def count_answers(offsets: NDArray[np.integer], longest: int) -> Answered:
    """How answers of a decoder ended. offsets [answers + 1]: where each begins; longest: after so many tokens it is stopped."""
    lengths = [int(end) - int(begin) for begin, end in itertools.pairwise(offsets)]
    ended = sum(length >= longest for length in lengths)
    return Answered(tokens=sum(lengths), stopped=len(lengths) - ended, cut=ended)


def lines(found: Comparable) -> list[str]:
    """In words, for the notes of a report."""
    if found.comparable == "yes":
        return ["comparable: yes"]
    return [f"comparable: no ({'; '.join(found.reasons)})"]


def _bytes(processes: Sequence[Timed], wanted: str) -> list[str]:
    ran = {process.sha256 for process in processes}
    if None in ran:
        return ["the device does not tell which bytes ran"]
    if other := sorted(digest for digest in ran if digest not in {wanted, None}):
        return [f"another file ran than the one that was built: sha256 {str(other[0])[:12]}..., not {wanted[:12]}..."]
    return []


def _states(states: Sequence[State], threads: int) -> list[str]:
    """What the machine was like that makes a time its own, or that changed."""
    found = []
    limits = {state["limit_cores"] for state in states}
    if len(limits) > 1:
        shown = " and ".join(
            "all" if limit is None else f"{limit:g}" for limit in sorted(limits, key=lambda it: it or 1e9)
        )
        found.append(f"the cores that its control group may take changed: {shown}")
    elif limits and (limit := limits.pop()) is not None and limit < threads:
        found.append(f"its control group may take {limit:g} cores, and it has {threads} threads")
    governors = {state["governor"] for state in states}
    if len(governors) > 1:
        found.append(f"the governor changed: {' and '.join(sorted(map(str, governors)))}")
    elif governors & _SLOW_GOVERNORS and not {state["driver"] for state in states} & _CHOOSING_DRIVERS:
        found.append(f"the governor {governors.pop()} keeps the clock low")
    powers = {state["power"] for state in states}
    if len(powers) > 1:
        found.append(f"the power source changed: {' and '.join(sorted(map(str, powers)))}")
    elif powers == {"battery"}:
        found.append("it ran on a battery")
    return found


def _start(processes: Sequence[Timed]) -> str:
    counts = [len(process.warmup) for process in processes if process.warmup is not None]
    return f"warm, after {1 + min(counts)} calls" if counts else "warm"


def _conditions(state: State | None) -> Conditions | None:
    return None if state is None else Conditions(**state)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
