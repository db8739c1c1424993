"""ggml's number types, and its own conversions between them, called in the library that llama-cpp-python brings.

The table needs no library; the functions do. They release Python's lock while they compute, so threads compute at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, require
from edgekit.runtimes.llamacpp.library import PACKAGE, open_part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class GgmlType:
    """A number type: its id in a file, how many values one block holds, and how many bytes a block takes."""

    id: int
    block: int
    bytes: int


# https://github.com/ggml-org/llama.cpp, ggml/include/ggml.h (enum ggml_type) and ggml/src/ggml-common.h (the blocks).
TYPES: dict[str, GgmlType] = {
    "f32": GgmlType(0, 1, 4),
    "f16": GgmlType(1, 1, 2),
    "q4_0": GgmlType(2, 32, 18),
    "q4_1": GgmlType(3, 32, 20),
    "q5_0": GgmlType(6, 32, 22),
    "q5_1": GgmlType(7, 32, 24),
    "q8_0": GgmlType(8, 32, 34),
    "q8_1": GgmlType(9, 32, 36),
    "q2_k": GgmlType(10, 256, 84),
    "q3_k": GgmlType(11, 256, 110),
    "q4_k": GgmlType(12, 256, 144),
    "q5_k": GgmlType(13, 256, 176),
    "q6_k": GgmlType(14, 256, 210),
    "q8_k": GgmlType(15, 256, 292),
    "iq2_xxs": GgmlType(16, 256, 66),
    "iq2_xs": GgmlType(17, 256, 74),
    "iq3_xxs": GgmlType(18, 256, 98),
    "iq1_s": GgmlType(19, 256, 50),
    "iq4_nl": GgmlType(20, 32, 18),
    "iq3_s": GgmlType(21, 256, 110),
    "iq2_s": GgmlType(22, 256, 82),
    "iq4_xs": GgmlType(23, 256, 136),
    "i8": GgmlType(24, 1, 1),
    "i16": GgmlType(25, 1, 2),
    "i32": GgmlType(26, 1, 4),
    "i64": GgmlType(27, 1, 8),
    "f64": GgmlType(28, 1, 8),
    "iq1_m": GgmlType(29, 256, 56),
    "bf16": GgmlType(30, 1, 2),
    "tq1_0": GgmlType(34, 256, 54),
    "tq2_0": GgmlType(35, 256, 66),
    "mxfp4": GgmlType(39, 32, 17),
    "nvfp4": GgmlType(40, 64, 36),
    "q1_0": GgmlType(41, 128, 18),
    "q2_0": GgmlType(42, 64, 18),
}


def row_bytes(kind: str, columns: int) -> int:
    """The bytes of one row of `columns` values; EdgekitError where they do not fill whole blocks."""
    layout = TYPES[kind]
    if columns % layout.block:
        raise EdgekitError(
            f"{kind}: rows of {columns} values do not fill blocks of {layout.block}; choose another type"
        )
    return columns // layout.block * layout.bytes


def quantize(
    rows: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None = None, out: memoryview | None = None
) -> NDArray[np.uint8]:
    """The bytes of float32 rows, [n, columns], in a type, as llama.cpp's own quantizer makes them: [n, bytes of a row].

    importance: what an error in each column weighs, float32 [columns]; float types do not ask for it. out: a writable buffer of
    n rows to fill and return. Raises EdgekitError for a width that does not fill the type's blocks, and where the library is
    missing.
    """
    import numpy as np

    wide = row_bytes(kind, rows.shape[1])
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    filled = np.empty(len(rows) * wide, np.uint8) if out is None else np.frombuffer(out, np.uint8, len(rows) * wide)
    if TYPES[kind].block == 1:
        importance = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        assert importance.shape == rows.shape[1:], f"{importance.shape} is not one weight for each of {rows.shape[1]}"
    # https://github.com/ggml-org/llama.cpp, ggml/src/ggml.c: rows are quantized one by one, whatever their number.
    written = _library().ggml_quantize_chunk(
        TYPES[kind].id,
        rows.ctypes.data,
        filled.ctypes.data,
        0,
        len(rows),
        rows.shape[1],
        None if importance is None else importance.ctypes.data,
    )
    assert written == filled.nbytes, f"{kind}: {written} bytes instead of {filled.nbytes}"
    return filled.reshape(len(rows), wide)


def dequantize(data: NDArray[np.uint8], kind: str, columns: int) -> NDArray[np.float32]:
    """The float32 values, [n, columns], of rows that a file holds in a type; `data` has the bytes of whole rows."""
    import numpy as np

    data = np.ascontiguousarray(data)
    rows = data.nbytes // row_bytes(kind, columns)
    out = np.empty((rows, columns), np.float32)
    if kind == "f32":
        out.view(np.uint8).reshape(-1)[:] = data.reshape(-1)
    elif kind in {"f16", "bf16"}:
        to_float(data.reshape(-1).view(np.uint16), kind, out.reshape(-1))
    else:
        _to_float(kind)(data.ctypes.data, out.ctypes.data, out.size)
    return out


def to_float(values: NDArray[np.uint16], kind: str, out: NDArray[np.float32]) -> None:
    """Fill `out` with the float32 values of the bits of f16 or bf16 numbers; both arrays are contiguous, of one size."""
    call = _conversions()[kind, "f32"]
    call(values.ctypes.data, out.ctypes.data, values.size)


def from_float(values: NDArray[np.float32], kind: str, out: NDArray[np.uint16]) -> None:
    """Fill `out` with the bits of the f16 or bf16 numbers nearest to float32 values, ties to even."""
    call = _conversions()["f32", kind]
    call(values.ctypes.data, out.ctypes.data, values.size)


def load() -> None:
    """Open the library now; EdgekitError names the remedy where it is missing."""
    _library()


class _Traits(ctypes.Structure):
    """The beginning of ggml.h's `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def _to_float(kind: str) -> Callable[[int, int, int], None]:
    call = _library().ggml_get_type_traits(TYPES[kind].id).contents.to_float
    if not call:
        raise EdgekitError(f"{kind}: this version of ggml cannot turn it into floats")
    return call  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _conversions() -> dict[tuple[str, str], Callable[[int, int, int], None]]:
    """ggml's functions between f32 and the short types, by (from, to)."""
    library, quick = _library(), _open_part("ggml-cpu")
    calls = {
        ("f16", "f32"): getattr(quick, "ggml_cpu_fp16_to_fp32", None) or library.ggml_fp16_to_fp32_row,
        ("f32", "f16"): getattr(quick, "ggml_cpu_fp32_to_fp16", None) or library.ggml_fp32_to_fp16_row,
        ("bf16", "f32"): library.ggml_bf16_to_fp32_row,
        # The one without _ref takes another instruction where the CPU has one, which makes subnormal numbers zero.
        ("f32", "bf16"): library.ggml_fp32_to_bf16_row_ref,
    }
    for call in calls.values():
        call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    return {**calls}


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """The ggml that llama_cpp itself uses, with the signatures of what is called here."""
    library = _open_part("ggml-base")
    if library is None:
        raise EdgekitError('llama_cpp: no ggml-base library in it; run: pip install --force-reinstall "edgekit[gguf]"')
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    _check_table(library)
    return library


def _open_part(stem: str) -> ctypes.CDLL | None:
    """One of llama.cpp's libraries, None where this build has none by the name. EdgekitError where llama.cpp is not there."""
    require(PACKAGE.module, extra=PACKAGE.extra)
    return open_part(stem)


def _check_table(library: ctypes.CDLL) -> None:
    for name, kind in TYPES.items():
        if kind.id > TYPES["bf16"].id:
            continue  # newer types: a library that lacks one ends the process when it is asked for it
        traits = library.ggml_get_type_traits(kind.id).contents
        if (traits.blck_size, traits.type_size) != (kind.block, kind.bytes):
            raise EdgekitError(
                f"llama_cpp: its {name} has blocks of {traits.blck_size} values in {traits.type_size} bytes, not of"
                f' {kind.block} in {kind.bytes}; run: pip install "edgekit[gguf]"'
            )
