"""The figures of a report in words: bytes, points, shares, flips, with their units."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgekit.evidence import Check, Comparison

MISSING = "-"
# Metrics whose losses are no shares of prompts: of a cosine, in nats, of a ratio.
AS_THEY_ARE = ("cosine", "kl", "perplexity")

# Limits that are the least, not the most.
AT_LEAST = frozenset({"provider", "offload", "tokens_per_second", "accuracy"})


def human_bytes(count: float | None) -> str:
    """A number of bytes with its unit: 1 MB is 10^6 bytes."""
    if count is None:
        return MISSING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def pair(comparison: Comparison) -> str:
    """Which two models a comparison compares: "artifact to student"."""
    return f"{words(comparison.candidate)} to {words(comparison.reference)}"


def number(value: object, digits: int = 4) -> str:
    """A value as a table shows it: a number to so many significant digits, None as a dash, anything else as text."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def percent(fraction: float | None) -> str:
    """A fraction as percent with one decimal."""
    return MISSING if fraction is None else f"{100 * fraction:.1f} %"


def flips(counts: Mapping[str, int]) -> str:
    """Flips in words: counts by direction."""
    return ", ".join(f"{key} {number(count)}" for key, count in counts.items())


def words(key: str) -> str:
    """A key as people write it."""
    return key.replace("_", " ")


def share(fraction: float) -> str:
    """A fraction as percent to three digits, however small."""
    points = 100 * fraction
    return "< 0.001 %" if 0 < points < 0.001 else f"{points:.3g} %"


def lost(metric: str, value: float | None, unit: str = "") -> str:
    """A loss: of a cosine, a divergence or a ratio as it is, of shares of prompts in percentage points."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "open"
    if metric.startswith(AS_THEY_ARE):
        return f"{round(value, 4) + 0.0:.4f}"
    return f"{round(100 * value, 2) + 0.0:.2f}{unit}"


def check_figures(check: Check) -> list[str]:
    """A check's measured value, loss, bound, limit and interval, with their units."""
    name = check.name
    if check.loss is not None:
        measured = number(check.measured) if name.startswith(AS_THEY_ARE) else percent(_figure(check.measured))
        losses = (check.loss, check.bound, _figure(check.limit))
        cells = [measured, *(lost(name, value, " points") for value in losses)]
        ends = [lost(name, end) for end in check.interval or ()]
    else:
        limit = _with_unit(name, check.limit)
        limit = f"at least {limit}" if name in AT_LEAST else limit
        cells = [_with_unit(name, check.measured), MISSING, _with_unit(name, check.bound), limit]
        ends = [number(end, 3) for end in check.interval or ()]
    return [*cells, f"[{', '.join(ends)}]" if set(ends) - {MISSING} else MISSING]


def _figure(value: float | str | None) -> float | None:
    """What a check of a loss measured: always a number, where it is there."""
    return None if isinstance(value, str) else value


def _with_unit(name: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return number(value)
    if name.endswith("bytes"):
        return human_bytes(value)
    if name in {"provider", "arithmetic", "accuracy"}:
        return share(value)
    unit = next((f" {unit}" for end, unit in (("ms", "ms"), ("mb", "MB")) if name.endswith(end)), "")
    return f"{number(value, 3)}{unit}"
