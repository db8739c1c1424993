"""Times on a target, predicted of those that a few samples took on a machine; and which limits of a budget they keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.target import QUANTILES, Budget, Hardware

# The share of a limit of time that a prediction may take: `benchmarks/fit.py` shows how far predictions are off.
ROOM = 1 / 1.1
# Slow calls by median ones, where nothing else runs: of 40 reports of small encoders 1.05 to 1.2 at p95, 1.3 to 1.7 at p99.
TAILS = {"p50_ms": 1.0, "p95_ms": 1.2, "p99_ms": 1.7}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a call does: operations, bytes of weights that it reads, and whether it multiplies floats."""

    operations: float
    bytes: float
    in_floats: bool


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machine that was timed (`speed` as measured there, with so many threads) beside the target."""

    hardware: Hardware
    speed: Mapping[str, float]
    threads: int
    target_threads: int

    def ratio(self, key: str) -> float:
        """How many times as fast as the machine that was timed the target is, by what it states; of a speed that it does not
        state, by its floats; 1.0 where it states none."""
        stated = {name: getattr(self.hardware, name) for name in ("fp32_gflops", "int8_gops", "bandwidth_gbs")}
        known = {name: value / self.speed[name] for name, value in stated.items() if value and self.speed.get(name)}
        return float(known.get(key, known.get("fp32_gflops", 1.0)))

    def slower(self, work: Work) -> float:
        """How many times as long the target takes for a call: the rooflines of both machines (Williams et al., CACM 52, 2009),
        products in as many threads as each has, weights at the speed of a copy."""
        key = "fp32_gflops" if work.in_floats else "int8_gops"
        if not {key, "read_gbs"} <= self.speed.keys():
            return 1.0
        compute, memory = work.operations / self.speed[key], work.bytes / self.speed["read_gbs"]
        here = max(compute / self.threads, memory)
        there = max(compute / self.ratio(key) / self.target_threads, memory / self.ratio("bandwidth_gbs"))
        return there / here

    def float_ms(self, operations: float) -> float:
        """How much longer products take that stay float, in ms on the machine that was timed."""
        if not {"fp32_gflops", "int8_gops"} <= self.speed.keys():
            return 0.0
        each = 1 / self.speed["fp32_gflops"] - 1 / self.speed["int8_gops"]
        return operations * max(each, 0.0) / self.threads / 1e6


def line(points: Sequence[tuple[int, float]], at: float) -> float:
    """The value at a place of the line through the first and the last of these points, which falls nowhere and stays above 0."""
    (x, y), (x_last, y_last) = points[0], points[-1]
    slope = max((y_last - y) / (x_last - x), 0.0) if x_last > x else 0.0
    return max(y + slope * (at - x), 1e-6)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A sample that was timed: its blocks, the weights that every token is multiplied by, and its call in ms."""

    layers: int
    core: int
    ms: float


def time_of(wide: Sequence[Timed], narrow: Timed | None, layers: int, core: int) -> float:
    """The ms of a student of so many blocks and weights. wide: samples as wide as the teacher, the shallowest first; narrow: one
    of as many blocks as the last of them.

    As wide as the teacher, it lies on the line through `wide`. What a narrower one multiplies less takes it as much less, a
    weight, as the narrow sample was quicker: the rest of a block's time does not follow from its width. Without that sample every
    weight takes the same.
    """
    first, last = wide[0], wide[-1]
    points = [(one.core, one.ms) for one in wide]
    blocks = (last.core - first.core) / (last.layers - first.layers) if last.layers > first.layers else 0.0
    whole = first.core + blocks * (layers - first.layers)
    if narrow is None or narrow.core >= last.core:
        return line(points, core)
    each = max((last.ms - narrow.ms) / (last.core - narrow.core), 0.0)
    if last.core > first.core:
        each = min(each, max((last.ms - first.ms) / (last.core - first.core), 0.0))
    return max(line(points, whole) - each * (whole - core), 1e-6)


def find_limits(budget: Budget) -> dict[str, float]:
    """The limits that a budget states, by key."""
    keys = (*QUANTILES, "ttft_ms", "tokens_per_second", "memory_mb", "bytes")
    return {key: float(value) for key in keys if (value := getattr(budget, key)) is not None}


def find_misses(figures: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """By which factor each limit is missed; times have to stay as far below theirs as a prediction may be off."""
    found = {}
    for key, limit in limits.items():
        if key == "tokens_per_second":
            times = limit / (figures[key] * ROOM)
        else:
            times = figures[key] / (limit * (1.0 if key in {"bytes", "memory_mb"} else ROOM))
        if times > 1.0:
            found[key] = round(times, 4)
    return found
