"""Whether a file holds the weights that its student was trained with: a .gguf read by gguf-py, compared value by value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import EdgekitError, first_line, require
from edgekit.model import load_model


def compare(file: Path, student: Path) -> dict[str, object]:
    """How many of a .gguf or .onnx file's quantized weights are, to the last bit, those of a student's folder.

    Raises EdgekitError for a file of another kind, and a student that it is not of.
    """
    if file.suffix == ".onnx":
        from edgekit.inspect.onnx_grid import compare_onnx as compare_file
    elif file.suffix == ".gguf":
        compare_file = _compare_gguf
    else:
        raise EdgekitError(f"{file}: --grid compares a .gguf or .onnx file with a student; name one")
    rows: list[dict[str, object]] = []
    values = equal = 0
    for name, kind, size, same in compare_file(file, student):
        values, equal = values + size, equal + same
        rows.append({"name": name, "type": kind, "values": size, "equal": round(same / size, 6)})
    if not rows:
        raise EdgekitError(f"{file}: it has no quantized weights; --grid is for files of few bits")
    return {
        "kind": "grid",
        "path": str(file),
        "student": str(student),
        "tensors": len(rows),
        "values": values,
        "equal": round(equal / values, 6),
        "exact": equal == values,
        "apart": [row for row in rows if row["equal"] != 1.0],
    }


def _compare_gguf(file: Path, student: Path) -> Iterator[tuple[str, str, int, int]]:
    """Each quantized weight of a .gguf file: name, type, how many values it has, and how many are a student's to the last bit.

    gguf-py (ggml's authors' own reader) dequantizes the file; edgekit's rounding has no part in it. Raises EdgekitError for
    a file that is no GGUF, and a student that it is not of.
    """
    require("gguf", extra="gguf")
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from edgekit.formats.gguf.convert import float_rows
    from edgekit.formats.gguf.ggml import TYPES
    from edgekit.formats.gguf.tensors import plan

    try:
        held = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    except (OSError, ValueError, KeyError, IndexError) as failed:
        raise EdgekitError(f"{file}: not a GGUF file that gguf-py reads: {first_line(failed)}") from failed
    for tensor in plan(load_model(student)):
        mine = held.get(tensor.name)
        if mine is None or tuple(int(extent) for extent in reversed(mine.shape)) != tensor.shape:
            raise EdgekitError(
                f"{file}: {tensor.name} is not that of {student}; name the student that it was exported from"
            )
        kind = mine.tensor_type.name.lower()
        if TYPES[kind].block == 1:
            continue
        wanted = np.concatenate([part.copy() for part in float_rows(tensor)])
        same = int((dequantize(mine.data, mine.tensor_type).reshape(wanted.shape) == wanted).sum())
        yield tensor.name, kind, wanted.size, same
