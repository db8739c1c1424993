"""How fast one core multiplies matrices in OpenVINO, and what an operator costs there: what its times are held against."""

from __future__ import annotations

from edgekit.runtimes.onnxruntime.throughput import PRODUCT_OPS, PRODUCTS, product
from edgekit.runtimes.openvino.library import chain_call, product_call
from edgekit.runtimes.timing import worked

# Operators of the chain that shows what one costs.
_NODES = 64


def own_speeds() -> dict[str, float]:
    """own_fp32_gflops, own_int8_gops and dispatch_us, by processor time of one thread.

    Products as those of onnxruntime that a target states (10^9 operations per second; of bytes with the step that makes them); a
    64th of a call of 64 operators, in microseconds.
    """
    import numpy as np

    found = {}
    for key, operator in PRODUCTS.items():
        _, left = product(operator)
        right = np.random.default_rng(0).integers(-64, 64, left.shape)
        kind = np.float32 if operator == "MatMul" else np.int8
        call = product_call(left.astype(np.float32), right.astype(kind))
        found[f"own_{key}"] = PRODUCT_OPS / worked(call) / 1e9
    return {**found, "dispatch_us": 1e6 * worked(chain_call(_NODES), 0.05) / _NODES}
