"""Sessions, and the count of nodes and matrix-product work on small real graphs, float and quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

from edgekit.modalities.text import of_tokens
from edgekit.runtimes import RUNTIMES, onnxruntime

K, H, N = 64, 96, 32


def make_layers(path: Path, inputs: tuple[str, ...] = ("input_ids",)) -> None:
    """Two matrix products on embedded tokens, summed over them: logits [batch, 32]."""
    numbers = np.random.default_rng(0)
    shapes = {"table": (50, K), "w1": (K, H), "w2": (H, N)}
    weights = {name: numbers.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "w1"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("MatMul", ["z", "w2"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axis"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", N])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


class Prompts(CalibrationDataReader):
    def __init__(self) -> None:
        numbers = np.random.default_rng(1)
        self.rows = iter([{"input_ids": numbers.integers(0, 50, (1, 8))} for _ in range(8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rows, None)


@pytest.mark.parametrize(("scheme", "width"), [("float", 4), ("dynamic", 1), ("static", 1)])
def test_work_counts_every_product(tmp_path: Path, scheme: str, width: int) -> None:
    make_layers(tmp_path / "float.onnx")
    if scheme == "dynamic":
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "dynamic.onnx", per_channel=True)
    if scheme == "static":
        options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_static(tmp_path / "float.onnx", tmp_path / "static.onnx", Prompts(), **options)
    work = onnxruntime.work(tmp_path / f"{scheme}.onnx", {"threads": 1}, of_tokens([[1, 2, 3, 4, 5]], 0).prompts[0])
    assert work["provider"] == onnxruntime.CPU
    assert work["matmul_nodes"] == {onnxruntime.CPU: 2}
    assert work["matmul_ops"] == {onnxruntime.CPU: 2 * 5 * (K * H + H * N)}
    assert work["weight_bytes"] == width * (K * H + H * N)
    assert work["int8_ops"] == (sum(work["matmul_ops"].values()) if width == 1 else 0)
    assert sum(work["time_shares"].values()) == pytest.approx(1.0, abs=0.02)
    assert work["nodes"][onnxruntime.CPU] >= 4
    assert not list(Path.cwd().glob("profile*.json"))


def test_products_of_activations_have_no_weights(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["input_ids"], ["row"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["row"], ["column"]),
            helper.make_node("MatMul", ["row", "column"], ["logits"]),
        ],
        "square",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "b"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "square.onnx"))
    work = onnxruntime.work(tmp_path / "square.onnx", {"threads": 1}, of_tokens([[1, 2, 3]], 0).prompts[0])
    assert work["weight_bytes"] == 0
    assert sum(work["matmul_ops"].values()) in {0, 6}


def test_outputs_are_one_text_at_a_time(tmp_path: Path) -> None:
    make_layers(tmp_path / "m.onnx", ("input_ids", "attention_mask", "token_type_ids"))
    rows = onnxruntime.outputs(tmp_path / "m.onnx", of_tokens([[1, 2, 3], [4], []], 0).prompts, options={"threads": 1})
    assert rows.shape == (3, N)
    assert rows.dtype == np.float32
    session = onnxruntime.load(tmp_path / "m.onnx", {})
    assert np.array_equal(rows[1], session.run(of_tokens([[4]], 0).prompts[0]))
    assert np.array_equal(rows[2], session.run(of_tokens([[0]], 0).prompts[0]))


def test_absent_provider_falls_back_and_says_so(tmp_path: Path) -> None:
    make_layers(tmp_path / "m.onnx")
    session = onnxruntime.load(tmp_path / "m.onnx", {"provider": "CUDAExecutionProvider"})
    assert session.provider == (
        "CUDAExecutionProvider" if "CUDAExecutionProvider" in onnxruntime.providers() else onnxruntime.CPU
    )


def test_unknown_input_is_named(tmp_path: Path) -> None:
    make_layers(tmp_path / "m.onnx", ("input_ids", "pixel_values"))
    with pytest.raises(ValueError, match="pixel_values"):
        onnxruntime.load(tmp_path / "m.onnx", {}).run(of_tokens([[1]], 0).prompts[0])


@pytest.mark.parametrize("name", RUNTIMES)
def test_runtime_conforms(name: str) -> None:
    runtime = RUNTIMES[name]
    assert name == runtime.NAME
    assert runtime.Options()
    assert runtime.version()
    assert runtime.providers()
