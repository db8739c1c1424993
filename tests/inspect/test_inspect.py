"""Inspect: every kind is told apart, quantized how is told right for files that others wrote, and damage is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.cli.described import describe_lines
from edgekit.errors import EdgekitError
from edgekit.inspect import inspect
from edgekit.workspace import write_product
from tests.artifacts import LABELS, TARGET, make_artifact, make_model, make_report, make_tokenizer
from tests.bundle.test_bundle import pack_as
from tests.conftest import Answer

WIDTH = 64


def told(path: Path) -> tuple[dict[str, Any], str]:
    found = inspect(path)
    json.dumps(found, allow_nan=False)
    return found, "\n".join(describe_lines(found))


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = relu(x A) B, with weights large enough to quantize."""
    random = np.random.default_rng(0)
    names = ("A", "B")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "A"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "B"], ["y"]),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(random.normal(size=(WIDTH, WIDTH)).astype(np.float32), name) for name in names],
    )
    path = tmp_path_factory.mktemp("onnx") / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


class Prompts:
    """A calibration reader of four rows, as onnxruntime wants it."""

    def __init__(self) -> None:
        self.rows = iter(np.random.default_rng(1).normal(size=(4, 1, WIDTH)).astype(np.float32))

    def get_next(self) -> dict[str, Any] | None:
        row = next(self.rows, None)
        return None if row is None else {"x": row}


def test_a_float_file(two_layers: Path) -> None:
    found, text = told(two_layers)
    assert found["opset"] == {"ai.onnx": 18}
    assert found["ir_version"] == 10
    assert found["inputs"] == {"x": f"float [n, {WIDTH}]"}
    assert found["operators"] == {"MatMul": 2, "Relu": 1}
    assert found["quantized"] == "0 of 2 products with weights"
    assert found["products"] == [{"count": 2, "operator": "MatMul", "weights": "float32", "activations": "float"}]
    assert found["types"]["float32"] == {"tensors": 2, "elements": 2 * WIDTH**2, "bytes": 8 * WIDTH**2}
    assert "0 of 2 products" in text


@pytest.mark.parametrize(("per_channel", "how"), [(True, "per channel"), (False, "per tensor")])
def test_a_dynamic_file_of_onnxruntime(two_layers: Path, tmp_path: Path, per_channel: bool, how: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(two_layers, path, per_channel=per_channel, weight_type=QuantType.QInt8)
    found, _ = told(path)
    assert found["quantized"] == "2 of 2 products with weights"
    row = {"count": 2, "operator": "MatMulInteger", "weights": f"int8, {how}", "activations": "dynamic"}
    assert found["products"] == [row]
    assert found["producer"].startswith("onnx.quantize")


@pytest.mark.parametrize(("per_channel", "how"), [(True, "per channel"), (False, "per tensor")])
def test_a_static_file_of_onnxruntime(two_layers: Path, tmp_path: Path, per_channel: bool, how: str) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    for form, operator in ((QuantFormat.QDQ, "MatMul"), (QuantFormat.QOperator, "QLinearMatMul")):
        path = tmp_path / f"{operator}.onnx"
        quantize_static(
            two_layers,
            path,
            Prompts(),
            quant_format=form,
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
        found, _ = told(path)
        assert found["quantized"] == "2 of 2 products with weights"
        (row,) = found["products"]
        assert row["operator"] == operator
        assert row["weights"] == f"int8, {how}"
        assert row["activations"] == ("uint8, static" if form == QuantFormat.QDQ else "static")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_file_of_onnxruntime(two_layers: Path, tmp_path: Path, bits: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(two_layers), bits=bits, block_size=32, accuracy_level=4)
    quantizer.process()
    path = tmp_path / "blocks.onnx"
    quantizer.model.save_model_to_file(str(path))
    found, text = told(path)
    assert found["products"] == [
        {
            "count": 2,
            "operator": "MatMulNBits",
            "weights": f"{bits}-bit, blocks of 32",
            "activations": "accuracy level 4",
        }
    ]
    assert found["quantized"] == "2 of 2 products with weights"
    assert "com.microsoft.MatMulNBits" in text


def test_half_precision_subgraphs_constants_and_weights_behind_a_transpose(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((8, 16), dtype=np.float16), "w")
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "turned"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT16, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=weight),
            helper.make_node("Transpose", ["c"], ["turned"], perm=[1, 0]),
            helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner),
        ],
        "outer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 16]),
            helper.make_tensor_value_info("yes", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
    )
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph), path)
    found, _ = told(path)
    assert found["products"] == [{"count": 2, "operator": "MatMul", "weights": "float16", "activations": "float"}]
    assert found["types"]["float16"]["bytes"] == 256


def test_external_weights_are_found_missing_or_outside(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    make_model(path, external=True)
    found, _ = told(path)
    assert found["external_files"] == {"model.onnx.data": (tmp_path / "model.onnx.data").stat().st_size}
    (tmp_path / "model.onnx.data").unlink()
    assert inspect(path)["external_files"] == {"model.onnx.data": "missing"}
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    assert inspect(path)["external_files"] == {"../../etc/passwd": "outside the folder"}


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x0a"])
def test_a_damaged_onnx_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(EdgekitError, match=r"bad.onnx: (not a whole ONNX file|no ONNX model)"):
        inspect(path)


def test_a_model_folder_and_its_weights(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    table = np.zeros((13, 4), dtype=np.float32)
    save_file(
        {"embed.word_embeddings.weight": table, "w": np.zeros((4,), dtype=np.float16)}, tmp_path / "model.safetensors"
    )
    config = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 4, "id2label": {"1": "off", "0": "on"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    make_tokenizer(tmp_path / "tokenizer.json")
    found, text = told(tmp_path)
    assert (found["kind"], found["family"], found["parameters"], found["layers"]) == ("model", "bert", 56, 2)
    assert found["labels"] == ["on", "off"]
    assert found["types"]["F16"] == {"tensors": 1, "elements": 4, "bytes": 8}
    assert found["tokenizer"]["vocabulary"] == 13
    assert "embed.word_embeddings.weight" in text
    weights, _ = told(tmp_path / "model.safetensors")
    assert weights["parameters"] == 56
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(EdgekitError, match="truncated"):
        inspect(tmp_path)


def test_our_own_folders(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    found, _ = told(artifact)
    assert (found["kind"], found["scheme"], found["labels"]) == ("artifact", "int8-static", LABELS)
    assert found["model"]["operators"]["Gather"] == 1
    report = make_report(tmp_path / "report", artifact)
    found, text = told(report)
    assert (found["verdict"], found["checks"][0]["limit"]) == ("pass", 0.01)
    assert "0.20 points  0.70 points  1.00 points  pass" in text
    packed = pack_as(tmp_path, artifact, report)
    for place in (packed.bundle, packed.archive):
        found, text = told(place)
        assert (found["kind"], found["name"], found["intact"]) == ("bundle", "demo-board", True)
        assert "tokenizer.json" in text
    assert told(packed.bundle / "bundle.json") == told(packed.bundle)
    assert told(artifact / "export.json") == told(artifact)
    assert told(packed.report)[0]["kind"] == "report"


def test_the_text_has_no_python_in_it_and_nothing_empty() -> None:
    found = {
        "kind": "artifact",
        "external_files": {},
        "quantized": {"float": [], "matmul": 20},
        "choices": {"mode": "static", "float_layers": [], "tried": {f"smoothing {place}": 0.1 for place in range(40)}},
        "model": {
            "products": [{"count": 2, "operator": "MatMul", "node_type": None}, {"count": 1, "operator": "Gemm"}],
            "types": {"int8": {"tensors": 2, "bytes": 2_500_000}, "float32": {"tensors": 10, "bytes": 12}},
            "operators": {"Add": 3, "MatMul": 12000},
            "metadata": {"note": ""},
        },
        "files": {"load.py": 2500},
        "intact": True,
    }
    assert describe_lines(found) == [
        "kind       artifact",
        "quantized",
        "  matmul  20",
        "choices",
        "  mode   static",
        "  tried  40 candidates",
        "model",
        "  products",
        "    count  operator",
        "    2      MatMul",
        "    1      Gemm",
        "  types",
        "             tensors  bytes",
        "    int8     2        2.5 MB",
        "    float32  10       12 B",
        "  operators",
        "    Add     3",
        "    MatMul  12,000",
        "files",
        "  load.py  2.5 kB",
        "intact     yes",
    ]


def test_calibration_reference_and_prompts(tmp_path: Path) -> None:
    calibration = tmp_path / "calibration"
    calibration.mkdir()
    arrays = {"a.query#0/min": -np.ones(3), "a.query#0/max": 5 * np.ones(3), "b#0/max": np.ones(2)}
    np.savez(calibration / "calibration.npz", **arrays)
    write_product(calibration, "calibrate", key="k", inputs={}, facts={"prompts": 7})
    found, text = told(calibration)
    assert found["inputs"] == 2
    assert found["widest_ranges"][0] == {"input": "a.query#0", "largest": 5.0, "channels": 3}
    assert "a.query#0" in text
    (calibration / "calibration.npz").write_bytes(b"torn")
    with pytest.raises(EdgekitError, match="not a calibration"):
        inspect(calibration)

    reference = tmp_path / "reference"
    reference.mkdir()
    np.savez(reference / "reference.npz", teacher_verify=np.zeros((5, 3), dtype=np.float32))
    write_product(reference, "record", key="k", inputs={}, facts={"output": "logits"})
    assert told(reference)[0]["arrays"] == {"teacher_verify": "float32 [5, 3]"}

    prompts = tmp_path / "prompts"
    prompts.mkdir()
    lines = [{"text": "turn on the light", "label": "light_on"}, {"text": "play", "label": None}]
    (prompts / "verify.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, _ = told(prompts)
    assert found["splits"] == {"verify": {"rows": 2, "labels": 1, "words_median": 4, "words_most": 4}}
    (prompts / "verify.jsonl").write_text("nonsense\n")
    with pytest.raises(EdgekitError, match=r"verify.jsonl"):
        inspect(prompts)


def test_targets_and_recipes(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(TARGET)
    found, text = told(tmp_path / "board.toml")
    assert found["kind"] == "target"
    assert "Cortex-A76" in text
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('task = "text-classification"\n[teacher]\nsource = "x"\n[data]\npath = "y"\n')
    assert told(recipe)[0]["kind"] == "recipe"
    assert told(tmp_path)[0]["kind"] == "recipe"
    recipe.write_text("a = 1")
    with pytest.raises(EdgekitError, match="neither a target"):
        inspect(recipe)


def test_what_is_unknown_names_the_known_kinds(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="no such file"):
        inspect(tmp_path / "nothing")
    for path in (tmp_path, tmp_path / "a.bin"):
        if path != tmp_path:
            path.write_bytes(b"?")
        with pytest.raises(EdgekitError, match=r"not a kind of .* that edgekit knows: a model folder"):
            inspect(path)


def test_inspect_imports_no_torch(two_layers: Path) -> None:
    code = f"import sys, pathlib, edgekit.inspect as i; i.inspect(pathlib.Path({str(two_layers)!r})); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["model.onnx", "model.gguf", "model.safetensors", "recipe.toml", "bundle.tar.gz"])
def test_a_pointer_of_git_lfs_is_named(command: Callable[..., Answer], tmp_path: Path, name: str) -> None:
    """What a clone without Git LFS leaves in the place of a large file."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4200000\n"
    (tmp_path / name).write_text(pointer)
    answer = command("inspect", name)
    assert answer.code == 1
    assert answer.err == f"Error: {name}: a pointer of Git LFS, not the file itself; fetch the file: git lfs pull\n"
