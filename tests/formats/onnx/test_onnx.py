"""The ONNX format on small random models, in real onnxruntime: parity, schemes, names, bytes, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, Source
from edgekit.formats import onnx as format_onnx
from edgekit.formats.onnx import candidates, float_graph, traced
from edgekit.formats.onnx import graph as onnx_graph
from edgekit.formats.onnx.graph import Graph, save
from edgekit.formats.onnx.layer_errors import layer_errors
from edgekit.formats.onnx.rounding import pack, unpack
from edgekit.formats.onnx.session import Session
from edgekit.modalities.text import of_tokens
from edgekit.model import Model
from edgekit.schema import parse
from edgekit.tasks import tensors
from edgekit.typed_json import to_table
from tests.formats.conftest import VOCABULARY, Classifier
from tests.steps import source


def nearness(reference: np.ndarray, outputs: np.ndarray) -> float:
    return -float(np.mean((reference - outputs) ** 2) / np.mean(reference**2))


def encoder_source(module: nn.Module, ids: list[list[int]], calibration: Any) -> Source:
    # Its folder is looked into for what the student was trained with: nothing.
    model = Model(folder=Path("no-folder"))
    return source(model, lambda: module, ids, calibration=lambda: calibration, output="logits", score=nearness)


@pytest.fixture
def written(
    module: Classifier,
    ids: list[list[int]],
    calibration: Any,
    exported: onnx.ModelProto,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    """format.write with the module already exported: the exporter takes seconds."""

    def write(out: Path, *, calibration: Any = calibration, **options: Any) -> dict[str, Any]:
        def fresh_copy(*_: Any, **__: Any) -> onnx.ModelProto:
            fresh = onnx.ModelProto()
            fresh.CopyFrom(exported)
            return fresh

        monkeypatch.setattr(float_graph, "export_float", fresh_copy)
        given = encoder_source(module, ids, calibration)
        return to_table(format_onnx.write_encoder(given, format_onnx.Options(**options), out))

    return write


def torch_outputs(module: nn.Module, ids: list[list[int]]) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate([module(**tensors(of_tokens([row], 0).batch())).numpy() for row in ids])


def test_format_is_in_the_table() -> None:
    assert FORMATS["onnx"].RUNTIMES == ("onnxruntime", "openvino")
    assert {"auto", "int8-static", "int8-dynamic", "w8", "w4", "fp16", "fp32"} == set(FORMATS["onnx"].SCHEMES["logits"])


def test_float_graph_has_free_shapes_and_our_names(exported: onnx.ModelProto) -> None:
    assert [value.name for value in exported.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in exported.graph.output] == ["embedding"], "though a node inside has that name"
    shape = [extent.dim_param or extent.dim_value for extent in exported.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", "sequence"]
    assert not exported.graph.value_info
    assert not any(node.metadata_props for node in exported.graph.node), "stack traces carry this machine's paths"


def test_every_linear_carries_its_modules_path(module: Classifier, exported: onnx.ModelProto) -> None:
    paths = {path for path, part in module.named_modules() if isinstance(part, nn.Linear)}
    assert {linear.path for linear in Graph(exported).linears()} == paths
    weights = dict(module.named_parameters())
    graph = Graph(exported)
    for linear in graph.linears():
        np.testing.assert_array_equal(
            graph.constant(linear.weight).T, weights[f"{linear.path}.weight"].detach().numpy()
        )


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("length", [2, 3, 17, 40])
def test_float_graph_equals_torch(module: Classifier, exported: onnx.ModelProto, batch: int, length: int) -> None:
    random = np.random.default_rng(batch * length)
    rows = [random.integers(5, VOCABULARY, size=max(2, length - 3 * place)).tolist() for place in range(batch)]
    inputs = of_tokens(rows, 0).batch()
    with torch.inference_mode():
        expected = module(**tensors(inputs)).numpy()
    np.testing.assert_allclose(Session(exported).run(inputs), expected, rtol=1e-4, atol=1e-5)


def test_the_newer_exporter_was_used(exported: onnx.ModelProto) -> None:
    assert {"Gelu", "LayerNormalization"} <= {node.op_type for node in exported.graph.node}
    assert not any(node.op_type == "Constant" for node in exported.graph.node)


def test_two_exports_are_equal_bytes(module: Classifier, ids: list[list[int]], exported: onnx.ModelProto) -> None:
    again = float_graph.export_float(module, of_tokens(ids, 0), output_name="embedding")
    assert again.SerializeToString(deterministic=True) == exported.SerializeToString(deterministic=True)


@pytest.mark.parametrize("exporter", ["_with_torch", "_with_old_torch"])
def test_fallback_exporters_give_the_same_model(
    exporter: str, module: Classifier, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> onnx.ModelProto:
        raise RuntimeError("not today")

    monkeypatch.setattr(float_graph, "_with_transformers", refuse)
    if exporter == "_with_old_torch":
        monkeypatch.setattr(float_graph, "_with_torch", refuse)
    model = float_graph.export_float(module, of_tokens(ids, 0), output_name="logits")
    paths = {path for path, part in module.named_modules() if isinstance(part, nn.Linear)}
    assert {linear.path for linear in Graph(model).linears()} == paths
    np.testing.assert_allclose(
        Session(model).outputs(of_tokens(ids, 0)), torch_outputs(module, ids), rtol=1e-4, atol=1e-4
    )


def test_a_wrong_graph_is_named_with_its_worst_difference(
    module: Classifier, ids: list[list[int]], exported: onnx.ModelProto
) -> None:
    wrong = onnx.ModelProto()
    wrong.CopyFrom(exported)
    graph = Graph(wrong)
    bias = graph.linears()[-1].bias
    graph.add_constant(bias, graph.constant(bias) + np.float32(0.5))
    with pytest.raises(EdgekitError, match=r"differs from torch by [\d.]+ of .* batch \d, sequence \d+"):
        float_graph.check_parity(module, wrong, of_tokens(ids, 0))


def test_an_operator_without_translation_is_named(ids: list[list[int]]) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(VOCABULARY, 8)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            rows = self.table(input_ids) * attention_mask[..., None]
            return torch.linalg.eigvals(rows.transpose(1, 2) @ rows).real

    with pytest.raises(EdgekitError, match=r"Odd: cannot be exported to ONNX: .*eig"):
        float_graph.export_float(Odd(), of_tokens(ids, 0), output_name="logits")


@pytest.mark.parametrize(
    ("scheme", "share", "error"),
    [
        ("fp32", 1.01, 1e-5),
        ("fp16", 0.55, 1e-2),
        ("w8", 0.5, 4e-2),
        ("w4", 0.5, 0.6),
        ("int8-static", 0.5, 0.1),
        ("int8-dynamic", 0.5, 0.1),
        ("auto", 0.5, 0.1),
    ],
)
def test_schemes(
    scheme: str, share: float, error: float, written: Any, module: Classifier, ids: list[list[int]], tmp_path: Path
) -> None:
    facts = written(tmp_path, scheme=scheme)
    file = tmp_path / facts["file"]
    assert facts["bytes"] == file.stat().st_size <= share * facts["bytes_float"]
    expected = torch_outputs(module, ids)
    given = Session(file).outputs(of_tokens(ids, 0))
    assert given.shape == expected.shape
    assert np.abs(given - expected).mean() <= error * np.abs(expected).mean()
    linears = 2 * 6 + 2
    if scheme in {"fp32", "fp16"}:
        assert facts["quantized"]["matmul"] == 0
    else:
        assert facts["quantized"]["matmul"] + len(facts["quantized"]["float"]) == linears
        assert facts["quantized"]["matmul"] >= linears - 1
    assert facts["runtime_options"] == {"disabled_optimizers": ["SkipLayerNormFusion"], "config_entries": {}}
    assert facts["opset"] >= 18
    assert "LayerNormalization" in facts["operators"]
    assert facts["calibrate_score"]["score"] <= facts["calibrate_score"]["float"]
    assert len(facts["layers"]) == linears
    errors = [layer["error"] for layer in facts["layers"]]
    assert max(errors) <= error**2 * 4
    assert (min(errors) > 0) == (scheme != "fp32")


@pytest.mark.parametrize("scheme", ["w4", "w8"])
def test_blocks_with_float_inputs_compute_what_their_weights_say(
    scheme: str, written: Any, module: Classifier, ids: list[list[int]], tmp_path: Path
) -> None:
    """As torch does with the weights that the file holds; inputs that are rounded at run time give other answers."""
    held = copy.deepcopy(module)
    with torch.no_grad():
        for part in held.modules():
            if isinstance(part, nn.Linear | nn.Embedding) and (isinstance(part, nn.Linear) or len(part.weight) >= 1024):
                kind = f"{scheme}/32" if isinstance(part, nn.Linear) else "table"
                part.weight.copy_(torch.from_numpy(unpack(pack(part.weight.numpy(), kind), kind, part.weight.shape[1])))
    far = {}
    for inputs in ("float", "int8"):
        (tmp_path / inputs).mkdir()
        facts = written(tmp_path / inputs, scheme=scheme, inputs=inputs)
        assert facts["choices"].get("inputs", "int8") == inputs
        given = Session(tmp_path / inputs / facts["file"]).outputs(of_tokens(ids, 0))
        far[inputs] = float(np.abs(given - torch_outputs(held, ids)).max())
    assert far["float"] < 1e-5, far
    assert far["int8"] > 1e-3, far


def test_the_layer_that_loses_is_named(exported: onnx.ModelProto, ids: list[list[int]]) -> None:
    damaged = onnx.ModelProto()
    damaged.CopyFrom(exported)
    graph = Graph(damaged)
    names = [linear.key for linear in graph.linears()]
    bad = graph.linears()[6]
    graph.add_constant(bad.weight, -graph.constant(bad.weight))
    errors = {layer.name: layer.error for layer in layer_errors(exported, damaged, of_tokens(ids, 0))}
    assert list(errors) == names
    assert set(list(errors.values())[:6]) == {0.0}
    assert errors[bad.key] == max(errors.values()) > 1


@pytest.mark.parametrize(
    "options", [{"layout": "qdq"}, {"activation": "int8"}, {"layout": "qdq", "activation": "int8"}]
)
def test_static_layouts_compute_the_same(
    options: dict[str, Any], written: Any, ids: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one recipe: on other graphs of the same model the choice may fall on another."""
    same = candidates.Recipe8(mode="static", alpha=0.6, activated="ladder")
    monkeypatch.setattr(candidates, "choose", lambda *_, **__: same)
    answers = []
    for place, chosen in enumerate(({}, options)):
        out = tmp_path / str(place)
        out.mkdir()
        facts = written(out, scheme="int8-static", float_layers=0, reduce_range=True, **chosen)
        answers.append(Session(out / facts["file"]).outputs(of_tokens(ids, 0)))
    np.testing.assert_allclose(answers[1], answers[0], atol=2.5e-2 * np.abs(answers[0]).max())


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
def test_full_range_weights_are_exact_on_every_cpu(
    scheme: str, written: Any, ids: list[list[int]], tmp_path: Path
) -> None:
    """An x86 CPU without VNNI saturates on such weights unless the session is told not to, which the facts say."""
    facts = written(tmp_path, scheme=scheme, float_layers=0, reduce_range=False)
    model = onnx.load(str(tmp_path / facts["file"]))
    answers = Session(model, entries=facts["runtime_options"]["config_entries"]).outputs(of_tokens(ids, 0))
    slow = np.concatenate([run_exactly(model, row) for row in ids])
    np.testing.assert_allclose(answers, slow, atol=1e-3 * np.abs(slow).max())


def run_exactly(model: onnx.ModelProto, row: list[int]) -> np.ndarray:
    """The graph with its integer products in int32, by onnxruntime's U8U8 kernels: weights shifted by 128."""
    shifted = onnx.ModelProto()
    shifted.CopyFrom(model)
    graph = Graph(shifted)
    for node in shifted.graph.node:
        if node.op_type not in {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}:
            continue
        place = 5 if node.op_type == "MatMulIntegerToFloat" else 3
        weights = graph.constant(node.input[1])
        while len(node.input) <= place:
            node.input.append("")
        node.input[1] = graph.add_constant(f"{node.name}.u8", (weights.astype(np.int16) + 128).astype(np.uint8))
        node.input[place] = graph.add_constant(f"{node.name}.128", np.full(weights.shape[1], 128, np.uint8))
    return Session(shifted).outputs(of_tokens([row], 0))


def test_writing_twice_gives_equal_bytes(written: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (written(tmp_path / name, scheme="int8-static")["sha256"] for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("scheme", ["int8-static", "auto"])
@pytest.mark.parametrize("kind", ["none", "one layer less", "narrower"])
def test_static_with_the_statistics_of_another_model_is_an_error(
    scheme: str, kind: str, written: Any, calibration: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "model.bert.encoder.layer.1.attention.self.query#0"
    stats = {} if kind == "none" else dict(calibration.stats)
    if kind == "one layer less":
        stats = {key: seen for key, seen in stats.items() if ".layer.1." not in key}
    elif kind == "narrower":
        stats[first] = SimpleNamespace(**{name: part[:32] for name, part in vars(stats[first]).items()})
    count = {"none": 14, "one layer less": 6, "narrower": 1}[kind]
    named = "model.bert.encoder.layer.0.attention.self.query#0" if kind == "none" else first
    monkeypatch.setattr(candidates, "trial", lambda *_, **__: pytest.fail("a trial was run"))
    with pytest.raises(EdgekitError, match=f"that fit {count} of the model's 14 Linears .{named}.*this very model"):
        written(tmp_path, scheme=scheme, calibration=SimpleNamespace(stats=stats))


def test_dynamic_needs_no_statistics(written: Any, tmp_path: Path) -> None:
    facts = written(tmp_path, scheme="int8-dynamic", calibration=SimpleNamespace(stats={}), float_layers=0)
    assert facts["quantized"] == {"matmul": 14, "float": []}


def test_qdq_is_static(written: Any, tmp_path: Path) -> None:
    """A dynamic pair is not fused: its products would be float."""
    facts = written(tmp_path, scheme="auto", layout="qdq", float_layers=0)
    assert facts["scheme"] == "int8-static"
    assert list(facts["choices"]["candidates"]["loss"]) == ["static"]
    assert "DynamicQuantizeLinear" not in facts["operators"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"float_layers": -1}, "x.toml: export.y.float_layers: should be greater than or equal to 0, got -1"),
        ({"block": 48}, "x.toml: export.y.block: should be 16, 32, 64, 128 or 256, got 48"),
        ({"layout": "qdq", "table_bits": 4}, "x.toml: export.y: .*use table_bits = 8 or layout = 'operators'"),
        ({"inputs": "float"}, "x.toml: export.y: .*use scheme = 'w8' or 'w4', or leave inputs out"),
        ({"layout": "qdq", "scheme": "int8-dynamic"}, "x.toml: export.y: .*use scheme = 'int8-static' or layout ="),
    ],
)
def test_options_out_of_bounds_name_their_key(table: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgekitError, match=said):
        parse(format_onnx.Options, table, "x.toml: export.y")


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_every_block_is_one_that_onnxruntime_runs(
    block: Any, written: Any, ids: list[list[int]], tmp_path: Path
) -> None:
    assert parse(format_onnx.Options, {"block": block, "float_layers": 0}, "x").block == block
    facts = written(tmp_path, scheme="w8", block=block)
    assert facts["choices"]["block"] == block
    assert np.isfinite(Session(tmp_path / facts["file"]).outputs(of_tokens(ids[:2], 0))).all()


def test_a_model_over_two_gigabytes_is_refused_before_it_is_exported(
    module: Classifier, ids: list[list[int]], calibration: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", 1000)
    monkeypatch.setattr(float_graph, "export_float", lambda *_, **__: pytest.fail("was exported"))
    given = encoder_source(module, ids, calibration)
    with pytest.raises(EdgekitError, match=r"Classifier: float weights of 0\.\d+ GB: over the 2 GB .* a smaller model"):
        format_onnx.write_encoder(given, format_onnx.Options(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_graph_over_two_gigabytes_is_refused_too(exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter may repeat what the module shares."""
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", 1000)
    with pytest.raises(EdgekitError, match=r"the exported graph: float weights of .* over the 2 GB"):
        Session(exported)


def test_onnxruntime_logs_nothing_of_its_own(exported: onnx.ModelProto, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EdgekitError, match=r"onnxruntime fails on ids of shape .1, 2.: .*Gather"):
        Session(exported).run(of_tokens([[VOCABULARY, 1]], 0).batch())
    assert capfd.readouterr().err == ""


def test_a_kept_graph_gives_the_same_file(
    written: Any, module: Classifier, ids: list[list[int]], calibration: Any, tmp_path: Path
) -> None:
    def keep(fill: Callable[[Path], None]) -> Path:
        fill(tmp_path)
        return tmp_path

    fresh, again = tmp_path / "fresh", tmp_path / "again"
    given = encoder_source(module, ids, calibration)
    for out in (fresh, again):
        out.mkdir()
    facts = written(fresh, scheme="int8-static")
    kept = format_onnx.write_encoder(replace(given, keep=keep), format_onnx.Options(scheme="int8-static"), again)
    assert kept.sha256 == facts["sha256"]


def test_a_quantizing_scheme_must_be_smaller(written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "float_size", lambda _: 1)
    with pytest.raises(EdgekitError, match="use --scheme fp32"):
        written(tmp_path, scheme="w8")


def test_without_prompts_nothing_is_written(module: Classifier, calibration: Any, tmp_path: Path) -> None:
    given = encoder_source(module, [], calibration)
    with pytest.raises(EdgekitError, match="no calibrate prompts"):
        format_onnx.write_encoder(given, format_onnx.Options(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_large_models_keep_their_weights_beside_them(
    exported: onnx.ModelProto, ids: list[list[int]], tmp_path: Path
) -> None:
    size = save(exported, tmp_path / "model.onnx", largest=1000)
    facts = format_onnx.describe_file(tmp_path / "model.onnx")
    assert [*facts.files] == sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert size == facts.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    np.testing.assert_array_equal(
        Session(tmp_path / "model.onnx").outputs(of_tokens(ids[:3], 0)),
        Session(exported).outputs(of_tokens(ids[:3], 0)),
    )
    assert exported.graph.initializer[0].data_location == onnx.TensorProto.DEFAULT, "the model in memory is untouched"


def test_any_onnx_file_is_described(exported: onnx.ModelProto, tmp_path: Path) -> None:
    save(exported, tmp_path / "theirs.onnx")
    facts = format_onnx.describe_file(tmp_path / "theirs.onnx")
    assert facts.name == "theirs.onnx"
    assert facts.minimum_runtime == "1.18"
    (tmp_path / "bad.onnx").write_bytes(b"not onnx at all")
    with pytest.raises(EdgekitError, match=r"bad\.onnx"):
        format_onnx.describe_file(tmp_path / "bad.onnx")
    with pytest.raises(EdgekitError, match=r"missing\.onnx"):
        format_onnx.describe_file(tmp_path / "missing.onnx")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Answers that are not numbers, of another shape, or of a float file another's, are no export."""
    from edgekit.formats.onnx import _check_written

    right = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    _check_written(tmp_path / "model.onnx", right + 1e-5, right, exact=True)
    _check_written(tmp_path / "model.onnx", right + 0.5, right, exact=False)
    for answers, said in (
        (right[:1], r"answers \[1, 2\], the float model \[2, 2\]"),
        (np.where(right > 3, np.inf, right), "NaN or infinite answers on 1 of 2 calibrate prompts"),
        (right + 0.01, r"answers 0\.01 away from the float model"),
    ):
        with pytest.raises(EdgekitError, match=said):
            _check_written(tmp_path / "model.onnx", answers, right, exact=True)
