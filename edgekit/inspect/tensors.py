"""Tensors in a few lines: how many of each type, and the largest."""

from __future__ import annotations

import math
from collections.abc import Iterable

MOST_TENSORS = 8


Shape = tuple[int, ...]


def by_type(tensors: Iterable[tuple[str, Shape, int]]) -> dict[str, dict[str, int]]:
    """Tensors of (type, shape, bytes), counted per type, the heaviest type first."""
    types: dict[str, dict[str, int]] = {}
    for kind, shape, size in tensors:
        entry = types.setdefault(kind, {"tensors": 0, "elements": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["elements"] += math.prod(shape)
        entry["bytes"] += size
    return dict(sorted(types.items(), key=lambda item: -item[1]["bytes"]))


def largest(tensors: Iterable[tuple[str, str, Shape, int]]) -> list[dict[str, object]]:
    """The heaviest tensors of (name, type, shape, bytes)."""
    ranked = sorted(tensors, key=lambda entry: (-entry[3], entry[0]))[:MOST_TENSORS]
    return [{"name": name, "type": kind, "shape": list(shape), "bytes": size} for name, kind, shape, size in ranked]
