"""The dry run is the plan: what is kept, how many bytes come, what can be proven, how long it takes here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.cost import Size
from edgekit.distill.cost import training_cost
from edgekit.formats import FORMATS, gguf
from edgekit.formats.onnx import graph
from edgekit.formats.onnx.sizes import float_layer_bytes, predict_bytes, predict_decoder_bytes
from edgekit.formats.onnx.smooth import Range
from edgekit.modalities.text import of_tokens
from edgekit.model import Model
from edgekit.pipeline import cost as costing
from edgekit.pipeline.resolve import read_settings
from edgekit.pipeline.shapes import created_shapes, planned_student, trained_model
from edgekit.recipe import Recipe, load_recipe
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.memory import Demand
from tests.conftest import Answer
from tests.hub_variants import make_bert, make_roberta

Command = Callable[..., Answer]
SCHEMES = ("fp32", "fp16", "w8", "w4", "int8-dynamic", "int8-static")


def made_model(recipe: Recipe, teacher: Path | None, output: str, classes: int) -> Model:
    """What `export` gets, as the estimate sees it."""
    return planned_student(trained_model(read_settings(recipe), teacher, output, classes), recipe, classes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Sequence[Sequence[int]], onnx.ModelProto]:
    """A BERT of some size, saved and traced once."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from edgekit.formats.onnx.float_graph import export_float

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            config = BertConfig(
                vocab_size=8000, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
                max_position_embeddings=512, num_labels=5, attn_implementation="eager",
            )  # fmt: skip
            self.model = BertForSequenceClassification(config)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            types = torch.zeros_like(input_ids)
            return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=types).logits

    folder = tmp_path_factory.mktemp("bert")
    module = Classifier().eval()
    module.model.save_pretrained(folder)
    ids = [np.random.default_rng(length).integers(5, 8000, size=length).tolist() for length in (5, 9, 20)]
    return Model(folder=folder), ids, export_float(module, of_tokens(ids, 0), output_name="logits")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_are_within_two_percent(exported: Any, tmp_path: Path, scheme: str) -> None:
    from edgekit.formats.onnx.blocks import quantize_blocks
    from edgekit.formats.onnx.quantize import Int8, quantize_int8
    from edgekit.formats.onnx.simplify import simplified
    from edgekit.runtimes.onnxruntime.library import convert_to_half

    model, ids, traced = exported
    made = simplified(graph.copy_model(traced), of_tokens(ids, 0), for_cpu=scheme != "fp16")
    if scheme == "fp16":
        made = convert_to_half(made)
    elif scheme != "fp32":
        rewritten = graph.Graph(made)
        if scheme.startswith("int8"):
            seen = {linear.key: ranges(rewritten, linear.weight) for linear in rewritten.linears()}
            quantize_int8(rewritten, Int8(ranges=seen if scheme == "int8-static" else None))
        else:
            quantize_blocks(rewritten, bits=int(scheme[1:]), block=32)
        made = rewritten.model
    size = graph.save(made, tmp_path / "model.onnx")
    assert predict_bytes(model, scheme, 32) == pytest.approx(size, rel=0.02)


def test_bytes_of_tables_of_four_bits(exported: Any, tmp_path: Path) -> None:
    from edgekit.formats.onnx.quantize import Int8, quantize_int8
    from edgekit.formats.onnx.simplify import simplified

    model, ids, traced = exported
    rewritten = graph.Graph(simplified(graph.copy_model(traced), of_tokens(ids, 0), for_cpu=True))
    quantize_int8(rewritten, Int8(ranges=None, table_bits=4))
    size = graph.save(rewritten.model, tmp_path / "model.onnx")
    assert predict_bytes(model, "int8-dynamic", 32, 4) == pytest.approx(size, rel=0.02)
    assert size < 0.8 * predict_bytes(model, "int8-dynamic", 32)


@pytest.mark.parametrize("count", [1, 3])
def test_bytes_where_layers_stay_float(exported: Any, tmp_path: Path, count: int) -> None:
    """Which Linears stay float is decided at export: what is told is for the largest."""
    from edgekit.formats.onnx.quantize import Int8, quantize_int8
    from edgekit.formats.onnx.simplify import simplified

    model, ids, traced = exported
    rewritten = graph.Graph(simplified(graph.copy_model(traced), of_tokens(ids, 0), for_cpu=True))
    largest = sorted(rewritten.linears(), key=lambda linear: -np.size(rewritten.constant(linear.weight)))[:count]
    quantize_int8(rewritten, Int8(ranges=None, keep_float=[linear.key for linear in largest]))
    size = graph.save(rewritten.model, tmp_path / "model.onnx")
    told = predict_bytes(model, "int8-dynamic", 32) + float_layer_bytes(model, count)
    assert told == pytest.approx(size, rel=0.02)


def ranges(made: graph.Graph, weight: str) -> Range:
    """What a calibration may have seen of a Linear's input."""
    ones = np.ones(made.initializers[weight].dims[0], np.float32)
    return Range(minimum=-ones, maximum=ones, mean_square=ones)


def recipe_of(tmp_path: Path, task: str, teacher: str, more: str = "") -> Recipe:
    (tmp_path / "recipe.toml").write_text(f'task = "{task}"\n[teacher]\n{teacher}\n{more}\n[data]\npath = "data"\n')
    return load_recipe(tmp_path)


def shapes(tensors: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    return sorted(tuple(shape) for shape in tensors)


@pytest.mark.parametrize("make", [make_bert, make_roberta])
def test_a_student_with_a_new_head_has_the_shapes_that_were_told(make: Any, tmp_path: Path) -> None:
    """Of a base that knows no classes: what training leaves is what the plan's bytes were counted for."""
    from edgekit.distill.students import cut
    from edgekit.tasks.encoders import load_encoder

    folder = make(tmp_path / "teacher", None)
    recipe = recipe_of(
        tmp_path, "text-classification", 'source = "teacher"', "[teacher.finetune]\n[student]\nkeep = [1]"
    )
    told = made_model(recipe, folder, "logits", 7)
    assert told.layers == 1
    module = load_encoder(folder, "text-classification", {"num_labels": 7})
    cut(module, [1])
    assert shapes(info.shape for info in told.tensors.values()) == shapes(one.shape for one in module.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_created_decoder_has_the_shapes_that_were_told(family: str, tied: bool, tmp_path: Path) -> None:
    import torch

    from edgekit.distill.created import make_decoder
    from edgekit.distill.options import CreateOptions

    options = CreateOptions(family=family, hidden=64, layers=3, heads=4, kv_heads=2, vocabulary=400, tied=tied)  # type: ignore[arg-type]
    with torch.device("meta"):
        made = make_decoder(options, options.vocabulary)
    assert {name: tuple(one.shape) for name, one in made.named_parameters()} == created_shapes(options)
    create = f'create = {{ family = "{family}", hidden = 64, layers = 3, heads = 4, vocabulary = 400 }}'
    recipe = recipe_of(tmp_path, "text-generation", create, "[student]\nkeep = [0, 2]")
    told = made_model(recipe, None, "tokens", 0)
    assert told.layers == 2
    assert "model.layers.1.mlp.up_proj.weight" in told.tensors
    assert not any(name.startswith("model.layers.2.") for name in told.tensors)
    # Both formats say how large it will be.
    (cost,) = gguf.costs(told, "tokens", [gguf.Options(scheme="q8_0")])
    assert cost.memory.value > told.parameters
    assert cost.file.value > cost.memory.value + 400 * gguf.TOKEN_BYTES
    assert predict_decoder_bytes(told, "w8", 32) > told.parameters


def plan(command: Command, *arguments: str) -> dict[str, Any]:
    answer = command("build", "-t", "laptop-cpu", "--dry-run", "--json", *arguments)
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out)["plans"][0])


def test_what_is_kept_is_told(command: Command, project: Path) -> None:
    """Each step by its own fingerprint; nothing is made, and no look is taken at the prompts."""
    (project.parent / "cache").mkdir()
    assert set(plan(command)["kept"].values()) == {False}
    assert sorted(path.name for path in (project.parent / "cache").iterdir()) == ["check", "locks", "prompts"]
    assert command("calibrate", "teacher", "-o", "made/calibration").code == 0
    assert command("record", "teacher", "teacher", "-o", "made/reference").code == 0
    assert set(plan(command)["kept"].values()) == {False}, "what lies at --out is not the cache's"
    from edgekit.cli.options import open_session
    from edgekit.pipeline import calibrate, gather_prompts, read_settings, record
    from edgekit.recipe import load_recipe

    recipe, session = load_recipe(project), open_session(project.parent / "cache", Path("dist"))
    prompts, teacher, settings = gather_prompts(recipe, session), project.parent / "teacher", read_settings(recipe)
    calibrate(settings, teacher, prompts, session)
    assert [step for step, kept in plan(command)["kept"].items() if kept] == ["calibrate"]
    record(settings, teacher, teacher, prompts, session)
    assert [step for step, kept in plan(command)["kept"].items() if kept] == ["calibrate", "record"]
    assert [step for step, kept in plan(command, "--set", "data.max_length=16")["kept"].items() if kept] == []


def test_rounding_with_feedback_is_counted(command: Command, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds of a machine of one operation a second."""
    monkeypatch.setattr(costing, "_speed", lambda: 1.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)

    def took(*more: str) -> int:
        return int(plan(command, *more)["estimate"]["seconds_by_step"]["export"])

    without = took("--scheme", "w8")
    assert took("--scheme", "w4", "--export", "feedback=false") == without
    assert took("--scheme", "w4") > 1.1 * without


def test_a_busy_machine_tells_no_time(command: Command, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 1.0, 1.0), raising=False)
    guess = plan(command)["estimate"]
    assert guess["seconds"] is None
    assert guess["busy"].startswith("load 100.0 on ")
    said = command("build", "-t", "laptop-cpu", "--dry-run").out.splitlines()
    assert said[-1].startswith("in all: time unknown: this machine is busy (load 100.0")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    guess = plan(command)["estimate"]
    assert guess["seconds"] == sum(guess["seconds_by_step"].values()) > 0
    both = command("build", "-t", "laptop-cpu", "-t", "raspberrypi", "--dry-run").out.splitlines()
    assert re.fullmatch(r"in all: about \d+ (s|min), \d+ MB of memory, \d+ MB of disk", both[-1])
    assert sum(line.startswith("in all") for line in both) == 1


def test_what_the_prompts_can_prove_is_told_before_anything_runs(command: Command, project: Path) -> None:
    said = command("build", "-t", "laptop-cpu", "--dry-run", "--set", "accuracy.student_margin=0.01").out
    assert "prompts cannot prove 1.00 points" in " ".join(said.split())
    assert all(len(line) <= 80 for line in said.splitlines() if "teacher" not in line and "in all" not in line)


def test_a_model_is_planned_once_for_each_target(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three targets with five candidates each."""
    from edgekit.formats.gguf import metadata, tensors
    from tests.architectures.decoders import make_decoder

    make_decoder("llama", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    texts = Path(__file__).parents[2] / "calib_data" / "chat"
    (tmp_path / "recipe.toml").write_text(
        f'task = "text-generation"\n[teacher]\nsource = "model"\n[data]\npath = {json.dumps(texts.as_posix())}\n'
        'messages = "messages"\n'
    )
    planned: list[Model] = []

    def plan(model: Model) -> list[tensors.Tensor]:
        planned.append(model)
        return own(model)

    own = tensors.plan
    for module in (tensors, metadata):
        monkeypatch.setattr(module, "plan", plan)
    targets = [word for name in ("raspberrypi", "laptop-cpu", "raspberrypi4") for word in ("-t", name)]
    answer = command("build", "--dry-run", "--json", *targets)
    assert answer.code == 0, answer.err
    assert [len(one["estimate"]["schemes_mb"]) for one in json.loads(answer.out)["plans"]] == [5, 5, 5]
    assert len(planned) == 3


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_says_what_each_scheme_costs(name: str, tmp_path: Path) -> None:
    """One conformance test: of every scheme that has a size, in the order of what was asked; each figure has its source."""
    create = 'create = { family = "llama", hidden = 256, layers = 2, heads = 4, vocabulary = 400 }'
    known, model = FORMATS[name], made_model(recipe_of(tmp_path, "text-generation", create), None, "tokens", 0)
    schemes = [scheme for scheme in known.SCHEMES["tokens"] if scheme != "auto"]
    costs = known.costs(model, "tokens", [known.Options(scheme=scheme) for scheme in schemes])
    assert [cost.scheme for cost in costs] == schemes
    for cost in costs:
        for figure in filter(None, (cost.file, cost.memory, cost.read_per_token, cost.cache_per_token)):
            assert figure.value > 0
            assert figure.source
        assert cost.file.value >= cost.memory.value
    fewest, most = (costs[schemes.index(scheme)] for scheme in (known.BY_BITS[0], known.BY_BITS[-1]))
    assert fewest.file.value < most.file.value


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_says_what_memory_it_needs(name: str) -> None:
    """One conformance test: more than the weights, and more for a longer context where it keeps one."""
    demand = Demand(weights=10_000_000, cache_per_token=1000, tokens=100, longest=2000, hidden=64, inner=128)
    short = RUNTIMES[name].memory(demand, {})
    assert short.needed > demand.weights + short.cache
    long = RUNTIMES[name].memory(replace(demand, tokens=4000), {})
    assert (short.context, long.context) in {(None, None), (100, 2000)}
    assert (long.needed > short.needed) == (short.context is not None)


def test_a_cache_of_half_the_bits_takes_half_the_memory() -> None:
    demand = Demand(weights=1, cache_per_token=1000, tokens=100, longest=None, hidden=1, inner=1)
    memory = RUNTIMES["llama-cpp"].memory
    assert memory(demand, {}).cache == 100_000
    assert memory(demand, {"kv_k": "f32", "kv_v": "f32"}).cache == 200_000
    assert memory(demand, {"kv_k": "q8_0", "kv_v": "q8_0"}).cache == 100_000 * 17 / 32
    assert memory(demand, {"context": 7}).cache == 7000


def test_what_a_training_takes() -> None:
    size = Size(weights=1000, embedding=400, layers=2, hidden=8)
    alone = training_cost(size, tokens=50, epochs=3)
    assert (alone.operations.value, alone.memory.value) == (6 * 600 * 3 * 50, 20 * 1000)
    teacher = Size(weights=3000, embedding=400, layers=4, hidden=8)
    taught = training_cost(size, tokens=50, epochs=3, teacher=teacher, projections=3)
    # What the teacher says of 50 tokens fits: it is asked once.
    assert taught.operations.value == alone.operations.value + 2 * 2600 * 50
    assert taught.memory.value == alone.memory.value + 4 * 3000 + 4 * 5 * 8 * 50
    many = training_cost(size, tokens=1e8, epochs=3, teacher=teacher, projections=3)
    assert many.operations.value == (6 * 600 * 3 + 2 * 2600 * 3) * 10**8
    assert many.memory.value == alone.memory.value + 4 * 3000
    both = taught.and_then(many)
    assert both.operations.value == taught.operations.value + many.operations.value
    assert both.memory == max(taught.memory, many.memory, key=lambda figure: figure.value)
