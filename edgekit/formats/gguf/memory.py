"""What decoding a token with a GGUF file reads from memory, and what it keeps there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from edgekit.formats.gguf.file import GgufFile

# Rows of these are looked up by a token's id or place: decoding reads one row (llama.cpp, src/llama-arch.cpp, the tensors of
# GGML_OP_GET_ROWS).
GATHERED = ("token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
HEAD = "output.weight"


def reading(file: GgufFile) -> dict[str, Any]:
    """The head that makes logits, and the bytes that decoding one token reads.

    They are read of the weights once, and of an f16 cache for each token before it. Embedding rows are gathered, so a table
    counts only where it is the head too (tied: there is no output.weight); of experts, those that a token is sent to. None
    where the file is no decoder's.
    """
    keys, tensors = file.metadata, file.tensors
    architecture = str(keys.get("general.architecture", ""))
    if "token_embd.weight" not in tensors or keys.get(f"{architecture}.attention.causal") is False:
        return {"head": None, "bytes_per_token": None, "cache_bytes_per_token_f16": None}
    experts, used = keys.get(f"{architecture}.expert_count"), keys.get(f"{architecture}.expert_used_count")
    share = min(used / experts, 1.0) if is_count(experts) and is_count(used) else 1.0
    read = 0.0
    for name, place in tensors.items():
        if name not in GATHERED or (name == "token_embd.weight" and HEAD not in tensors):
            read += place.bytes * (share if "_exps." in name else 1.0)
    head = HEAD if HEAD in tensors else "token_embd.weight (tied)"
    return {"head": head, "bytes_per_token": round(read), "cache_bytes_per_token_f16": cache_bytes(keys)}


def cache_bytes(keys: Mapping[str, Any]) -> int | None:
    """Bytes that one token takes in an f16 cache of keys and values, by a file's metadata; None where it tells no heads."""
    architecture = keys.get("general.architecture")

    def told(name: str) -> Any:
        return keys.get(f"{architecture}.{name}")

    layers, width, heads = told("block_count"), told("embedding_length"), told("attention.head_count")
    cached = told("attention.head_count_kv") if told("attention.head_count_kv") is not None else heads
    of_keys, of_values = told("attention.key_length"), told("attention.value_length")
    if not (is_count(of_keys) and is_count(of_values)):
        if not (is_count(width) and is_count(heads)):
            return None
        of_keys = of_values = width // heads
    if getattr(cached, "dtype", None) is not None and cached.dtype.kind in "iu":  # one number for each layer
        return 2 * int(cached.sum()) * (of_keys + of_values)
    return 2 * layers * cached * (of_keys + of_values) if is_count(layers) and is_count(cached) else None


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a file's metadata says a number of something."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
