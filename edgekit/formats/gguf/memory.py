"""What decoding a token with a GGUF file reads from memory, and what it keeps there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from edgekit.formats.gguf.file import GgufFile, Value

# Rows of these are looked up by a token's id or place: decoding reads one row (llama.cpp, src/llama-arch.cpp, the tensors of
# GGML_OP_GET_ROWS).
GATHERED = ("token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
HEAD = "output.weight"


@dataclass(frozen=True, kw_only=True)
class DecodeTraffic:
    """What decoding one token reads, in bytes; None where a file is no decoder's, and of a cache whose heads it does not tell.

    head: the tensor that makes logits. bytes_per_token: of the weights, once. cache_bytes_per_token_f16: of an f16 cache, for
    each token before it.
    """

    head: str | None = None
    bytes_per_token: int | None = None
    cache_bytes_per_token_f16: int | None = None


def decode_traffic(file: GgufFile) -> DecodeTraffic:
    """What decoding a token with a file reads from memory.

    Embedding rows are gathered, so a table counts only where it is the head too (tied: there is no output.weight); of experts,
    those that a token is sent to.
    """
    keys, tensors = file.metadata, file.tensors
    architecture = str(keys.get("general.architecture", ""))
    if "token_embd.weight" not in tensors or keys.get(f"{architecture}.attention.causal") is False:
        return DecodeTraffic()
    experts, used = keys.get(f"{architecture}.expert_count"), keys.get(f"{architecture}.expert_used_count")
    share = min(used / experts, 1.0) if is_count(experts) and is_count(used) else 1.0
    read = 0.0
    for name, tensor in tensors.items():
        if name not in GATHERED or (name == "token_embd.weight" and HEAD not in tensors):
            read += tensor.bytes * (share if "_exps." in name else 1.0)
    head = HEAD if HEAD in tensors else "token_embd.weight (tied)"
    return DecodeTraffic(head=head, bytes_per_token=round(read), cache_bytes_per_token_f16=cache_bytes(keys))


def cache_bytes(keys: Mapping[str, Value]) -> int | None:
    """Bytes that one token takes in an f16 cache of keys and values, by a file's metadata; None where it tells no heads."""
    architecture = keys.get("general.architecture")

    def value(name: str) -> Value | None:
        return keys.get(f"{architecture}.{name}")

    layers, width, heads = value("block_count"), value("embedding_length"), value("attention.head_count")
    cached = value("attention.head_count_kv") if value("attention.head_count_kv") is not None else heads
    of_keys, of_values = value("attention.key_length"), value("attention.value_length")
    if not (is_count(of_keys) and is_count(of_values)):
        if not (is_count(width) and is_count(heads)):
            return None
        of_keys = of_values = width // heads
    if isinstance(cached, np.ndarray) and cached.dtype.kind in "iu":  # one number for each layer
        return 2 * int(cached.sum()) * (of_keys + of_values)
    return 2 * layers * cached * (of_keys + of_values) if is_count(layers) and is_count(cached) else None


def is_count(value: object) -> TypeGuard[int]:
    """Whether a file's metadata says a number of something."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
