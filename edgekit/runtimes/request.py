"""What the probe is asked, as types, and how an engine reads the options of a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, TypeVar, cast

T = TypeVar("T")


class Timing(TypedDict, total=False):
    """What is timed: see `probe` for texts, `generation` for tokens."""

    warmup: int
    repeats: int
    least: int
    seconds: float
    sequence: int
    only: bool
    prompts: Sequence[int]
    new: int
    sweep: bool


class Settings(TypedDict, total=False):
    """Of a session's options what the probe itself looks at; the rest is its engine's."""

    threads: int | None
    threads_batch: int | None
    context: int
    batch: int
    provider: str


class Request(TypedDict, total=False):
    """One request of the protocol (see `probe`)."""

    kind: str
    runtime: str
    file: str
    inputs: str
    outputs: str
    options: Settings
    timing: Timing


def read_options(kind: type[T], options: Mapping[str, object]) -> T:
    """An engine's Options. Raises TypeError for a key that it does not have."""
    return cast("Callable[..., T]", kind)(**options)
