"""OpenVINO on small real graphs: the answers of onnxruntime, the work counted by precision, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_static

from edgekit.modalities.text import of_tokens
from edgekit.runtimes import onnxruntime, openvino
from edgekit.runtimes.openvino.library import product_call
from edgekit.runtimes.openvino.work import precision
from tests.runtimes.onnxruntime.test_onnxruntime import H, K, N, Prompts, make_layers

TEXTS = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9]]
OPTIONS = {"threads": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two products, in float and as pairs of QuantizeLinear and DequantizeLinear."""
    folder = tmp_path_factory.mktemp("openvino")
    make_layers(folder / "float.onnx")
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(folder / "float.onnx", folder / "static.onnx", Prompts(), **kinds)
    return {name: folder / f"{name}.onnx" for name in ("float", "static")}


@pytest.mark.parametrize(("name", "tolerance"), [("float", 1e-5), ("static", 0.02)])
def test_it_answers_as_onnxruntime(files: dict[str, Path], name: str, tolerance: float) -> None:
    found = openvino.outputs(files[name], of_tokens(TEXTS, 0).prompts, options=OPTIONS)
    expected = onnxruntime.outputs(files[name], of_tokens(TEXTS, 0).prompts, options=OPTIONS)
    assert found.shape == (len(TEXTS), N)
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
    assert np.array_equal(found[2], openvino.load(files[name], {}).run(of_tokens([[0]], 0).prompts[0])), (
        "an empty text is its padding"
    )


@pytest.mark.parametrize(("name", "precision", "width"), [("float", "f32", 4), ("static", "i8", 1)])
def test_work_counts_every_product_by_precision(files: dict[str, Path], name: str, precision: str, width: int) -> None:
    work = openvino.work(files[name], OPTIONS, of_tokens([[1, 2, 3, 4, 5]], 0).prompts[0])
    assert work["precisions"] == {precision: 2}
    assert work["matmul_ops"] == {"CPU": 2 * 5 * (K * H + H * N)}
    assert work["weight_bytes"] == width * (K * H + H * N)
    assert work["int8_ops"] == (sum(work["matmul_ops"].values()) if width == 1 else 0)
    assert "MatMul" in work["time_shares"] or not work["time_shares"]
    assert sum(work["time_shares"].values()) == pytest.approx(1.0, abs=0.02)
    assert (work["provider"], work["matmul_nodes"], work["nodes"]["CPU"] >= 4) == ("CPU", {"CPU": 2}, True)
    placed = openvino.placement(OPTIONS, work, openvino.providers())
    assert (placed.measured, placed.wanted, placed.remedy, placed.absent, placed.on_cpu) == (1.0, 1.0, None, None, True)
    assert f"(2 in {precision})" in placed.detail


@pytest.mark.parametrize(("kind", "kernel"), [(np.float32, "f32"), (np.int8, "i8")])
def test_its_own_products_are_of_the_precision_that_is_timed(kind: type[np.generic], kernel: str) -> None:
    """The answers, and the kernel that gave them."""
    import openvino as engine

    numbers = np.random.default_rng(0)
    left, right = numbers.integers(0, 64, (32, 48)).astype(np.float32), numbers.integers(-64, 64, (48, 16)).astype(kind)
    request = product_call(left, right).__closure__
    assert request is not None
    (call,) = [cell.cell_contents for cell in request if isinstance(cell.cell_contents, engine.InferRequest)]
    (answer,) = call.infer({0: left}).values()
    exact = left @ right.astype(np.float32) * (1.0 if kind is np.float32 else 0.01)
    assert np.allclose(answer, exact, rtol=1e-4, atol=1e-2)
    runtime_graph = call.get_compiled_model().get_runtime_model()
    kernels = [str(node.get_rt_info()["primitiveType"].astype(str)) for node in runtime_graph.get_ops()]
    assert any(precision(name) == kernel for name in kernels if "gemm" in name), kernels


def test_a_precision_that_nobody_asked_for_fails() -> None:
    placed = openvino.placement({"precision": "f32"}, {"provider": "CPU", "precisions": {"i8": 2, "bf16": 2}}, ["CPU"])
    assert placed.measured == 0.5
    assert "another precision than runtime.openvino.precision says" in str(placed.remedy)
    asked = openvino.placement({"precision": "bf16"}, {"provider": "CPU", "precisions": {"i8": 2, "bf16": 2}}, ["CPU"])
    assert asked.measured == 1.0
    unknown = openvino.placement({}, {"provider": "CPU"}, ["CPU"])
    assert unknown.measured is None
    assert "named no matrix product" in str(unknown.remedy)


def test_operators_that_it_computes_otherwise_are_refused(tmp_path: Path) -> None:
    """Its reader leaves FusedMatMul's transBatchA out without a word."""
    turned = helper.make_node("FusedMatMul", ["x", "x"], ["logits"], domain="com.microsoft", transBatchA=1)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT), turned],
        "fused",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s"])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    )
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=r'm\.onnx: has operators of com\.microsoft, .* layout = "qdq"'):
        openvino.load(tmp_path / "m.onnx", {})


def test_a_domain_that_no_operator_is_of_is_no_reason(tmp_path: Path) -> None:
    make_layers(tmp_path / "m.onnx")
    model = onnx.load(str(tmp_path / "m.onnx"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert openvino.load(tmp_path / "m.onnx", {}).run(of_tokens([[1]], 0).prompts[0]).shape == (N,)


def test_what_it_cannot_run_it_says(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(openvino.load_errors(), match=r"bad\.onnx: OpenVINO does not load it: .*") as failed:
        openvino.load(tmp_path / "bad.onnx", {})
    assert "core.cpp" not in str(failed.value)
    make_layers(tmp_path / "m.onnx", ("input_ids", "pixel_values"))
    with pytest.raises((ValueError, RuntimeError), match="pixel_values"):
        openvino.load(tmp_path / "m.onnx", {}).run(of_tokens([[1]], 0).prompts[0])
    with pytest.raises(ValueError, match="runs no decoder of edgekit"):
        openvino.generator(tmp_path / "m.onnx", {})
    with pytest.raises(TypeError):
        openvino.load(tmp_path / "m.onnx", {"provider": "CPU"})
