"""Tensors in a few lines: how many of each type, and the largest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

MOST_TENSORS = 8


def by_type(tensors: Iterable[tuple[str, Any, int]]) -> dict[str, dict[str, int]]:
    """Tensors of (type, shape, bytes), counted per type, the heaviest type first."""
    found: dict[str, dict[str, int]] = {}
    for kind, shape, size in tensors:
        entry = found.setdefault(kind, {"tensors": 0, "elements": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["elements"] += math.prod(shape)
        entry["bytes"] += size
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def largest(tensors: Iterable[tuple[str, str, Any, int]]) -> list[dict[str, Any]]:
    """The heaviest tensors of (name, type, shape, bytes)."""
    ranked = sorted(tensors, key=lambda entry: (-entry[3], entry[0]))[:MOST_TENSORS]
    return [{"name": name, "type": kind, "shape": list(shape), "bytes": size} for name, kind, shape, size in ranked]
