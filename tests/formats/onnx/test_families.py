"""Every encoder family through calibrate and export: the float graph is torch's, the quantized one answers like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.formats import FORMATS
from edgekit.formats.onnx import float_graph
from edgekit.formats.onnx.float_graph import sets_in_order
from edgekit.formats.onnx.graph import copy_model
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.prompts import PromptSet
from edgekit.runtimes import onnxruntime, scores
from edgekit.schema import nearest
from edgekit.tasks import TASKS, outputs
from edgekit.tasks.padding import find_pad_id
from edgekit.workspace import write_product
from tests.architectures.families import MORE, make_family
from tests.conftest import LABELS, make_data
from tests.steps import calibrate, export

Export = Callable[..., onnx.ModelProto]


def make_artifact(folder: Path, student: Path, task: str, scheme: str) -> tuple[dict[str, Any], Path]:
    """Calibrate and export a model in a scheme; returns the facts and the artifact's folder."""
    data = make_data(folder / "data")
    statistics, out = folder / "calibration", folder / "artifact"
    statistics.mkdir()
    out.mkdir()
    facts = calibrate(student, data, task=task, max_length=24, out=statistics)
    write_product(statistics, "calibrate", key="", inputs={}, facts=facts)
    found = export(
        student=student,
        calibration=statistics,
        prompts=data,
        task=task,
        options={"format": "onnx", "scheme": scheme},
        max_length=24,
        out_of_scope=None,
        out=out,
    )
    return found, out


def answers(folder: Path, student: Path, task: str, facts: dict[str, Any]) -> tuple[Any, Any]:
    """Float outputs in torch and the artifact's, on the verify texts."""
    model = load_model(student)
    texts = [row.text for row in PromptSet(folder=folder / "data").split("verify")]
    encoded = of_tokens(model.encode(texts, 24), find_pad_id(model))
    floats = outputs(TASKS[task].load(student), encoded)
    file = folder / "artifact" / facts["file"]
    return floats, onnxruntime.outputs(file, encoded.prompts, options=facts["runtime_options"])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("bert", tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def export_once() -> Export:
    """export_float of the one model that all schemes begin with: traced for the first."""
    traced: list[onnx.ModelProto] = []
    export_float = float_graph.export_float

    def once(*given: Any, **more: Any) -> onnx.ModelProto:
        if not traced:
            traced.append(export_float(*given, **more))
        return copy_model(traced[0])

    return once


@pytest.mark.parametrize("family", sorted(MORE))
def test_a_family_is_exported_and_quantized(family: str, tmp_path: Path) -> None:
    # ModernBERT's layers are of two kinds, of which every third is the other one.
    student = make_family(family, tmp_path / "model", LABELS, layers=4 if family == "modernbert" else 2)
    facts, _ = make_artifact(tmp_path, student, "text-classification", "int8-static")
    floats, quantized = answers(tmp_path, student, "text-classification", facts)
    assert facts["quantized"]["matmul"] > 0
    assert facts["bytes"] < facts["bytes_float"]
    assert np.mean(scores.cosine(floats, quantized)) > 0.97


@pytest.mark.parametrize("scheme", [scheme for scheme in FORMATS["onnx"].SCHEMES["logits"] if scheme != "int8-static"])
def test_every_scheme_answers_like_float(
    scheme: str, bert: Path, export_once: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = bert
    monkeypatch.setattr(float_graph, "export_float", export_once)
    facts, _ = make_artifact(tmp_path, student, "feature-extraction", scheme)
    floats, answered = answers(tmp_path, student, "feature-extraction", facts)
    least = {"fp32": 0.99999, "fp16": 0.9999, "w8": 0.999, "w4": 0.9}.get(scheme, 0.97)
    assert np.mean(scores.cosine(floats, answered)) > least


def test_an_unknown_scheme_names_the_nearest() -> None:
    assert "int8-static" in nearest("int8_static", FORMATS["onnx"].SCHEMES["logits"])


def test_a_familys_sets_have_one_order_while_it_is_exported(tmp_path: Path) -> None:
    """Else the bytes depend on PYTHONHASHSEED: ModernBERT makes its tables in the order of a set of its layers' types."""
    from transformers.models.modernbert import modeling_modernbert

    module = TASKS["feature-extraction"].load(make_family("modernbert", tmp_path / "model"))
    names = [f"attention_{index:02}" for index in range(40)]
    assert list(set(names)) != names  # 40! orders
    with sets_in_order(module):
        assert list(vars(modeling_modernbert)["set"](names)) == names
    assert "set" not in vars(modeling_modernbert)
