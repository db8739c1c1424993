"""Would the target's INT8 arithmetic give what the host's gave? Asked of the artifact's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.formats.onnx import ort
from edgekit.runtimes.onnxruntime.library import EXACT_SUMS
from edgekit.runtimes.onnxruntime.operators import OPERATORS

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

# Integer products of two matrices.
_INTEGER = {
    name: operator for name, operator in OPERATORS.items() if operator.kind == "matmul" and operator.weight is not None
}


def is_exact(options: Mapping[str, object]) -> bool:
    """Whether a session with these options multiplies bytes exactly wherever it runs."""
    entries = options.get("config_entries")
    return isinstance(entries, dict) and EXACT_SUMS.items() <= entries.items()


def saturating_share(file: Path) -> float | None:
    """Share of neighbouring weight pairs whose products with bytes may exceed 16 bits; None without such products.

    VPMADDUBSW adds the products of two neighbours along the inner dimension in 16 bits, and saturates (Intel SDM, vol. 2).
    An activation may be 255 (quantization maps the calibrated range to 0..255), so a pair may saturate where its weights of
    one sign sum to more than 32767 / 255. Signed activations that are dequantized before the product count too: on x86
    onnxruntime makes them unsigned (QDQS8ToU8Transformer), and they were seen to saturate; those of integer operators were not.
    """
    matrices = list(_signed_weights(file)) if file.suffix in {".onnx", ort.SUFFIX} else []
    if not matrices:
        return None
    risky = pairs = 0
    for matrix in matrices:
        bad, count = _count_pairs(matrix)
        risky, pairs = risky + bad, pairs + count
    return risky / max(pairs, 1)


def _count_pairs(weights: NDArray[np.int8]) -> tuple[int, int]:
    """How many pairs along the first axis of [inner, columns] may saturate, and how many there are."""
    import numpy as np

    wide = weights.astype(np.int32)
    if len(wide) % 2:
        wide = np.concatenate([wide, np.zeros((1, *wide.shape[1:]), np.int32)])
    first, second = wide[0::2], wide[1::2]
    most = 255 * (np.maximum(first, 0) + np.maximum(second, 0))
    least = 255 * (np.minimum(first, 0) + np.minimum(second, 0))
    return int(((most > 32767) | (least < -32768)).sum()), int(first.size)


def _signed_weights(file: Path) -> list[NDArray[np.int8]]:
    """Constant int8 matrices [inner, columns] that are multiplied with unsigned bytes, or with what becomes such."""
    import onnx
    from onnx import TensorProto, numpy_helper

    model = ort.read_ort(file) if file.suffix == ort.SUFFIX else onnx.load(str(file))
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    folder = str(file.parent)

    def is_signed_matrix(name: str) -> bool:
        return name in constants and constants[name].data_type == TensorProto.INT8 and len(constants[name].dims) == 2

    def dequantized(name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that a value comes from, through transposes."""
        node = makers.get(name)
        while node is not None and node.op_type == "Transpose":
            node = makers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def is_unsigned(node: onnx.NodeProto, place: int | None) -> bool:
        # Without a zero point in the file the type is not told; what quantizers leave out is unsigned, so it counts as such.
        zero = node.input[place] if place is not None and len(node.input) > place else ""
        return zero not in constants or bool(constants[zero].data_type == TensorProto.UINT8)

    def is_turned(node: onnx.NodeProto) -> bool:
        return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)

    found = []
    for node in graph.node:
        if node.op_type in _INTEGER:
            operator = _INTEGER[node.op_type]
            right = node.input[operator.weight or 0]
            if is_signed_matrix(right) and is_unsigned(node, operator.left_zero):
                matrix = numpy_helper.to_array(constants[right], folder)
                found.append(matrix.T if is_turned(node) else matrix)
        elif node.op_type in {"MatMul", "Gemm"}:
            left, weights = dequantized(node.input[0]), dequantized(node.input[1])
            if left is None or weights is None or not is_signed_matrix(weights.input[0]):
                continue
            matrix = numpy_helper.to_array(constants[weights.input[0]], folder)
            through = makers.get(node.input[1])
            turned = is_turned(node) ^ (through is not None and through.op_type == "Transpose")
            found.append(matrix.T if turned else matrix)
    return found
