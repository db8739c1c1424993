"""How fast one core multiplies matrices in onnxruntime: what a target states, and what times are held against."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from edgekit.runtimes.onnxruntime.library import Options, installed, open_session
from edgekit.runtimes.timing import fastest, own_time

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIDE = 512
# A speed -> the operator whose product it is of; the element types of both matrices.
PRODUCTS = {"fp32_gflops": "MatMul", "int8_gops": "MatMulInteger"}
_KINDS = {"MatMul": ("float32", "float32"), "MatMulInteger": ("uint8", "int8")}


def throughput() -> dict[str, float]:
    """fp32_gflops and int8_gops of one core: onnxruntime's products of 512 x 512 matrices, a constant one on the right.

    10^9 multiplications and additions per second of processor time, so that a busy machine is as fast as a quiet one; int8 is
    unsigned by signed, as in quantized encoders. Empty where there is no onnxruntime: a device that has llama.cpp alone.
    """
    if not installed():
        return {}
    operations = 2.0 * _SIDE**3
    result = {}
    for key, operator in PRODUCTS.items():
        model, left = product(operator)
        session = open_session(model, Options(threads=1))
        result[key] = operations / fastest(partial(session.run, None, {"a": left}), own_time) / 1e9
    return result


def product(operator: str) -> tuple[bytes, NDArray[np.generic]]:
    """An ONNX model y = operator(a, b) of 512 x 512 matrices with a constant b, and an a: always the same."""
    import numpy as np

    numbers, (left, right) = np.random.default_rng(0), _KINDS[operator]
    a = numbers.integers(0, 64, (_SIDE, _SIDE)).astype(left)
    b = numbers.integers(-64, 64, (_SIDE, _SIDE)).astype(right)
    return _product_model(operator, a, b), a


# onnx.proto's numbers for element types.
_ONNX_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}


def _product_model(operator: str, a: NDArray[np.generic], b: NDArray[np.generic]) -> bytes:
    """An ONNX model y = operator(a, b) with a constant b, written without the onnx package (which devices lack).

    Field numbers are those of onnx.proto (github.com/onnx/onnx/blob/main/onnx/onnx.proto).
    """
    product = "int32" if operator == "MatMulInteger" else "float32"

    def value(name: str, kind: str) -> bytes:
        extents = b"".join(_field_bytes(1, _field_number(1, extent)) for extent in (_SIDE, _SIDE))
        tensor = _field_number(1, _ONNX_TYPES[kind]) + _field_bytes(2, extents)
        return _field_bytes(1, name.encode()) + _field_bytes(2, _field_bytes(1, tensor))

    node = _field_bytes(1, b"a") + _field_bytes(1, b"b") + _field_bytes(2, b"y") + _field_bytes(4, operator.encode())
    constant = b"".join(_field_number(1, extent) for extent in b.shape)
    constant += _field_number(2, _ONNX_TYPES[str(b.dtype)]) + _field_bytes(8, b"b") + _field_bytes(9, b.tobytes())
    graph = _field_bytes(1, node) + _field_bytes(2, b"product") + _field_bytes(5, constant)
    graph += _field_bytes(11, value("a", str(a.dtype))) + _field_bytes(12, value("y", product))
    opset = _field_bytes(1, b"") + _field_number(2, 13)
    return _field_number(1, 8) + _field_bytes(7, graph) + _field_bytes(8, opset)


def _varint(number: int) -> bytes:
    """Protocol buffers' variable-length integer: seven bits a byte, low ones first."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return struct.pack(f"{len(parts) + 1}B", *parts, number)


def _field_number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _field_bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
