"""What a runtime is to hold in memory, and what it needs for that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Demand:
    """An artifact that is to be run: bytes of its weights; bytes that a token takes in an f16 cache of keys and values (None:
    not known, or there is none); tokens that it is asked to hold, and at most can (None: no limit); channels, and inner ones
    of the feed-forward part."""

    weights: int
    cache_per_token: int | None
    tokens: int
    longest: int | None
    hidden: int
    inner: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that are needed in all and for the cache, and the tokens of context that it is for (None: there is no cache)."""

    needed: float
    cache: float = 0.0
    context: int | None = None
