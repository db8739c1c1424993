"""A checkpoint's safetensors files: which ones transformers would open, what their headers list, and what is wrong with them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.schema import read_json, refuse_pointer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What PEFT saves of an adapter.
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack")
# Bytes of one value, by safetensors' names (https://github.com/huggingface/safetensors, enum Dtype).
_WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
# What the names of packed weights end in: GPTQ and AWQ, compressed-tensors and FP8, bitsandbytes, HQQ, AQLM, MXFP4.
_PACKED = (
    *(".qweight", ".qzeros", ".scales", ".g_idx"),
    *(".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight_zero_point"),
    *(".SCB", ".weight_format", ".absmax", ".quant_map", ".bitsandbytes__nf4", ".bitsandbytes__fp4"),
    *(".W_q", ".codebooks", "_proj_blocks"),
)
# No family of transformers has matrices of these types that are as they were trained.
_PACKED_TYPES = frozenset({"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F8_E4M3", "F8_E5M2", "F8_E8M0"})
# A name that a wrapper puts before those of the model -> what the wrapper is, and how the model inside it is called.
_WRAPPERS = {
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "module.": ("DistributedDataParallel", "model.module"),
    "base_model.model.": ("PEFT", "model.merge_and_unload()"),
}
_ADAPTERS = (".base_layer.", ".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_magnitude_vector")
# Bytes that are looked through at once.
_PIECE = 1 << 20
_EXPONENT_MASK = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF << 52),
}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where a tensor lies: file, type as safetensors names it, shape, and byte range in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's safetensors files in transformers' order: model.safetensors, else the shards that the index lists.

    Raises EdgekitError where there are none or a listed shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if index.is_file():
        return [folder / name for name in sorted(set(read_index(folder).values()))]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise EdgekitError(
            f"{folder / pickles[0]}: pickled weights can run code and are never loaded; save the model as safetensors"
        )
    raise EdgekitError(f"{folder}: no {SINGLE} in it")


def read_index(folder: Path) -> dict[str, str]:
    """Which shard each tensor of a sharded checkpoint is in; {} where transformers does not read the index.

    Raises EdgekitError where it is no index, or a shard that it names is not in the folder.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return {}
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise EdgekitError(f"{index}: weight_map: missing; fetch the checkpoint again")
    for shard in shards.values():
        path = folder / str(shard)
        if path.parent != folder or not path.is_file():
            raise EdgekitError(f"{index}: names {path.name}, which is not in the folder")
    return {name: str(shard) for name, shard in shards.items()}


def note_stale_index(folder: Path) -> str | None:
    """What to tell a user about an index that was left beside model.safetensors, as transformers leaves it."""
    if not ((folder / SINGLE).is_file() and (folder / INDEX).is_file()):
        return None
    return f"{folder / INDEX}: not read: {SINGLE} is there, which transformers takes first; remove the index, and old shards"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file lists; EdgekitError where the file is not as long as its header says.

    Format: 8 bytes little-endian header length, JSON header, data (https://github.com/huggingface/safetensors#format).
    """
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise EdgekitError(f"{path}: truncated or not a safetensors file; fetch it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: TensorInfo(
                    file=path,
                    dtype=entry["dtype"],
                    shape=tuple(entry["shape"]),
                    begin=8 + length + entry["data_offsets"][0],
                    end=8 + length + entry["data_offsets"][1],
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as bad:
            raise EdgekitError(f"{path}: its header is not a safetensors header; fetch it again") from bad
    if any(info.end > size for info in tensors.values()):
        raise EdgekitError(f"{path}: truncated: its header promises more bytes than it has; fetch it again")
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != end or not _adds_up(info):
            raise EdgekitError(f"{path}: tensor {name}: its bytes do not match its shape; fetch the file again")
        end = info.end
    return tensors


def _adds_up(info: TensorInfo) -> bool:
    """Whether a tensor's byte range is as long as its shape and type say; types that are new to us are believed."""
    if not all(isinstance(extent, int) and extent >= 0 for extent in info.shape) or info.begin > info.end:
        return False
    width = _WIDTHS.get(info.dtype)
    return width is None or info.end - info.begin == width * math.prod(info.shape)


def check_names(tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that transformers would not find in a model, or would have to unpack.

    Raises EdgekitError for weights that are quantized already, for the names of a model that was saved inside a wrapper
    (torch.compile, DistributedDataParallel, PEFT), and for adapters that were not merged.
    """
    for name, info in tensors.items():
        if name.endswith(_PACKED) or (name.endswith(".weight") and info.dtype in _PACKED_TYPES):
            raise EdgekitError(
                f"{info.file}: tensor {name}: its weights are quantized already; start from the unquantized checkpoint"
            )
        if adapter := next((part for part in _ADAPTERS if part in name), None):
            raise EdgekitError(
                f"{info.file}: tensor {name}: {adapter.strip('.')}: an adapter that is not merged; save the model that"
                " merge_and_unload() of PEFT gives, or name the adapter's own folder (adapter_config.json) as the teacher"
            )
    for prefix, (wrapper, inner) in _WRAPPERS.items():
        wrapped = next((name for name in tensors if name.startswith(prefix) or f".{prefix}" in f".{name}"), None)
        if wrapped is not None:
            raise EdgekitError(
                f"{tensors[wrapped].file}: tensor {wrapped}: {prefix} is a name that {wrapper} adds, under which transformers"
                f" finds no weight; save it again with {inner}.save_pretrained(...), or remove {prefix} from the names"
            )


def check_finite(files: Iterable[Path]) -> None:
    """Raises EdgekitError for the first NaN or infinite weight of these files; each is read once for as long as it stays."""
    for path in sorted(set(files)):
        seen = path.stat()
        _check_file_once(path.resolve(), seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=256)
def _check_file_once(path: Path, _size: int, _modified: int) -> None:
    import numpy as np

    buffer = np.empty(_PIECE, np.uint8)
    for name, info in read_header(path).items():
        if info.dtype not in _EXPONENT_MASK or info.begin == info.end:
            continue
        kind, mask = _EXPONENT_MASK[info.dtype]
        # Read, not mapped: pages of a mapped file count as this process's memory. One buffer, which a CPU's cache holds.
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(info.begin)
            left = info.end - info.begin
            while left:
                words = buffer[: min(left, _PIECE)].view(kind)
                count = stream.readinto(words.view(np.uint8).data)
                if count != words.nbytes:
                    raise EdgekitError(f"{info.file}: it became shorter while it was read")
                np.bitwise_and(words, mask, out=words)
                if words.max() == mask:
                    raise EdgekitError(
                        f"{info.file}: tensor {name} has NaN or infinite weights; the checkpoint is damaged"
                    )
                left -= count
