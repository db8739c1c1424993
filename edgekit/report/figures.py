"""The figures of a report in words: bytes, points, shares, flips, with their units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "-"
# Metrics whose losses are no shares of prompts: of a cosine, in nats, of a ratio.
AS_THEY_ARE = ("cosine", "kl", "perplexity")

Row = Mapping[str, Any]


def human_bytes(count: float | None) -> str:
    """A number of bytes with its unit: 1 MB is 10^6 bytes."""
    if count is None:
        return MISSING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def pair(comparison: Row) -> str:
    """Which two models a comparison compares: "artifact to float student"."""
    return f"{words(comparison.get('candidate', 'artifact'))} to {words(comparison['reference'])}"


def number(value: Any, digits: int = 4) -> str:
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


def flips(value: Any) -> str:
    """Flips in words, whatever their shape: a count, or counts by direction."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(count)}" for key, count in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " / ".join(number(count) for count in value)
    return number(value)


def words(key: Any) -> str:
    """A key as people write it."""
    return str(key).replace("_", " ")


def share(fraction: float) -> str:
    """A fraction as percent to three digits, however small."""
    told = 100 * fraction
    return "< 0.001 %" if 0 < told < 0.001 else f"{told:.3g} %"


def lost(metric: str, value: float | None, unit: str = "") -> str:
    """A loss: of a cosine, a divergence or a ratio as it is, of shares of prompts in percentage points."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "open"
    if metric.startswith(AS_THEY_ARE):
        return f"{round(value, 4) + 0.0:.4f}"
    return f"{round(100 * value, 2) + 0.0:.2f}{unit}"


def check_figures(check: Row) -> list[str]:
    """A check's measured value, loss, bound, limit and interval, with their units."""
    name = str(check["name"])
    if check.get("loss") is not None:
        measured = number(check.get("measured")) if name.startswith(AS_THEY_ARE) else percent(check.get("measured"))
        cells = [measured, *(lost(name, check.get(key), " points") for key in ("loss", "bound", "limit"))]
        ends = [lost(name, end) for end in check.get("interval") or ()]
    else:
        limit = _with_unit(name, check.get("limit"))
        limit = f"at least {limit}" if name in {"provider", "offload", "tokens_per_second", "accuracy"} else limit
        cells = [_with_unit(name, check.get("measured")), MISSING, _with_unit(name, check.get("bound")), limit]
        ends = [number(end, 3) for end in check.get("interval") or ()]
    return [*cells, f"[{', '.join(ends)}]" if set(ends) - {MISSING} else MISSING]


def _with_unit(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return number(value)
    if name.endswith("bytes"):
        return human_bytes(value)
    if name in {"provider", "arithmetic", "accuracy"}:
        return share(value)
    unit = next((f" {unit}" for end, unit in (("ms", "ms"), ("mb", "MB")) if name.endswith(end)), "")
    return f"{number(value, 3)}{unit}"
