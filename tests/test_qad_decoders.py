"""Quantization-aware distillation of decoders in ONNX: the training's own forward pass is what onnxruntime computes of the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit.distill.decoder_inputs import DecoderInputs, number_texts, round_texts
from edgekit.distill.students import load_module
from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, parse_options
from edgekit.formats.onnx import decoder_grid
from edgekit.formats.onnx.session import Session
from edgekit.grid import GRID, read_packed
from edgekit.inspect.on_grid import compare
from edgekit.model import load_model
from edgekit.qad import qad
from edgekit.runtimes import onnxruntime
from edgekit.runtimes.scores import kl
from edgekit.tasks import TASKS
from tests.architectures.decoders import make_decoder
from tests.steps import calibrate, export
from tests.test_qad import TASK, inputs, made, write_prompts

# A head of its own and a table that is large enough to be rounded; one table for both, whose rows do not fill their blocks.
MODELS: dict[str, dict[str, Any]] = {
    "untied": {"family": "llama", "num_hidden_layers": 1, "vocab_size": 1100},
    "tied": {
        "family": "qwen2",
        "num_hidden_layers": 1,
        "hidden_size": 80,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_decoder(folder=folder / name, **how) for name, how in MODELS.items()}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"the number {index} and what follows it" for index in range(16)]
    folder = tmp_path_factory.mktemp("data") / "prompts"
    return write_prompts(folder, texts, 12, {"label": "is larger than the one before"})


def write(student: Path, prompts: Path, out: Path, scheme: str, **more: object) -> tuple[Path, dict[str, Any]]:
    """The student as an ONNX file, and the facts of that."""
    calibrate(student, prompts, task=TASK, max_length=96, out=made(out / "calibration"))
    facts = export(
        student=student,
        calibration=out / "calibration",
        prompts=prompts,
        task=TASK,
        options={"format": "onnx", "scheme": scheme, **more},
        max_length=96,
        out_of_scope=None,
        out=made(out / "artifact"),
    )
    return out / "artifact" / "model.onnx", facts


@pytest.mark.parametrize(
    ("model", "scheme", "train", "more"),
    [
        ("untied", "w4", "both", {}),
        ("tied", "w4", "weights", {"inputs": "float"}),
        ("tied", "w8", "scales", {"block": 64}),
        ("tied", "int8-dynamic", "both", {"reduce_range": False}),
    ],
)
def test_what_was_trained_is_what_onnxruntime_computes(
    model: str,
    scheme: str,
    train: str,
    more: dict[str, Any],
    teachers: dict[str, Path],
    prompts: Path,
    tmp_path: Path,
) -> None:
    """All codes and scales of the file, and, with the inputs rounded as its engine does, all logits, a padded text's too."""
    teacher, student = teachers[model], made(tmp_path / "student")
    told = inputs(teacher, prompts, scheme, format_="onnx", more=more, epochs=1, train=train, learning_rate=1e-3)
    facts = qad(told, student)
    file, exported = write(student, prompts, tmp_path / "file", scheme, **more)
    shown = compare(file, student)
    assert (shown["exact"], shown["tensors"]) == (True, facts["grid"]["weights"])
    assert not compare(file, teacher)["exact"]
    assert exported["notes"] == []

    module = load_module(TASKS[TASK], student).eval()
    ids = np.random.default_rng(0).integers(5, 500, size=40).tolist()
    loaded = onnxruntime.generator(file, onnxruntime.joined({"threads": 1}, exported["runtime_options"]))
    wanted = loaded.logits(ids)
    loaded.close()
    padded, mask = torch.tensor([[*ids, *[7] * 9]]), torch.tensor([[1] * 40 + [0] * 9])

    def answered() -> np.ndarray:
        with torch.no_grad():
            return np.asarray(module.head(module(padded, mask)[0, :40]))

    plain, grid = answered(), FORMATS["onnx"].grid(load_model(teacher), told.export, "tokens")
    assert grid.rounds_inputs == (scheme == "int8-dynamic")
    if more.get("inputs") == "float":
        assert grid.input_block is None
        np.testing.assert_allclose(plain, wanted, atol=1e-4)
        return
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    with DecoderInputs(module, linears, grid.input_block).rounded():
        rounded = answered()
    np.testing.assert_array_equal(answered(), plain)
    # One value that lies between two steps may go the other way.
    assert float(kl(wanted, rounded).mean()) < 1e-3 * float(kl(wanted, plain).mean())


def test_texts_of_a_row_are_rounded_by_themselves() -> None:
    """Padding, and what lies beside a text in its row, has no part in its range."""
    random = np.random.default_rng(0)
    first, second = (torch.from_numpy(random.normal(size=(1, size, 8)).astype(np.float32)) for size in (3, 4))
    second *= 100
    alone = [round_texts(text, torch.zeros(1, text.shape[1], dtype=torch.int64)) for text in (first, second)]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 0]])
    row = torch.cat([first, second, torch.full((1, 2, 8), 1e6)], dim=1)
    both = round_texts(row, number_texts(torch.tensor([[1] * 7 + [0] * 2]), positions))
    torch.testing.assert_close(both[:, :7], torch.cat(alone, dim=1), rtol=0, atol=0)
    padded = torch.cat([row[:, :3], torch.full((1, 2, 8), 1e6)], dim=1)
    mine = round_texts(padded, number_texts(torch.tensor([[1, 1, 1, 0, 0]]), None))
    torch.testing.assert_close(mine[:, :3], alone[0], rtol=0, atol=0)
    # onnxruntime's own operator, for the text alone.
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["values"], ["codes", "scale", "zero"])
    back = onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["rounded"])
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node, back], "rounding", [make("values", 1, [1, 3, 8])], [make("rounded", 1, [1, 3, 8])]
    )
    asked = Session(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))
    found = asked.values(["rounded"], {"values": first.numpy()})[0]
    np.testing.assert_allclose(alone[0].numpy(), found, rtol=1e-6, atol=1e-7)


def test_codes_that_do_not_fit_are_told(teachers: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    """Another scheme rounds anew and says so; other weights, and codes that lack one, are refused."""
    teacher, student = teachers["tied"], made(tmp_path / "student")
    qad(inputs(teacher, prompts, "w8", format_="onnx", epochs=1), student)
    _, facts = write(student, prompts, tmp_path / "other", "w8", block=64)
    assert "trained for onnx w8" in str(facts["notes"])
    model, (_, options) = load_model(student), parse_options({"format": "onnx", "scheme": "w8"}, "tokens", "export")
    trained, note = decoder_grid.read_trained_decoder(model, "onnx", options)
    assert trained is not None
    assert note is None
    packed = read_packed(student)
    assert packed is not None
    name = next(name for name in packed.kinds if name.endswith("q_proj.weight"))
    weight = np.zeros(model.tensors[name].shape, np.float32)
    with pytest.raises(EdgekitError, match=r"q_proj\.weight: its weights are not those that it was trained with"):
        trained.find(f"model.{name}", weight)
    lacking = replace(trained, packed=replace(packed, kinds={}), shared=None)
    with pytest.raises(EdgekitError, match=r"nothing of model\.layers\.0.*make the step qad again"):
        lacking.find(f"model.{name}", weight)
    (student / GRID).write_bytes((student / GRID).read_bytes()[:-100])
    with pytest.raises(EdgekitError, match="make the step qad again"):
        write(student, prompts, tmp_path / "damaged", "w8")


@pytest.mark.parametrize(
    ("scheme", "train", "message"),
    [
        ("auto", "weights", "chooses by the trained model.*--scheme w4"),
        ("fp16", "weights", "rounds no weight"),
        ("int8-dynamic", "scales", 'the scales of onnx int8-dynamic .pairs. are not learned; write "weights"'),
    ],
)
def test_what_has_no_grid_is_refused(scheme: str, train: str, message: str, teachers: dict[str, Path]) -> None:
    _, options = parse_options({"format": "onnx", "scheme": scheme}, "tokens", "export")
    with pytest.raises(EdgekitError, match=message):
        FORMATS["onnx"].grid(load_model(teachers["tied"]), options, "tokens").check(train)


def test_a_model_that_takes_images_is_refused(tmp_path: Path) -> None:
    folder = make_decoder("gemma3", tmp_path / "model", num_hidden_layers=1, layer_types=["sliding_attention"])
    _, options = parse_options({"format": "onnx", "scheme": "w4"}, "tokens", "export")
    with pytest.raises(EdgekitError, match="save its text model alone"):
        FORMATS["onnx"].grid(load_model(folder), options, "tokens")
