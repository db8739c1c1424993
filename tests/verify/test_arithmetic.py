"""Which artifacts could answer otherwise on a CPU without exact INT8 products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.runtimes.machine import describe, saturates
from edgekit.runtimes.onnxruntime.library import EXACT_SUMS, Options, open_session
from edgekit.target import Hardware
from edgekit.verify.arithmetic import is_exact, saturated, saturating_share
from edgekit.verify.checks import check_arithmetic


def make_quantized(path: Path, weights: np.ndarray, form: str, zero: type = np.uint8) -> Path:
    """x · weights [inner, columns] in one of the forms that quantizers write."""
    inner, columns = weights.shape
    values: dict[str, Any] = {"w": weights, "scale": np.float32(0.1), "zero": zero(0), "none": np.int8(0)}
    if form == "signed MatMulInteger":
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("MatMulInteger", ["q", "w", "zero", "none"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT),
        ]
    elif form == "MatMulInteger":
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z", "none"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["y"], to=TensorProto.FLOAT),
        ]
    elif form == "QGemm":
        values["w"] = np.ascontiguousarray(weights.T)
        given = ["q", "scale", "zero", "w", "scale", "none"]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("QGemm", given, ["y"], transB=1, domain="com.microsoft"),
        ]
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "scale", "none"], ["wd"]),
        ]
        if form == "transB":
            values["w"] = np.ascontiguousarray(weights.T)
            nodes.append(helper.make_node("Gemm", ["xd", "wd"], ["y"], transB=1))
        else:
            nodes.append(helper.make_node("MatMul", ["xd", "wd"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("form", ["MatMulInteger", "QDQ", "transB", "QGemm"])
def test_share_counts_neighbours_along_the_inner_dimension(tmp_path: Path, form: str) -> None:
    # Four columns: both large, opposite signs, below the limit, both very negative; three rows, so the last has no neighbour.
    weights = np.array([[100, 100, 64, -70], [100, -100, 64, -70], [127, 127, 127, 127]], dtype=np.int8)
    assert saturating_share(make_quantized(tmp_path / "m.onnx", weights, form)) == pytest.approx(2 / 8)


def test_seven_bits_cannot_saturate(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).integers(-64, 65, (64, 64)).astype(np.int8)
    assert saturating_share(make_quantized(tmp_path / "m.onnx", weights, "QDQ")) == 0.0


def test_the_limit_is_where_16_bits_end() -> None:
    """128 * 255 fits, 129 * 255 does not, whichever sign."""
    assert 128 * 255 <= 32767 < 129 * 255
    assert -128 * 255 >= -32768 > -129 * 255


def test_signed_activations_count_where_they_are_dequantized(tmp_path: Path) -> None:
    """onnxruntime makes those unsigned on x86, and leaves those of integer operators signed."""
    weights = np.full((4, 4), 127, np.int8)
    assert saturating_share(make_quantized(tmp_path / "m.onnx", weights, "QDQ", np.int8)) == 1.0
    signed = make_quantized(tmp_path / "n.onnx", weights, "signed MatMulInteger", np.int8)
    assert saturating_share(signed) is None
    assert saturated(signed, [{"x": np.ones(4, np.float32)}]) is None


def test_what_counts_is_what_saturates_here(tmp_path: Path) -> None:
    """On a CPU without VNNI: onnxruntime's own answers with and without exact sums; on others both are exact."""
    saturating = saturates("x86_64", describe()["features"]) if describe()["arch"] == "x86_64" else False
    weights = np.full((64, 16), 127, np.int8)
    prompt = {"x": np.full((1, 64), 12.7, np.float32)}
    for form, zero, counts in (("QDQ", np.int8, True), ("signed MatMulInteger", np.int8, False)):
        file = make_quantized(tmp_path / "m.onnx", weights, form, zero)
        plain, exact = (
            open_session(file, Options(threads=1, config_entries=dict(entries))).run(None, prompt)[0]
            for entries in ({}, EXACT_SUMS)
        )
        assert np.allclose(plain, exact, rtol=1e-4) is not (counts and bool(saturating)), form


@pytest.mark.parametrize(("form", "zero"), [("MatMulInteger", np.uint8), ("QDQ", np.uint8), ("QDQ", np.int8)])
def test_saturation_is_foretold_for_each_prompt(tmp_path: Path, form: str, zero: type) -> None:
    """By the sums of pairs, where both of a pair are large and meet large weights of one sign."""
    numbers = np.random.default_rng(0)
    weights = numbers.normal(0, 36, (64, 16)).round().clip(-127, 127).astype(np.int8)
    file = make_quantized(tmp_path / "m.onnx", weights, form, zero)
    # Of these activations the largest is 255 in `form`s that quantize by themselves, else what 0.1 makes of them.
    prompts = numbers.uniform(-10, 34, (60, 64)).astype(np.float32)
    if form == "MatMulInteger":
        low, high = (np.minimum(prompts.min(1), 0), np.maximum(prompts.max(1), 0))
        scale = ((high - low) / 255)[:, None]
        quantized = (prompts / scale).round() + (-low[:, None] / scale).round()
    else:
        ends = np.iinfo(zero)
        quantized = (prompts / np.float32(0.1)).round().clip(ends.min, ends.max) + (128 if zero is np.int8 else 0)
    sums = np.einsum("ni,io->nio", quantized.clip(0, 255), weights.astype(np.float64))
    pairs = sums[:, 0::2] + sums[:, 1::2]
    truth = ((pairs > 32767) | (pairs < -32768)).any(axis=(1, 2))
    assert 0 < truth.sum() < len(truth)
    found = saturated(file, [{"x": prompt} for prompt in prompts])
    assert found is not None
    assert (found == truth).mean() >= 0.98


VNNI, NO_VNNI = ["avx2", "avx512_vnni"], ["avx2"]


def test_a_session_that_asks_for_exact_sums_passes() -> None:
    hardware = Hardware(arch="x86_64", cpu="x", cores=1, features=VNNI, memory_mb=1, sources=[])
    here = {"arch": "x86_64", "features": NO_VNNI}
    assert is_exact({"config_entries": {"session.x64quantprecision": "1"}})
    assert not is_exact({"config_entries": {"session.x64quantprecision": "0"}})
    assert check_arithmetic(hardware, here, 0.1, exact=True).verdict == "pass"
    assert "exact" in str(check_arithmetic(hardware, here, 0.1, exact=True).detail)
    untold = check_arithmetic(hardware, here | {"features": []}, 0.1, exact=True)
    assert untold.verdict == "pass"
    assert "the session asks for exact sums" in str(untold.detail)


@pytest.mark.parametrize(
    ("here", "there", "share", "verdict", "says"),
    [
        (VNNI, NO_VNNI, 0.1, "not proven", "reduce_range = true"),
        (NO_VNNI, VNNI, 0.1, "not proven", "this machine has no VNNI"),
        (VNNI, VNNI, 0.1, "pass", None),
        (NO_VNNI, NO_VNNI, 0.1, "pass", None),
        (VNNI, NO_VNNI, 0.0, "pass", None),
        (VNNI, NO_VNNI, None, "pass", None),
        # Windows tells no features: unknown is neither like a CPU without VNNI nor like another unknown one.
        ([], NO_VNNI, 0.1, "not proven", "this machine tells no CPU features"),
        ([], VNNI, 0.1, "not proven", "this machine tells no CPU features"),
        (VNNI, [], 0.1, "not proven", "the target tells no CPU features"),
        ([], [], 0.1, "not proven", "no CPU features"),
        ([], NO_VNNI, 0.0, "pass", None),
        ([], NO_VNNI, None, "pass", None),
    ],
)
def test_check(here: list[str], there: list[str], share: float | None, verdict: str, says: str | None) -> None:
    hardware = Hardware(arch="x86_64", cpu="x", cores=1, features=there, memory_mb=1, sources=[])
    check = check_arithmetic(hardware, {"arch": "x86_64", "features": here}, share, exact=False)
    assert check.verdict == verdict
    assert (check.remedy is None) if says is None else (says in str(check.remedy))
