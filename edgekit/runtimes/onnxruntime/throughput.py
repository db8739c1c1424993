"""How fast one core multiplies matrices in onnxruntime: what a target states, and what times are held against."""

from __future__ import annotations

import itertools
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

from edgekit.runtimes.onnxruntime.library import Options, installed, open_session, providers
from edgekit.runtimes.timing import fastest, worked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

_SIDE = 512
# A speed -> the operator whose product it is of; the element types of both matrices.
PRODUCTS = {"fp32_gflops": "MatMul", "int8_gops": "MatMulInteger"}
# What one of these products does: multiplications and additions.
PRODUCT_OPS = 2.0 * _SIDE**3
# Operators of the graph that shows what one costs, and for how long it is run.
_NODES, _DISPATCH_S = 64, 0.05
_KINDS = {"MatMul": ("float32", "float32"), "MatMulInteger": ("uint8", "int8")}


def throughput() -> dict[str, float]:
    """fp32_gflops and int8_gops of one core: onnxruntime's products of 512 x 512 matrices, a constant one on the right.

    10^9 multiplications and additions per second of processor time, so that a busy machine is as fast as a quiet one; int8 is
    unsigned by signed, as in quantized encoders. Empty where there is no onnxruntime: a device that has llama.cpp alone.
    """
    if not installed():
        return {}
    result = {}
    for key, operator in PRODUCTS.items():
        model, left = product(operator)
        session = open_session(model, Options(threads=1))
        result[key] = PRODUCT_OPS / worked(partial(session.run, None, {"a": left})) / 1e9
    return result


def product(operator: str) -> tuple[bytes, NDArray[np.generic]]:
    """An ONNX model y = operator(a, b) of 512 x 512 matrices with a constant b, and an a: always the same."""
    import numpy as np

    numbers, (left, right) = np.random.default_rng(0), _KINDS[operator]
    a = numbers.integers(0, 64, (_SIDE, _SIDE)).astype(left)
    b = numbers.integers(-64, 64, (_SIDE, _SIDE)).astype(right)
    return product_model(operator, a, b), a


def dispatch_us() -> float:
    """Microseconds of processor time that an operator costs in onnxruntime beside its work.

    A 64th of a call of 64 operators that change the sign of one number.
    """
    import numpy as np

    session = open_session(_chain_model(_NODES), Options(threads=1))
    call = partial(session.run, None, {"a": np.ones(1, np.float32)})
    return 1e6 * worked(call, _DISPATCH_S) / _NODES


def saturation() -> dict[str, bool]:
    """Whether onnxruntime's products of bytes lose what 16 bits cannot hold, by the types of activations and weights.

    The largest bytes there are, whose sum is known. Empty where there is no onnxruntime.
    """
    import numpy as np

    if not installed():
        return {}
    found = {}
    for key, left, right in (("u8s8", np.uint8, np.int8), ("s8s8", np.int8, np.int8), ("u8u8", np.uint8, np.uint8)):
        a = np.full((_SIDE, _SIDE), np.iinfo(left).max, dtype=left)
        b = np.full((_SIDE, _SIDE), np.iinfo(right).max, dtype=right)
        session = open_session(product_model("MatMulInteger", a, b), Options(threads=1))
        exact = _SIDE * int(np.iinfo(left).max) * int(np.iinfo(right).max)
        found[key] = bool((session.run(None, {"a": a})[0] != exact).any())
    return found


# The execution providers whose work `accelerator_speed` can time -> the name of their memory in onnxruntime's I/O binding.
_MEMORY = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}


def accelerator_speed() -> dict[str, float]:
    """gpu_copy_gbs and gpu_fp16_gflops of the accelerator that onnxruntime has a provider for; empty where there is none."""
    if not installed():
        return {}
    for provider in providers():
        if provider in _MEMORY:
            return speed_of(provider, _MEMORY[provider])
    return {}


def speed_of(provider: str, memory: str, side: int = 4096, copied: int = 1 << 27) -> dict[str, float]:
    """The same of one provider: a product of fp16 matrices of `side`, and a change of sign of `copied` fp16 numbers, by the
    wall's clock, with what is read and written in the provider's `memory`. Empty where the provider does not start."""
    import numpy as np

    numbers = np.random.default_rng(0)
    a, b = (numbers.standard_normal((side, side)).astype(np.float16) for _ in range(2))
    found = {}
    for key, model, given, work in (
        ("gpu_fp16_gflops", product_model("MatMul", a, b), a, 2.0 * side**3),
        ("gpu_copy_gbs", _sign_model(copied), np.ones(copied, dtype=np.float16), 2.0 * 2 * copied),
    ):
        session = open_session(model, Options(provider=provider, threads=1))
        if session.get_providers()[0] != provider:
            return {}
        binding = session.io_binding()
        binding.bind_cpu_input("a", given)
        binding.bind_output("y", memory)

        def call(session: Any = session, binding: Any = binding) -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        found[key] = work / fastest(call) / 1e9
    return found


# onnx.proto's numbers for element types.
_ONNX_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10}


def product_model(operator: str, a: NDArray[np.generic], b: NDArray[np.generic]) -> bytes:
    """An ONNX model y = operator(a, b) with a constant b, written without the onnx package (which devices lack).

    Field numbers are those of onnx.proto (github.com/onnx/onnx/blob/main/onnx/onnx.proto).
    """
    product = "int32" if operator == "MatMulInteger" else str(a.dtype)
    constant = b"".join(_field_number(1, extent) for extent in b.shape)
    constant += _field_number(2, _ONNX_TYPES[str(b.dtype)]) + _field_bytes(8, b"b") + _field_bytes(9, b.tobytes())
    return _model(
        operator, _value("a", str(a.dtype), a.shape), _value("y", product, (a.shape[0], b.shape[1])), constant
    )


def _sign_model(count: int) -> bytes:
    """An ONNX model y = -a of so many 16-bit floats: it reads and writes each once."""
    return _model("Neg", _value("a", "float16", (count,)), _value("y", "float16", (count,)))


def _chain_model(count: int) -> bytes:
    """An ONNX model y = -(-(... a)) of one number, with so many operators."""
    names = [b"a", *(b"h%d" % index for index in range(1, count)), b"y"]
    nodes = b"".join(_node("Neg", [given], result) for given, result in itertools.pairwise(names))
    return _graph(nodes, _value("a", "float32", (1,)), _value("y", "float32", (1,)))


def _value(name: str, kind: str, shape: Sequence[int]) -> bytes:
    extents = b"".join(_field_bytes(1, _field_number(1, extent)) for extent in shape)
    tensor = _field_number(1, _ONNX_TYPES[kind]) + _field_bytes(2, extents)
    return _field_bytes(1, name.encode()) + _field_bytes(2, _field_bytes(1, tensor))


def _model(operator: str, given: bytes, result: bytes, constant: bytes | None = None) -> bytes:
    """A model of one node, of `a` and where there is one the constant b."""
    node = _node(operator, [b"a"] if constant is None else [b"a", b"b"], b"y")
    return _graph(node, given, result, b"" if constant is None else _field_bytes(5, constant))


def _node(operator: str, names: Sequence[bytes], result: bytes) -> bytes:
    inputs = b"".join(_field_bytes(1, name) for name in names)
    return _field_bytes(1, inputs + _field_bytes(2, result) + _field_bytes(4, operator.encode()))


def _graph(nodes: bytes, given: bytes, result: bytes, constants: bytes = b"") -> bytes:
    graph = nodes + _field_bytes(2, b"product") + constants
    graph += _field_bytes(11, given) + _field_bytes(12, result)
    return _field_number(1, 8) + _field_bytes(7, graph) + _field_bytes(8, _field_bytes(1, b"") + _field_number(2, 13))


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
