"""The memory that llama.cpp needs for a model, before there is one."""

from __future__ import annotations

from typing import Protocol

from edgekit.runtimes.memory import Demand, Memory

# Bytes of a number in a cache; q8_0 has a 16-bit scale for 32 of 8 bits (ggml-common.h, block_q8_0).
_KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
# llama.cpp and Python themselves.
_PROCESS_BYTES = 40e6


class Settings(Protocol):
    """What of the runtime's options the memory depends on (see `library.Options`)."""

    @property
    def context(self) -> int:
        """Tokens; 0: what is asked for."""

    @property
    def batch(self) -> int:
        """Tokens of a prompt in one step."""

    @property
    def kv_k(self) -> str:
        """The type of the keys."""

    @property
    def kv_v(self) -> str:
        """The type of the values."""


def predict_memory(demand: Demand, settings: Settings) -> Memory:
    """The weights, the cache of the context, buffers of one step of a prompt (in float32, 8 vectors of channels and 2 of inner
    ones a token), and the process itself."""
    tokens = settings.context or demand.tokens
    tokens = tokens if demand.longest is None else min(tokens, demand.longest)
    # The demand counts two bytes for each number.
    cache = tokens * (demand.cache_per_token or 0) * (_KV_BYTES[settings.kv_k] + _KV_BYTES[settings.kv_v]) / 4
    step = 4 * settings.batch * (8 * demand.hidden + 2 * demand.inner)
    return Memory(needed=demand.weights + cache + step + _PROCESS_BYTES, cache=cache, context=tokens)
