"""Quantization-aware distillation: what was trained is what the file holds, and it is nearer to the teacher."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("llama_cpp")

from edgekit.distill import loop
from edgekit.distill.on_grid import Nearest, OnGrid, without_surplus
from edgekit.distill.options import read_qad_options
from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, parse_options
from edgekit.formats.onnx import candidates, table
from edgekit.grid import GRID, Grid, read_packed
from edgekit.inputs import identity
from edgekit.inspect.on_grid import compare
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.qad import QadInputs, qad
from edgekit.runtimes import llamacpp, onnxruntime, scores
from edgekit.tasks import TASKS
from tests.architectures.decoders import make_decoder
from tests.conftest import LABELS, ROOT, make_checkpoint, make_data
from tests.formats.gguf.test_convert import EXACT
from tests.steps import calibrate, content, export

STORIES = ROOT.parent / "shared" / "data" / "stories260K"
TASK = "text-generation"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data/stories260K")


def inputs(
    teacher: Path,
    prompts: Path,
    scheme: str,
    *,
    format_: str = "gguf",
    task: str = TASK,
    more: Mapping[str, object] = MappingProxyType({}),
    student: Path | None = None,
    **options: Any,
) -> QadInputs:
    """more: other options of the export. student: the teacher itself, unless named."""
    output = TASKS[task].OUTPUT
    read, losses = read_qad_options({"batch": 4} | options, output, "qad")
    _, how = parse_options({"format": format_, "scheme": scheme, **more}, output, "export")
    return QadInputs(
        teacher=content(teacher),
        student=content(student or teacher),
        prompts=content(prompts),
        task=task,
        format=format_,
        export=how,
        options=read,
        losses=losses,
        out_of_scope=None,
        max_length=96,
        seed=0,
        machine={},
        libraries={},
    )


def write_prompts(folder: Path, texts: list[str], train: int, answer: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    for name, rows in {"train": texts[:train], "calibrate": texts[train : train + 4]}.items():
        lines = [json.dumps({"text": row} | (answer or {})) for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def stories() -> list[str]:
    text = (STORIES / "text" / "tinystories.txt").read_text()
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def exported(student: Path, prompts: Path, out: Path, scheme: str) -> Path:
    calibrate(student, prompts, task=TASK, max_length=96, out=made(out / "calibration"))
    facts = export(
        student=student,
        calibration=out / "calibration",
        prompts=prompts,
        task=TASK,
        options={"format": "gguf", "scheme": scheme},
        max_length=96,
        out_of_scope=None,
        out=made(out / "artifact"),
    )
    (out / "facts.json").write_text(json.dumps(facts))
    return out / "artifact" / "model.gguf"


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def divergence(teacher: Path, file: Path, texts: list[str]) -> float:
    """Mean nats a token from transformers' float teacher to llama.cpp with the file."""
    module, found = TASKS[TASK].load(teacher).model, []
    for ids in load_model(teacher).encode(texts, 96):
        with torch.no_grad():
            wanted = module(torch.tensor([ids])).logits[0].numpy()
        generator = llamacpp.generator(file, EXACT | {"context": len(ids)})
        found.append(scores.kl(wanted, generator.logits(ids)))
        generator.close()
    return float(np.concatenate(found).mean())


@needs_stories
def test_what_was_trained_is_what_ships_and_is_nearer_to_the_teacher(stories: list[str], tmp_path: Path) -> None:
    teacher, prompts = STORIES / "hf", write_prompts(tmp_path / "prompts", stories, 300)
    facts = qad(inputs(teacher, prompts, "q4_0", epochs=2, batch=8, learning_rate=1e-3), made(tmp_path / "student"))
    assert facts["grid"] == {"format": "gguf", "scheme": "q4_0", "weights": 31}
    file = exported(tmp_path / "student", prompts, tmp_path / "trained", "q4_0")
    shown = compare(file, tmp_path / "student")
    assert (shown["exact"], shown["equal"], shown["tensors"]) == (True, 1.0, 31)
    assert not (file.parent / "imatrix.gguf").exists()
    plain = exported(teacher, prompts, tmp_path / "plain", "q4_0")
    assert not compare(plain, teacher)["exact"]
    before, after = (divergence(teacher, one, stories[320:330]) for one in (plain, file))
    assert after < 0.9 * before, (after, before)


@needs_stories
def test_learned_scales_ship_and_are_nearer_to_the_teacher(stories: list[str], tmp_path: Path) -> None:
    """They begin where rounding with feedback ends, which is better than plain already, and become better from there."""
    teacher, prompts = STORIES / "hf", write_prompts(tmp_path / "prompts", stories, 100)
    plain = exported(teacher, prompts, tmp_path / "plain", "q4_0")
    before = divergence(teacher, plain, stories[320:324])
    for train in ("scales", "both"):
        student = tmp_path / train
        facts = qad(inputs(teacher, prompts, "q4_0", epochs=1, train=train, holdout=0.1), made(student))
        scores, start = facts["scores"], facts["start"]
        assert isinstance(scores, list)
        assert isinstance(start, float)
        assert scores[-1] < 0.95 * start, (train, start, scores)
        file = exported(student, prompts, tmp_path / f"{train}-file", "q4_0")
        assert compare(file, student)["exact"]
        after = divergence(teacher, file, stories[320:324])
        assert after < 0.75 * before, (train, after, before)
        assert load_model(student).tensors.keys() == load_model(teacher).tensors.keys()


def test_learned_scales_of_super_blocks_ship(tmp_path: Path) -> None:
    """q4_k_s has q4_k, q5_k and, of a head of its own, q6_k."""
    teacher = make_decoder("llama", tmp_path / "teacher", hidden_size=256, intermediate_size=256)
    texts = [f"the number {index} and what follows it" for index in range(20)]
    prompts = write_prompts(tmp_path / "prompts", texts, 16, {"label": "is larger than the one before"})
    student = made(tmp_path / "student")
    qad(inputs(teacher, prompts, "q4_k_s", epochs=1, train="both", learning_rate=1e-3), student)
    assert compare(exported(student, prompts, tmp_path / "file", "q4_k_s"), student)["exact"]
    packed = read_packed(student)
    assert packed is not None
    assert {"q4_k", "q5_k", "q6_k"} == set(packed.kinds.values())


@pytest.mark.parametrize("train", ["scales", "both"])
def test_scales_that_learn_go_on_where_they_were_killed(
    train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    teacher = make_decoder("llama", tmp_path / "teacher")
    texts = [f"the number {index} and what follows it" for index in range(20)]
    prompts = write_prompts(tmp_path / "prompts", texts, 16, {"label": "is larger than the one before"})
    told = inputs(teacher, prompts, "q4_0", epochs=2, train=train, learning_rate=1e-3)
    qad(told, made(tmp_path / "whole"))

    def kill(done: int, _total: int, note: str) -> None:
        if done == 3 and note.startswith("loss"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qad(told, made(tmp_path / "killed"), kill)
    seen: list[int] = []
    qad(told, tmp_path / "killed", lambda done, _total, note: seen.append(done) if note.startswith("loss") else None)
    assert seen[0] == 3
    for name in ("model.safetensors", GRID):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_learned_scales_of_an_encoder_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """w4 blocks that its rows do not fill, and tables of 4 bits beside them."""
    monkeypatch.setattr(table, "SMALLEST_TABLE_ROWS", 24)
    teacher, prompts = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")
    task, student = "text-classification", made(tmp_path / "student")
    more = {"table_bits": 4}
    qad(inputs(teacher, prompts, "w4", format_="onnx", task=task, more=more, epochs=1, train="scales"), student)
    calibrate(student, prompts, task=task, max_length=32, out=made(tmp_path / "calibration"))
    given = {"prompts": prompts, "task": task, "max_length": 32, "out_of_scope": None}
    artifact = made(tmp_path / "artifact")
    options = {"format": "onnx", "scheme": "w4", **more}
    export(student=student, calibration=tmp_path / "calibration", options=options, out=artifact, **given)
    kinds = {node.op_type for node in onnx.load(artifact / "model.onnx").graph.node}
    assert "GatherBlockQuantized" in kinds
    assert compare(artifact / "model.onnx", student)["exact"]


def test_super_blocks_are_kept_as_they_were_trained(tmp_path: Path) -> None:
    """ggml's quantizer finds other scales for weights that lie on q4_k's grid: the codes themselves must be written."""
    teacher = make_decoder("llama", tmp_path / "teacher", hidden_size=256, intermediate_size=256)
    texts = [f"the number {index} and what follows it" for index in range(20)]
    prompts = write_prompts(tmp_path / "prompts", texts, 16, {"label": "is larger than the one before"})
    student = made(tmp_path / "student")
    qad(inputs(teacher, prompts, "q4_k_s", epochs=1), student)
    packed = read_packed(student)
    assert packed is not None
    assert {"q4_k", "q5_k", "q6_k"} == set(packed.kinds.values())
    assert compare(exported(student, prompts, tmp_path / "trained", "q4_k_s"), student)["exact"]
    # As another scheme, the file is another one, and says so.
    exported(student, prompts, tmp_path / "other", "q8_0")
    notes = read_artifact_notes(tmp_path / "other")
    assert any("trained for gguf q4_k_s" in note for note in notes), notes
    # Without its codes the same student is rounded anew.
    (student / GRID).rename(tmp_path / GRID)
    assert not compare(exported(student, prompts, tmp_path / "anew", "q4_k_s"), student)["exact"]
    (tmp_path / GRID).rename(student / GRID)
    # Codes of other weights are refused, and so is a damaged file of them.
    shutil.copyfile(teacher / "model.safetensors", student / "model.safetensors")
    with pytest.raises(EdgekitError, match="not those that it was trained with"):
        exported(student, prompts, tmp_path / "changed", "q4_k_s")
    (student / GRID).write_bytes((student / GRID).read_bytes()[:-100])
    with pytest.raises(EdgekitError, match="make the step qad again"):
        exported(student, prompts, tmp_path / "damaged", "q4_k_s")


def test_an_encoder_ships_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables are too short to be rounded, as a rule. Positions are sliced from theirs, which stays float in the file."""
    monkeypatch.setattr(table, "SMALLEST_TABLE_ROWS", 24)
    teacher, prompts = make_checkpoint(tmp_path / "teacher", labels=LABELS), make_data(tmp_path / "data")
    task, student = "text-classification", made(tmp_path / "student")
    how = {"format_": "onnx", "task": task, "epochs": 1, "holdout": 0.2}
    facts = qad(inputs(teacher, prompts, "int8-dynamic", **how), student)
    packed = read_packed(student)
    assert packed is not None
    kinds = list(packed.kinds.values())
    assert (kinds.count("pairs"), kinds.count("table")) == (14, 2)
    assert facts["start"] is not None
    calibrate(student, prompts, task=task, max_length=32, out=made(tmp_path / "calibration"))
    given = {"prompts": prompts, "task": task, "max_length": 32, "out_of_scope": None}
    options = {"format": "onnx", "scheme": "int8-dynamic"}
    artifact, calibration = made(tmp_path / "artifact"), tmp_path / "calibration"
    told = export(student=student, calibration=calibration, options=options, out=artifact, **given)
    assert told["quantized"] == {"matmul": 14, "float": []}
    shown = compare(artifact / "model.onnx", student)
    assert (shown["exact"], shown["tensors"]) == (True, 15)
    other = compare(artifact / "model.onnx", teacher)
    assert not other["exact"]
    assert other["equal"] < 0.05


@pytest.mark.parametrize(
    ("scheme", "more", "floats"),
    [
        ("int8-dynamic", {}, 0),
        ("int8-static", {}, 1),
        ("int8-static", {"activation": "int8", "layout": "qdq", "reduce_range": False}, 0),
    ],
)
def test_inputs_ship_as_they_were_trained(
    scheme: str, more: dict[str, object], floats: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loud channels are smoothed, the worst Linear stays float, ranges are trained: onnxruntime answers as the trainer did."""
    monkeypatch.setattr(candidates, "WORTH_A_FLOAT_LAYER", -1.0)
    teacher, prompts = make_loud(tmp_path / "teacher"), make_data(tmp_path / "data")
    task, student = "text-classification", made(tmp_path / "student")
    texts = [json.loads(line)["text"] for line in (prompts / "verify.jsonl").read_text().splitlines()]
    ids = load_model(teacher).encode(texts, 32)
    answers: list[np.ndarray] = []
    settle = OnGrid.settle

    def watch(on_grid: OnGrid, folder: Path) -> None:
        reads = on_grid._reads
        assert reads is not None
        with torch.no_grad(), on_grid.rounded():
            asked = [torch.tensor([row]) for row in ids]
            answers.extend(reads._module(row, torch.ones_like(row)).numpy()[0] for row in asked)
        settle(on_grid, folder)

    monkeypatch.setattr(OnGrid, "settle", watch)
    how = {"format_": "onnx", "task": task, "epochs": 1, "more": {"float_layers": floats} | more}
    facts = qad(inputs(teacher, prompts, scheme, **how, learning_rate=1e-3), student)
    grid = facts["grid"]
    assert isinstance(grid, dict)
    assert facts["losses"] == {"logit_squares": 1.0}
    assert (grid["weights"], len(grid["float"])) == (14 - floats, floats)
    calibrate(student, prompts, task=task, max_length=32, out=made(tmp_path / "calibration"))
    artifact = made(tmp_path / "artifact")
    told = export(
        student=student,
        calibration=tmp_path / "calibration",
        prompts=prompts,
        task=task,
        options={"format": "onnx", "scheme": scheme} | {"float_layers": floats} | more,
        max_length=32,
        out_of_scope=None,
        out=artifact,
    )
    assert len(told["quantized"]["float"]) == floats
    shown = compare(artifact / "model.onnx", student)
    assert shown["exact"], shown
    graph = onnx.load(artifact / "model.onnx").graph
    assert any(node.op_type == "Mul" and node.name.endswith("/smoothing") for node in graph.node)
    session = onnxruntime.load(artifact / "model.onnx", told["runtime_options"])
    found = [session.run(of_tokens([row], 0).prompts[0]) for row in ids]
    apart = np.abs(np.stack(found) - np.stack(answers)).max(axis=1)
    # The last bit of a float may push a value across the middle between two codes, in some texts.
    assert np.quantile(apart, 0.25) < 5e-5
    assert apart.max() < 5e-3


@pytest.mark.parametrize("scheme", ["int8-dynamic", "w8", "w4"])
def test_embeddings_are_trained_without_their_pooler(tmp_path: Path, scheme: str) -> None:
    teacher, prompts = make_checkpoint(tmp_path / "teacher"), make_data(tmp_path / "data")
    told = inputs(teacher, prompts, scheme, format_="onnx", task="feature-extraction", epochs=1)
    student = tmp_path / "student"
    facts = qad(told, made(student))
    assert facts["losses"] == {"embedding": 1.0}
    packed = read_packed(student)
    assert packed is not None
    assert len(packed.kinds.keys() | packed.floats) == 12
    assert packed.kinds.keys() | packed.floats == {
        name for name, info in load_model(student).tensors.items() if "layer." in name and len(info.shape) == 2
    }
    calibrate(student, prompts, task="feature-extraction", max_length=32, out=made(tmp_path / "calibration"))
    given = {"student": student, "calibration": tmp_path / "calibration", "prompts": prompts, "out_of_scope": None}
    options = {"format": "onnx", "scheme": scheme}
    artifact = made(tmp_path / "artifact")
    export(**given, task="feature-extraction", options=options, max_length=32, out=artifact)
    assert compare(artifact / "model.onnx", student)["exact"]


def test_a_weight_of_another_name_is_no_surplus() -> None:
    """A Linear that the grid does not know by name: what it knows beside is refused, not left out in silence."""
    body = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module = torch.nn.ModuleDict({"model": body})
    pack = {"pack": lambda rows, _kind: rows, "unpack": lambda data, _kind, _columns: data}
    every = {"0.weight": "w4/32", "1.weight": "w4/32", "cls.dense.weight": "w4/32"}
    known = without_surplus(module, Grid(format="onnx", scheme="w4", kinds=every, **pack))
    assert list(known.kinds) == ["0.weight", "1.weight"]
    renamed = Grid(format="onnx", scheme="w4", kinds={"0.weight": "w4/32", "second.weight": "w4/32"}, **pack)
    assert without_surplus(module, renamed).kinds == renamed.kinds
    with pytest.raises(EdgekitError, match=r"second\.weight: onnx writes it, but it is no weight of the module"):
        OnGrid(module, without_surplus(module, renamed), Nearest(renamed))


def test_ranges_that_learn_go_on_where_they_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    teacher, prompts = make_loud(tmp_path / "teacher"), make_data(tmp_path / "data")
    task, more = "text-classification", {"float_layers": 0}
    how = {"format_": "onnx", "task": task, "more": more, "holdout": 0.0}
    told = inputs(teacher, prompts, "int8-static", **how, epochs=1, learning_rate=1e-2)
    qad(told, made(tmp_path / "whole"))

    def kill(done: int, _total: int, note: str) -> None:
        if done == 2 and note.startswith("loss"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qad(told, made(tmp_path / "killed"), kill)
    seen: list[int] = []
    qad(told, tmp_path / "killed", lambda done, _total, note: seen.append(done) if note.startswith("loss") else None)
    assert seen == [2, 3]
    for name in ("model.safetensors", GRID):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # One epoch without held-out texts: the ranges are no longer those of the start.
    untrained = inputs(teacher, prompts, "int8-static", **how, epochs=1, learning_rate=1e-9)
    qad(untrained, made(tmp_path / "start"))
    first, last = (read_packed(tmp_path / name) for name in ("start", "whole"))
    assert first is not None
    assert last is not None
    assert first.reads == last.reads
    assert first.reads
    moved = [first.read(name).scale != last.read(name).scale for name in first.reads]
    assert all(moved)


def make_loud(folder: Path) -> Path:
    """A classifier of which one channel is far louder than all others, as in trained encoders."""
    from safetensors.torch import load_file, save_file

    make_checkpoint(folder, labels=LABELS, seed=1)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("LayerNorm.weight"):
            weights[name][5] = 8.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read_artifact_notes(folder: Path) -> list[str]:
    notes = json.loads((folder / "facts.json").read_text())["notes"]
    return [str(note) for note in notes]


@pytest.mark.parametrize(
    ("format_", "scheme", "message"),
    [("gguf", "auto", "name a scheme"), ("gguf", "f16", "rounds no weight"), ("onnx", "auto", "int8-dynamic")],
)
def test_what_has_no_grid_is_refused(format_: str, scheme: str, message: str, tmp_path: Path) -> None:
    output = "tokens" if format_ == "gguf" else "logits"
    _, how = parse_options({"format": format_, "scheme": scheme}, output, "export")
    with pytest.raises(EdgekitError, match=message):
        FORMATS[format_].grid(load_model(make_decoder("llama", tmp_path / "model")), how, output)


def test_options() -> None:
    options, losses = read_qad_options({}, "tokens", "qad")
    assert (options.epochs, options.temperature, losses) == (3, 1.0, {"logits": 1.0})
    # A recipe that does not name it keeps what it made.
    assert "train" not in identity(options)
    assert identity(read_qad_options({"train": "scales"}, "tokens", "qad")[0])["train"] == "scales"
    with pytest.raises(EdgekitError, match="train: should be"):
        read_qad_options({"train": "scale"}, "tokens", "qad")
    assert read_qad_options({}, "embedding", "qad")[1] == {"embedding": 1.0}
    with pytest.raises(EdgekitError, match=r"losses\.logit: unknown loss"):
        read_qad_options({"losses": {"logit": 1.0}}, "tokens", "qad")
