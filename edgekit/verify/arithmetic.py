"""Would the target's INT8 arithmetic give what the host's gave? Asked of the artifact's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.formats.onnx import ort
from edgekit.runtimes.onnxruntime.library import EXACT_SUMS, Options, open_session
from edgekit.runtimes.onnxruntime.operators import OPERATORS
from edgekit.runtimes.request import feeds

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edgekit.runtimes.request import Arrays

    Bytes = NDArray[np.int8] | NDArray[np.uint8]

# Integer products of two matrices.
_INTEGER = {
    name: operator for name, operator in OPERATORS.items() if operator.kind == "matmul" and operator.weight is not None
}


def is_exact(options: Mapping[str, object]) -> bool:
    """Whether a session with these options multiplies bytes exactly wherever it runs."""
    entries = options.get("config_entries")
    return isinstance(entries, dict) and EXACT_SUMS.items() <= entries.items()


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product of bytes that may saturate: the value on the left and the signed weights [inner, columns].

    left: the name of the quantized value, None where the operator quantizes by itself; signed: whether its bytes are, which
    onnxruntime then makes unsigned. apart: its bytes are dequantized first, as the file has it (and multiplied as bytes where
    onnxruntime joins the three nodes).
    """

    left: str | None
    weights: NDArray[np.int8]
    signed: bool = False
    apart: bool = False


def saturating_share(file: Path) -> float | None:
    """Share of neighbouring weight pairs whose products with bytes may exceed 16 bits; None without such products.

    VPMADDUBSW adds the products of two neighbours along the inner dimension in 16 bits, and saturates (Intel SDM, vol. 2).
    An activation may be 255 (quantization maps the calibrated range to 0..255), so a pair may saturate where its weights of one
    sign sum to more than 32767 / 255. Signed activations that are dequantized before the product count too: onnxruntime makes
    them unsigned on x86 (QDQS8ToU8Transformer), which was seen to saturate; those of integer operators were seen not to.
    """
    products = _read_products(file)
    if not products:
        return None
    risky = sum(int(_risky_pairs(product.weights).sum()) for product in products)
    pairs = sum(-(-product.weights.shape[0] // 2) * product.weights.shape[1] for product in products)
    return float(risky / max(pairs, 1))


def saturated(file: Path, prompts: Sequence[Arrays]) -> NDArray[np.bool_] | None:
    """Of each prompt whether some pair of products exceeds 16 bits where they are added in 16; None where nobody can tell.

    The file runs here with exact sums, and each byte that meets a risky pair of weights is looked at: up to the first pair that
    saturates, a CPU that saturates computes the same. Raises what onnxruntime raises.
    """
    import numpy as np
    import onnx

    products = [product for product in _read_products(file) if product.left is not None]
    if not products or file.suffix != ".onnx":
        return None
    model = onnx.load(str(file))
    names = list(dict.fromkeys(str(product.left) for product in products))
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    content = model.SerializeToString()
    # Not optimized, dequantized bytes are multiplied as floats; the products of integer operators are exact by the setting, which
    # takes effect when the graph is optimized.
    whole = not all(product.apart for product in products)
    session = open_session(content, Options(threads=1, config_entries=dict(EXACT_SUMS)), optimize=whole)
    inputs = [value.name for value in session.get_inputs()]
    pairs = [_pairs(product) for product in products]
    found = np.zeros(len(prompts), np.bool_)
    for index, prompt in enumerate(prompts):
        values = dict(zip(names, session.run(names, feeds(prompt, inputs)), strict=True))
        found[index] = any(
            _exceeds(values[str(product.left)], product, known) for product, known in zip(products, pairs, strict=True)
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Risky pairs of weights: the row of the first of each pair, and both weights."""

    rows: NDArray[np.int64]
    first: NDArray[np.int32]
    second: NDArray[np.int32]


def _pairs(product: Product) -> _Pairs:
    import numpy as np

    risky = _risky_pairs(product.weights)
    pair, column = np.nonzero(risky)
    wide = _even(product.weights)
    return _Pairs(rows=2 * pair, first=wide[2 * pair, column], second=wide[2 * pair + 1, column])


def _exceeds(left: Bytes, product: Product, pairs: _Pairs) -> bool:
    """Whether a risky pair of weights exceeds 16 bits with these bytes [..., inner]."""
    import numpy as np

    if left.shape[-1] != product.weights.shape[0]:
        return False  # a value that is turned before it is multiplied
    rows = np.unique(left.reshape(-1, left.shape[-1]), axis=0).astype(np.int32) + (128 if product.signed else 0)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    for row in rows:
        sums = row[pairs.rows] * pairs.first + row[pairs.rows + 1] * pairs.second
        if ((sums > 32767) | (sums < -32768)).any():
            return True
    return False


def _risky_pairs(weights: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Of each pair along the first axis of [inner, columns], and each column, whether bytes can make it exceed 16 bits."""
    import numpy as np

    wide = _even(weights)
    first, second = wide[0::2], wide[1::2]
    most = 255 * (np.maximum(first, 0) + np.maximum(second, 0))
    least = 255 * (np.minimum(first, 0) + np.minimum(second, 0))
    return np.asarray((most > 32767) | (least < -32768))


def _even(weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """The same with an even number of rows, a row of zeros behind the others where they were odd."""
    import numpy as np

    return np.pad(weights.astype(np.int32), ((0, len(weights) % 2), (0, 0)))


def _read_products(file: Path) -> list[Product]:
    """The products of bytes with constant int8 matrices of an ONNX file, in onnxruntime's own format too; none of another."""
    import onnx

    readers: dict[str, Callable[[Path], onnx.ModelProto]] = {".onnx": onnx.load, ort.SUFFIX: ort.read_ort}
    return list(_products(readers[file.suffix](file), str(file.parent))) if file.suffix in readers else []


def _products(model: onnx.ModelProto, folder: str) -> Iterator[Product]:
    import numpy as np
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}

    def is_signed_matrix(name: str) -> bool:
        return name in constants and constants[name].data_type == TensorProto.INT8 and len(constants[name].dims) == 2

    def dequantized(name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that a value comes from, through transposes."""
        node = makers.get(name)
        while node is not None and node.op_type == "Transpose":
            node = makers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def is_signed(node: onnx.NodeProto, place: int | None) -> bool:
        # Without a zero point in the file the type is not told; what quantizers leave out is unsigned, so it counts as such.
        zero = node.input[place] if place is not None and len(node.input) > place else ""
        return zero in constants and bool(constants[zero].data_type == TensorProto.INT8)

    def is_turned(node: onnx.NodeProto) -> bool:
        return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)

    def matrix(name: str, turned: bool) -> NDArray[np.int8]:
        array = numpy_helper.to_array(constants[name], folder)
        return np.ascontiguousarray(array.T if turned else array)

    for node in graph.node:
        if node.op_type in _INTEGER:
            operator = _INTEGER[node.op_type]
            right = node.input[operator.weight or 0]
            if is_signed_matrix(right) and not is_signed(node, operator.left_zero):
                own = operator.left_zero is None
                yield Product(left=None if own else node.input[0], weights=matrix(right, is_turned(node)))
        elif node.op_type in {"MatMul", "Gemm"}:
            left, weights = dequantized(node.input[0]), dequantized(node.input[1])
            if left is None or weights is None or not is_signed_matrix(weights.input[0]):
                continue
            through = makers.get(node.input[1])
            turned = is_turned(node) ^ (through is not None and through.op_type == "Transpose")
            yield Product(
                left=left.input[0], weights=matrix(weights.input[0], turned), signed=is_signed(left, 2), apart=True
            )
