"""Adopting a file of another tool: what is copied, what is told of it, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import EdgekitError
from edgekit.export import file_digest
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.prompts import PromptSet
from edgekit.runtimes import onnxruntime
from edgekit.workspace import write_product
from tests.conftest import make_data
from tests.steps import adopt, calibrate, export


def make_bag(path: Path, *, words: int = 64, classes: int = 3, seed: int = 0, location: str | None = None) -> Path:
    """logits [batch, classes] = the sum of a table's rows over the tokens."""
    table = np.random.default_rng(seed).normal(size=(words, classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("ReduceSum", ["rows", "axis"], ["logits"], keepdims=0),
        ],
        "bag",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", classes])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options: dict[str, Any] = {"location": location, "size_threshold": 64} if location else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, str(path), save_as_external_data=location is not None, **options)
    return path


def adopted(file: Path, checkpoint: Path, folder: Path, name: str = "out") -> dict[str, Any]:
    out = folder / name
    out.mkdir()
    return adopt(
        file=file,
        checkpoint=checkpoint,
        prompts=make_data(folder / "data"),
        task="text-classification",
        max_length=32,
        out_of_scope=None,
        out=out,
    )


@pytest.mark.parametrize("location", ["net.onnx.data", "model.onnx_data", "weights.bin"])
def test_weights_of_any_name_come_along(location: str, checkpoint: Path, tmp_path: Path) -> None:
    file = make_bag(tmp_path / "theirs" / "net.onnx", location=location)
    facts = adopted(file, checkpoint, tmp_path)
    out = tmp_path / "out"
    assert facts["file"] == "model.onnx"
    assert facts["files"] == ["model.onnx", location]
    assert facts["bytes"] == sum(path.stat().st_size for path in file.parent.iterdir())
    assert sorted(path.name for path in out.iterdir()) == sorted(["model.onnx", location, "tokenizer.json"])
    ids = load_model(checkpoint).encode(["please turn the hall light on"], 32)
    wanted, given = (
        onnxruntime.outputs(path, of_tokens(ids, 0).prompts, options={}) for path in (file, out / "model.onnx")
    )
    np.testing.assert_array_equal(given, wanted)


def test_equal_graphs_of_other_weights_are_other_artifacts(checkpoint: Path, tmp_path: Path) -> None:
    files = [make_bag(tmp_path / str(seed) / "net.onnx", seed=seed, location="w.bin") for seed in (0, 1)]
    assert files[0].read_bytes() == files[1].read_bytes()
    first, second = (adopted(file, checkpoint, tmp_path, f"out{place}") for place, file in enumerate(files))
    assert first["sha256"] != second["sha256"]
    assert file_digest(files[0]) != file_digest(files[1])


def test_errors_name_the_users_file(checkpoint: Path, tmp_path: Path) -> None:
    missing = make_bag(tmp_path / "a" / "net.onnx", location="w.bin")
    (missing.parent / "w.bin").unlink()
    with pytest.raises(EdgekitError, match=r"a/net\.onnx: its weights are in 'w\.bin', which is not beside it"):
        adopted(missing, checkpoint, tmp_path, "one")
    (tmp_path / "noise.onnx").write_bytes(b"no onnx")
    with pytest.raises(EdgekitError, match=r"noise\.onnx: not an ONNX file"):
        adopted(tmp_path / "noise.onnx", checkpoint, tmp_path, "two")
    four = make_bag(tmp_path / "four.onnx", classes=4)
    with pytest.raises(
        EdgekitError, match=r"four\.onnx: gives 4 scores, but the model has 3 labels; name the checkpoint"
    ):
        adopted(four, checkpoint, tmp_path, "three")
    small = make_bag(tmp_path / "small.onnx", words=4)
    with pytest.raises(
        EdgekitError, match=r"small\.onnx: onnxruntime fails on the calibrate prompts: .*the checkpoint"
    ):
        adopted(small, checkpoint, tmp_path, "four")


def test_a_file_of_torchs_exporter(checkpoint: Path, tmp_path: Path) -> None:
    """Its weights lie in <name>.onnx.data unless it is told otherwise."""
    import torch

    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(64, 16)
            self.head = torch.nn.Linear(16, 3)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(input_ids).mean(dim=1))

    file = tmp_path / "torch.onnx"
    torch.onnx.export(
        Bag().eval(),
        (torch.ones(2, 7, dtype=torch.int64),),
        str(file),
        input_names=["input_ids"],
        dynamic_shapes=({0: torch.export.Dim("b"), 1: torch.export.Dim("s")},),
        dynamo=True,
        verbose=False,
    )
    facts = adopted(file, checkpoint, tmp_path)
    assert facts["files"] == ["model.onnx", "torch.onnx.data"]


def test_padded_batches_calibrate_the_same_artifact(checkpoint: Path, tmp_path: Path) -> None:
    """Padding is masked out of the statistics, so that an artifact does not depend on how prompts were batched."""
    prompts = make_data(tmp_path / "data")
    made = {"task": "text-classification", "max_length": 32, "prompts": prompts}
    facts, answers = [], []
    for batch in (1, 6):
        calibration, out = tmp_path / f"calibration {batch}", tmp_path / f"artifact {batch}"
        calibration.mkdir()
        out.mkdir()
        told = calibrate(checkpoint, batch=batch, out=calibration, **made)
        write_product(calibration, "calibrate", key="test", inputs={}, facts=told)
        options = {"scheme": "int8-static"}
        facts.append(
            export(
                student=checkpoint,
                calibration=calibration,
                options=options,
                out_of_scope=None,
                out=out,
                **made,
            )
        )
        ids = load_model(checkpoint).encode([row.text for row in PromptSet(folder=prompts).split("verify")], 32)
        answers.append(
            onnxruntime.outputs(out / "model.onnx", of_tokens(ids, 0).prompts, options=facts[-1]["runtime_options"])
        )
    assert facts[0]["quantized"] == facts[1]["quantized"]
    assert facts[0]["choices"]["loss"] == pytest.approx(facts[1]["choices"]["loss"], rel=0.05)
    np.testing.assert_allclose(answers[0], answers[1], atol=0.02 * np.abs(answers[0]).max())
