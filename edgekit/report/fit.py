"""The candidates of `[student] fit = true` as lines: what each would take, and why it is or is not chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgekit.cost import Candidate, Fit
from edgekit.report.figures import human_bytes

# Candidates that are shown beside the chosen one.
_ABOVE, _BELOW = 6, 3


def describe_student(keys: Mapping[str, int]) -> str:
    """A candidate's student in words: "3 layers, intermediate 768"."""
    layers = {key: value for key, value in keys.items() if key == "layers"}
    told = [f"{value} layer{'' if value == 1 else 's'}" for value in layers.values()]
    return ", ".join([*told, *(f"{key} {value}" for key, value in keys.items() if key not in layers)])


def fit_lines(fit: Fit) -> Iterator[str]:
    """The candidates around the choice, and why each is or is not chosen, the largest first."""
    first, last = max(fit.chosen - _ABOVE, 0), fit.chosen + 1 + _BELOW
    if first:
        yield f"{first} more that are larger: too large or too slow"
    for index, one in enumerate(fit.candidates[first:last], first):
        figures = ", ".join(
            f"{key.removesuffix('_ms')} {_figure(key, value)}"
            for key, value in one.limits.items()
            if key not in {"bytes", "memory_mb", "tokens_per_second"}
        )
        more = f" (up to {human_bytes(one.bytes_most)})" if one.bytes_most != one.bytes else ""
        told = f"{human_bytes(one.bytes)}{more}, {one.memory_mb:.0f} MB of memory, {figures}"
        yield f"{describe_student(one.student)}, {one.scheme}: {told}: {why(fit, index)}"
    if (rest := len(fit.candidates) - last) > 0:
        yield f"{rest} more that are not larger than the chosen one"


def why(fit: Fit, index: int) -> str:
    """Why a candidate is or is not chosen."""
    one = fit.candidates[index]
    if index == fit.chosen:
        return "chosen: the largest student that keeps the budget"
    if one.misses:
        return ", ".join(f"{times:.2f} x the {key} that it may have" for key, times in one.misses.items())
    return "fits, and is not larger than the chosen one"


def describe_misses(one: Candidate, allowed: Mapping[str, float]) -> str:
    """What a candidate misses of a budget's limits, and by how much."""
    return "; ".join(
        f"{key}: {_figure(key, one.bytes_most if key == 'bytes' else one.limits[key])}, where {_figure(key, allowed[key])} are"
        f" allowed ({times:.2f} times too much)"
        for key, times in one.misses.items()
    )


def _figure(key: str, value: float) -> str:
    if key == "bytes":
        return human_bytes(round(value))
    unit = {"memory_mb": "MB", "tokens_per_second": "a second"}.get(key, "ms")
    return f"{value:.3g} {unit}"
