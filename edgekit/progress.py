"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""(done, total, note): how much of a phase is done, of how much (0: nobody knows), and what it works on."""


def silent(done: int, total: int, note: str) -> None:
    """Shows nothing."""
