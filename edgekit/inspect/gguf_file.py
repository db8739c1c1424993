"""What is in a GGUF file, whoever wrote it: types per layer, bytes read per token, metadata; importance matrices too."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.inspect.tensors import by_type, largest

if TYPE_CHECKING:
    from edgekit.formats.gguf.file import GgufFile, ReadValue, StoredTensor

# Entries of an array that are worth showing, and characters of a text.
MOST_VALUES, MOST_CHARACTERS = 6, 120

_BLOCK = re.compile(r"blk\.(\d+)\.(.+?)(\.weight)?$")


def inspect_gguf(path: Path) -> dict[str, object]:
    """Everything that can be told of a GGUF file; no weight is read. EdgekitError where it is not a whole one."""
    from edgekit.formats.gguf.file import read_gguf
    from edgekit.formats.gguf.memory import decode_traffic

    file = read_gguf(path)
    if file.metadata.get("general.type") == "imatrix":
        return _inspect_imatrix(file)
    keys, tensors = file.metadata, file.tensors
    architecture = str(keys.get("general.architecture", ""))
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    weights = sum(tensor.bytes for tensor in tensors.values())
    own = {key.removeprefix(f"{architecture}."): key for key in keys if key.startswith(f"{architecture}.")}
    return {
        "kind": "gguf file",
        "path": str(path),
        "bytes": path.stat().st_size,
        "version": file.version,
        "name": _plain(keys.get("general.name")),
        "architecture": _plain(architecture) or None,
        "parameters": parameters,
        "bits_per_weight": round(8 * weights / parameters, 3) if parameters else None,
        **asdict(decode_traffic(file)),
        "types": by_type((tensor.type, tensor.shape, tensor.bytes) for tensor in tensors.values()),
        "tensors": len(tensors),
        "layers": _layers(tensors),
        "outside_layers": [
            {"name": _plain(name), "type": tensor.type, "shape": list(tensor.shape), "bytes": tensor.bytes}
            for name, tensor in tensors.items()
            if not _BLOCK.match(name)
        ],
        "largest": largest(
            (str(_plain(name)), tensor.type, tensor.shape, tensor.bytes) for name, tensor in tensors.items()
        ),
        "model": {str(_plain(name)): _plain(keys[key]) for name, key in sorted(own.items())},
        "tokenizer": _tokenizer(keys),
        "metadata": {
            str(_plain(key)): _plain(value)
            for key, value in sorted(keys.items())
            if key not in own.values() and not key.startswith("tokenizer.")
        },
    }


@dataclass(kw_only=True)
class _Layer:
    """A layer's types: of each matrix by its name, and of the rest; and its bytes."""

    matrices: dict[str, str] = field(default_factory=dict)
    other: set[str] = field(default_factory=set)
    bytes: int = 0


def _layers(tensors: Mapping[str, StoredTensor]) -> list[dict[str, object]]:
    """A row for each set of layers that are alike: the type of every matrix, that of the rest, and the bytes of one layer."""
    layers: dict[int, _Layer] = {}
    for name, tensor in tensors.items():
        if match := _BLOCK.match(name):
            layer = layers.setdefault(int(match[1]), _Layer())
            layer.bytes += tensor.bytes
            if len(tensor.shape) > 1 and match[3]:
                layer.matrices[str(_plain(match[2]))] = tensor.type
            else:
                layer.other.add(tensor.type)
    columns = dict.fromkeys(name for layer in layers.values() for name in layer.matrices)
    alike: dict[tuple[tuple[str | None, ...], str, int], list[int]] = {}
    for number, layer in sorted(layers.items()):
        types = tuple(layer.matrices.get(column) for column in columns)
        alike.setdefault((types, ", ".join(sorted(layer.other)), layer.bytes), []).append(number)
    return [
        {"layers": _ranges(numbers)} | dict(zip(columns, types, strict=True)) | {"other": other, "bytes": size}
        for (types, other, size), numbers in alike.items()
    ]


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as people write them: 0-3, 6, 9-10."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _tokenizer(keys: Mapping[str, ReadValue]) -> dict[str, object]:
    tokens = keys.get("tokenizer.ggml.tokens")
    pieces = tokens if isinstance(tokens, list) else []
    shown: dict[str, object] = {}
    for key, value in sorted(keys.items()):
        name = str(_plain(key.removeprefix("tokenizer.").removeprefix("ggml.")))
        if not key.startswith("tokenizer.") or hasattr(value, "dtype"):  # scores and types: a number for each piece
            continue
        if name.endswith("_token_id") and isinstance(value, int) and 0 <= value < len(pieces):
            shown[name] = f"{value} {_plain(pieces[value])}"
        elif name == "chat_template" or name.startswith("chat_template."):
            shown[name] = f"{len(value)} characters: {_plain(value)}" if isinstance(value, str) else _plain(value)
        elif name in {"tokens", "merges"} and isinstance(value, list):
            shown["vocabulary" if name == "tokens" else name] = len(value)
        else:
            shown[name] = _plain(value)
    return shown


def _inspect_imatrix(file: GgufFile) -> dict[str, object]:
    """An importance matrix as llama-imatrix writes it: NAME.in_sum2 and NAME.counts for each matrix (tools/imatrix)."""
    from edgekit.formats.gguf.file import read_tensor

    counts: dict[str, float] = {}
    uncovered: list[str] = []
    columns: dict[str, int] = {}
    for name, tensor in sorted(file.tensors.items()):
        matrix, _, statistic = name.rpartition(".")
        if statistic == "in_sum2":
            columns[matrix] = tensor.shape[-1]
        elif statistic == "counts" and tensor.type == "f32":
            # One count for a matrix, or one for each expert of it.
            seen = read_tensor(file, name).reshape(-1).view("<f4")
            counts[matrix] = float(seen.max(initial=0.0))
            if not (seen > 0).all():
                uncovered.append(str(_plain(matrix)))
    return {
        "kind": "importance matrix",
        "path": str(file.path),
        "bytes": file.path.stat().st_size,
        "matrices": len(columns),
        "tokens": max(map(int, filter(math.isfinite, counts.values())), default=0),
        "uncovered": uncovered,
        "without_counts": [_plain(matrix) for matrix in sorted(set(columns) - set(counts))],
        "columns": {f"{width} columns": count for width, count in sorted(Counter(columns.values()).items())},
        "metadata": {str(_plain(key)): _plain(value) for key, value in sorted(file.metadata.items())},
    }


def _plain(value: ReadValue | None) -> object:
    """A value for JSON and a terminal: long arrays and texts shortened, and nothing in it that a terminal would obey."""
    if isinstance(value, str):
        text = value if len(value) <= MOST_CHARACTERS else f"{value[:MOST_CHARACTERS]}..."
        return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    shown = [_plain(entry) for entry in (value if isinstance(value, list) else value.tolist())[:MOST_VALUES]]
    return shown if len(value) <= MOST_VALUES else [*shown, f"... ({len(value)})"]
