"""The model that a machine's speed is measured with is valid, and computes what it says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekit.runtimes.onnxruntime import throughput


@pytest.mark.parametrize("operator", ["MatMul", "MatMulInteger"])
def test_hand_written_model_is_valid_and_right(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_SIDE", 300)
    numbers = np.random.default_rng(0)
    kinds = (np.uint8, np.int8) if operator == "MatMulInteger" else (np.float32, np.float32)
    a, b = (numbers.integers(0, 60, (300, 300)).astype(kind) for kind in kinds)
    model = throughput.product_model(operator, a, b)
    onnx.checker.check_model(onnx.load_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"a": a})
    assert np.allclose(answer, a.astype(np.float64) @ b.astype(np.float64))


def test_hand_written_chain_keeps_each_of_its_operators() -> None:
    model = throughput._chain_model(5)
    onnx.checker.check_model(onnx.load_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert session.run(None, {"a": np.full(1, 3.0, np.float32)})[0].tolist() == [-3.0]
    assert 0.01 < throughput.dispatch_us() < 10_000
