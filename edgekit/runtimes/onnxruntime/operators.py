"""OPERATORS: the operators that multiply by a matrix or hold a quantized one; every list of such operators is derived from it.

Of nodes in a file by where their inputs lie; of nodes in onnxruntime's profile by what they cost. Sources: onnx.ai/onnx/operators
and onnxruntime/docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator; inputs are named by their index.

    kind: a matrix product, a convolution, attention, or rows picked from a table. weight_bytes: of one weight, None where it is
    as wide as the input. weight: the quantized matrix. scale: its scale, or its zero point where the operator has no scale: one
    number, or one per column. left_zero: the zero point of the other matrix, whose type is that matrix's; None where the operator
    quantizes it by itself, unsigned. blocks: weights share a scale in blocks. static: the other matrix arrives quantized.
    since: the first onnxruntime whose CPU provider has the operator as edgekit writes it.
    """

    kind: Literal["matmul", "conv", "attention", "gather"] = "matmul"
    domain: str = ""
    weight_bytes: float | None = None
    weight: int | None = None
    scale: int | None = None
    left_zero: int | None = None
    blocks: bool = False
    static: bool = False
    since: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether its weight is one of integers."""
        return self.weight is not None or self.blocks


OPERATORS: dict[str, Operator] = {
    "MatMul": Operator(),
    "Gemm": Operator(),
    "FusedMatMul": Operator(domain=MICROSOFT, since="1.12"),  # with transBatchA and transBatchB
    "FusedGemm": Operator(domain=MICROSOFT),
    "MatMulInteger": Operator(weight_bytes=1, weight=1, scale=3, left_zero=2),
    "MatMulInteger16": Operator(domain=MICROSOFT, weight_bytes=2, weight=1),
    "MatMulIntegerToFloat": Operator(domain=MICROSOFT, weight_bytes=1, weight=1, scale=3, left_zero=4, since="1.5"),
    "DynamicQuantizeMatMul": Operator(domain=MICROSOFT, weight_bytes=1, weight=1, scale=2, since="1.5"),
    "QLinearMatMul": Operator(weight_bytes=1, weight=3, scale=4, left_zero=2, static=True),
    "QGemm": Operator(domain=MICROSOFT, weight_bytes=1, weight=3, scale=4, left_zero=2, static=True),
    "MatMulNBits": Operator(
        domain=MICROSOFT, weight_bytes=0.5, blocks=True, since="1.22"
    ),  # with 8 bits, and with a bias
    "MatMulBnb4": Operator(domain=MICROSOFT, weight_bytes=0.5, blocks=True),
    "ConvInteger": Operator(kind="conv", weight_bytes=1, weight=1, scale=3, left_zero=2),
    "QLinearConv": Operator(kind="conv", weight_bytes=1, weight=3, scale=4, left_zero=2, static=True),
    "QAttention": Operator(kind="attention", domain=MICROSOFT, weight_bytes=1, weight=1, scale=4),
    "GroupQueryAttention": Operator(
        kind="attention", domain=MICROSOFT, since="1.20"
    ),  # with softcap and a local window
    "GatherBlockQuantized": Operator(kind="gather", domain=MICROSOFT, blocks=True, since="1.23"),  # of 8 bits
}
