"""Students that are narrower than their teacher: what is measured, what stays, and that what is left is a model of its family."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekit.architectures import ARCHITECTURES
from edgekit.architectures.widths import Sizes, Widths
from edgekit.cli.options import open_session
from edgekit.distill import courses, ranking, sizes
from edgekit.distill.divergences import LossOptions
from edgekit.distill.encoder_losses import attention_relation, hidden
from edgekit.distill.files import note_length, save_model
from edgekit.distill.importance import FILE, choose_channels, choose_influential, find_sizes, measure
from edgekit.distill.signals import Batch, Signal
from edgekit.distill.sizes import choose_sizes
from edgekit.distill.slimming import slim
from edgekit.distill.students import Cut, load_module, make_student
from edgekit.distill.tap import find_blocks
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.pipeline import distill, gather_prompts, read_settings
from edgekit.pipeline.shapes import planned_student
from edgekit.recipe import Data, Recipe, Student, Teacher, load_recipe
from edgekit.tasks import TASKS
from edgekit.workspace import open_product
from tests.architectures.decoders import DECODERS, make_decoder
from tests.architectures.families import MORE, make_family
from tests.conftest import LABELS, make_checkpoint, make_data
from tests.steps import distill as train

FAMILIES = sorted({*MORE, *DECODERS})
CUT = [family for family in FAMILIES if hasattr(ARCHITECTURES[family], "WIDTHS")]
PLAIN = LossOptions()
IDS = torch.tensor([[2, 7, 9, 30, 12, 3], [2, 11, 8, 3, 0, 0]])
BATCH = Batch(rows=(0, 1), tokens=IDS, mask=(IDS != 0).long(), targets=torch.zeros(2, 3))


def task(family: str) -> str:
    return "text-classification" if family in MORE else "text-generation"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("teachers")
    made = {family: make_family(family, place / family, LABELS) for family in MORE}
    # Scores of full attention: what a window or a cap hides is tested elsewhere.
    return made | {family: make_decoder(family, place / family) for family in DECODERS}


def load(folder: Path, family: str) -> nn.Module:
    return load_module(TASKS[task(family)], folder)


def widths_of(family: str) -> Widths:
    widths: Widths = vars(ARCHITECTURES[family])["WIDTHS"]
    return widths


def halved(family: str, before: Sizes) -> dict[str, int]:
    """Half of everything that the family lets be cut, as a recipe asks for it."""
    widths = widths_of(family)
    asked = {"intermediate": before.intermediate // 2}
    if widths.has_positions:
        asked["positions"] = before.positions // 2
    if widths.head is not None:
        asked |= {"heads": before.heads // 2, "kv_heads": before.kv_heads // 2}
    return asked if "hidden" in widths.fixed else asked | {"hidden": before.hidden // 2}


def sizes_of(module: nn.Module) -> Sizes:
    known = find_sizes(module)
    assert known is not None
    return known[1]


def test_which_families_are_cut() -> None:
    """Gemma 3 with its images is not: its text model is a part of a larger configuration."""
    assert set(FAMILIES) - set(CUT) == {"gemma3"}


@pytest.mark.parametrize("family", CUT)
def test_a_cut_that_keeps_everything_is_the_teacher(family: str, folders: dict[str, Path]) -> None:
    module = load(folders[family], family)
    wanted, state = module(IDS, BATCH.mask), {name: weight.clone() for name, weight in module.state_dict().items()}
    config = module.model.config.to_dict()  # type: ignore[union-attr, operator]
    before = sizes_of(module)
    chosen = choose_channels(measure(module, [BATCH]), range(len(find_blocks(module))), before, before)
    slim(module, chosen, before)
    assert torch.equal(module(IDS, BATCH.mask), wanted)
    assert all(torch.equal(weight, state[name]) for name, weight in module.state_dict().items())
    assert module.model.config.to_dict() == config  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("family", CUT)
def test_a_cut_checkpoint_is_one_of_its_family(
    family: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers alone loads it and answers the same; its shapes are those that were planned."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    monkeypatch.setattr(sizes, "MULTIPLE", 8)
    teacher = load(folders[family], family)
    asked = Student(keep=[0, 2], **halved(family, sizes_of(teacher)))  # type: ignore[arg-type]
    after = choose_sizes(load_model(folders[family]), asked, "student")
    file = tmp_path / FILE
    save_file(measure(teacher, [BATCH]), file)
    student = make_student(Cut(folder=folders[family], keep=[0, 2], sizes=after, importance=file), TASKS[task(family)])
    assert sizes_of(student.module) == after != sizes_of(teacher)
    save_model(student.module, tmp_path)
    kind: Any = AutoModelForSequenceClassification if family in MORE else AutoModelForCausalLM
    attention = student.module.model.config._attn_implementation  # type: ignore[union-attr]
    alone = kind.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation=attention).eval()
    with torch.no_grad():
        inside = alone if family in MORE else alone.base_model
        found = inside(input_ids=IDS, attention_mask=BATCH.mask)[0]
        assert torch.equal(found, student.module(IDS, BATCH.mask))
    recipe = Recipe(task=task(family), teacher=Teacher(source="x"), data=Data(), student=asked)
    planned = planned_student(load_model(folders[family]), recipe, len(LABELS))
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:  # type: ignore[no-untyped-call]
        shapes = {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118 - no mapping
    assert {name: info.shape for name, info in planned.tensors.items()} == shapes
    told = json.loads((tmp_path / "config.json").read_text())
    assert {
        key: planned.config[key] for key in widths_of(family).changed(sizes_of(teacher), after)
    }.items() <= told.items()


def test_influence_is_what_transformers_hidden_states_say(folders: dict[str, Path]) -> None:
    """ShortGPT's block influence, from the states that transformers itself gives; what is padded counts nowhere."""
    for family in ("bert", "llama"):
        module = load(folders[family], family)
        found = measure(module, [BATCH])
        with torch.no_grad():
            states = module.model.base_model(IDS, BATCH.mask, output_hidden_states=True).hidden_states  # type: ignore[union-attr, operator]
        real = BATCH.mask.bool()
        # transformers gives a decoder's last state behind its final norm.
        pairs = list(pairwise(states))[: 4 if family == "bert" else 2]
        wanted = [1 - nn.functional.cosine_similarity(a[real], b[real], dim=-1).mean().item() for a, b in pairs]
        np.testing.assert_allclose(found["influence"][: len(wanted)], wanted, atol=1e-6)
        assert choose_influential(found, len(found["influence"])) == list(range(len(found["influence"])))
        assert choose_influential(found, 1) == [int(found["influence"].argmax())]


def test_widths_are_ranked_by_what_is_active(folders: dict[str, Path]) -> None:
    """The formulas of Minitron, section 2.2, on what BERT's own layers compute, over real tokens alone and in two batches."""
    module = load(folders["bert"], "bert")
    first, second = (
        Batch(rows=(row,), tokens=IDS[row : row + 1], mask=BATCH.mask[row : row + 1], targets=torch.zeros(1, 3))
        for row in (0, 1)
    )
    found = measure(module, [first, second])
    bert: Any = module.model
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _part, inputs, output: seen.update({name: output, f"{name}.in": inputs[0]})

    block = bert.bert.encoder.layer[1]
    parts = {"up": block.intermediate.dense, "norm": block.output.LayerNorm, "half": block.attention.output.LayerNorm}
    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    hooks.append(block.attention.output.dense.register_forward_hook(keep("attended")))
    hooks.append(bert.classifier.register_forward_hook(keep("classifier")))
    with torch.no_grad():
        module(IDS, BATCH.mask)
    for hook in hooks:
        hook.remove()
    real = BATCH.mask.bool()
    active = nn.functional.gelu(seen["up"][real]).abs().mean(dim=0)
    np.testing.assert_allclose(found["inner"][1], active, rtol=1e-4)
    heads = seen["attended.in"][real].reshape(-1, 4, 8).square().sum(dim=-1).sqrt().mean(dim=0)
    np.testing.assert_allclose(found["query"][1], heads, rtol=1e-4)
    norms = torch.cat([seen["norm"][real], seen["half"][real]]).abs().mean(dim=0)
    np.testing.assert_allclose(found["model"][1], norms, rtol=1e-4)
    np.testing.assert_allclose(found["pooled"][0], seen["classifier.in"].abs().mean(dim=0), rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_what_does_nothing_is_cut_and_nothing_is_lost(family: str, folders: dict[str, Path]) -> None:
    """Neurons that are never active and groups of heads whose values are zero are found, and the rest answers as before."""
    module = load(folders[family], family)
    before = sizes_of(module)
    dead = [torch.randperm(before.intermediate)[:64] for _ in range(3)]
    silent = [1, 0, 1]  # of two heads of keys and values, each with two query heads of 16 channels
    for block, neurons, pair in zip(find_blocks(module), dead, silent, strict=True):
        up = block.get_submodule("mlp.gate_up_proj" if family == "phi3" else "mlp.up_proj").weight
        values = block.get_submodule("self_attn.qkv_proj" if family == "phi3" else "self_attn.v_proj").weight
        with torch.no_grad():
            up[neurons + (before.intermediate if family == "phi3" else 0)] = 0.0  # type: ignore[index, operator]
            begin = (4 * 16 + 2 * 16 if family == "phi3" else 0) + 16 * pair
            values[begin : begin + 16] = 0.0  # type: ignore[index, operator]
    wanted = module(IDS, BATCH.mask)
    after = replace(before, heads=2, kv_heads=1, intermediate=before.intermediate - 64)
    chosen = choose_channels(measure(module, [BATCH]), range(3), before, after)
    for own, neurons, pair in zip(chosen.blocks, dead, silent, strict=True):
        assert not set(own["inner"].tolist()) & set(neurons.tolist())
        assert own["key"].tolist() == list(range(16 * (1 - pair), 16 * (2 - pair)))
        assert own["query"].tolist() == list(range(32 * (1 - pair), 32 * (2 - pair)))
    slim(module, chosen, after)
    torch.testing.assert_close(module(IDS, BATCH.mask), wanted, atol=1e-5, rtol=1e-5)


def test_fewer_query_heads_of_each_group_stay() -> None:
    """Of 2 groups of 3 query heads, the two that do most of each."""
    importance = {
        "query": torch.tensor([[1.0, 5.0, 3.0, 9.0, 0.0, 8.0]]),
        "inner": torch.ones(1, 4),
        "model": torch.tensor([[1.0, 3.0, 2.0], [1.0, 0.0, 2.0]]),
    }
    before = Sizes(hidden=3, heads=6, kv_heads=2, head=2, intermediate=4)
    chosen = choose_channels(importance, [0], before, replace(before, heads=4, hidden=2, intermediate=2))
    assert chosen.blocks[0]["query"].tolist() == [2, 3, 4, 5, 6, 7, 10, 11]
    assert chosen.blocks[0]["key"].tolist() == [0, 1, 2, 3]
    assert chosen.blocks[0]["inner"].tolist() == [0, 1], "among equals the first"
    assert chosen.whole["model"].tolist() == [1, 2]
    assert chosen.indices(0, "query+key+key", before).tolist()[-8:] == [12, 13, 14, 15, 16, 17, 18, 19]


def test_losses_of_a_narrower_student() -> None:
    """Attention relations are compared in as many heads as divide both; the teacher's states in the channels that are left."""
    generator = torch.Generator().manual_seed(0)
    own, theirs = (torch.randn(2, heads, 6, 4, generator=generator, dtype=torch.float64) for heads in (4, 6))
    student, teacher = (Signal(output=torch.zeros(2, 3), projections=(tensor,)) for tensor in (own, theirs))
    # 16 and 24 channels: 4 relation heads, of 4 and 6 channels.
    total = 0.0
    flat = [tensor.transpose(1, 2).flatten(2) for tensor in (own, theirs)]
    for row, length in ((0, 6), (1, 4)):
        for head in range(4):
            logs = []
            for tensor, width in zip(flat, (4, 6), strict=True):
                part = tensor[row, :length, width * head : width * (head + 1)]
                logs.append((part @ part.T / width**0.5).log_softmax(dim=-1))
            total += float((logs[1].exp() * (logs[1] - logs[0])).sum()) / 4
    assert float(attention_relation(student, teacher, BATCH, PLAIN)) == pytest.approx(total / 10, rel=1e-9)


def test_a_narrower_student_learns_its_own_channels_of_the_teacher(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole trainings run: the teacher's states are cut to the channels that the student has, and the losses fall."""
    seen: list[Signal] = []
    compared = hidden

    def note(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:
        seen.append(teacher)
        return compared(student, teacher, batch, options)

    entry = courses.losses.LOSSES["hidden"]
    monkeypatch.setitem(courses.losses.LOSSES, "hidden", replace(entry, compare=note))
    after = Sizes(hidden=16, heads=2, kv_heads=2, head=8, intermediate=24, positions=32)
    data, out = make_data(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    ranked = tmp_path / FILE
    teacher = load(folders["bert"], "bert")
    save_file(measure(teacher, [BATCH]), ranked)
    facts = train(
        folders["bert"],
        data,
        task="text-classification",
        options={"epochs": 12, "batch": 4, "learning_rate": 3e-3, "holdout": 0.2},
        max_length=32,
        out=out,
        keep=[0, 2],
        sizes=after,
        importance=tmp_path,
    )
    assert facts["sizes"] == asdict(after)
    assert facts["scores"][-1] < 0.8 * facts["scores"][0]
    assert {states.shape[-1] for signal in seen for states in signal.hidden} == {16}
    assert load_model(out).hidden == 16
    told = json.loads((out / "tokenizer_config.json").read_text())
    assert told["model_max_length"] == json.loads((out / "config.json").read_text())["max_position_embeddings"] == 32


@pytest.mark.parametrize(
    ("family", "asked", "message"),
    [
        ("bert", {"intermediate": 40}, "student.intermediate: 40: kernels .* take multiples of 32; give 32 or 48"),
        ("bert", {"intermediate": 64}, "student.intermediate: 64: the teacher, .* has 48; give fewer"),
        ("bert", {"hidden": 8}, "student.hidden: 8: kernels .*; give 32"),
        ("bert", {"heads": 2}, "student.heads: 2: .* hidden / heads alone, so heads go with channels; give hidden = 16 instead"),
        ("bert", {"intermediate": 32, "kv_heads": 2}, "student.kv_heads: each head of this family has keys and values of its own"),
        ("llama", {"positions": 32}, "student.positions: this family has no table of positions that could be cut"),
        ("bert", {"positions": 65}, "student.positions: 65: the teacher, .* has 64; give fewer"),
        ("mpnet", {"hidden": 16}, "student.hidden: of this family it stays 32: all blocks share one bias"),
        ("electra", {"hidden": 16}, "student.hidden: of this family it stays 32: its embeddings have a width of their own"),
        ("gemma2", {"hidden": 32}, "student.hidden: of this family it stays 64: it multiplies its embeddings"),
        ("gemma3", {"intermediate": 32}, "student.intermediate: edgekit cuts no widths of the family 'gemma3'"),
        ("llama", {"heads": 3}, "student.heads: 3: 2 of the teacher's query heads share .*; give a multiple of 2, or kv_heads too"),
        ("llama", {"heads": 3, "kv_heads": 2}, "student.kv_heads: 2: each takes as many of the 3 query heads, 2 at most; give heads = 2"),
        ("llama", {"heads": 4, "kv_heads": 1}, "student.kv_heads: 1: .* give heads = 2"),
        ("llama", {"heads": 5}, "student.heads: 5: the teacher, .* has 4; give fewer"),
    ],
)  # fmt: skip
def test_widths_that_cannot_be(family: str, asked: dict[str, Any], message: str, folders: dict[str, Path]) -> None:
    with pytest.raises(EdgekitError, match=message):
        choose_sizes(load_model(folders[family]), Student(**asked), "student")


def test_heads_go_with_their_groups(folders: dict[str, Path]) -> None:
    model = load_model(folders["llama"])

    def chosen(**asked: int) -> tuple[int, int, int]:
        found = choose_sizes(model, Student(**asked), "student")  # type: ignore[arg-type]
        assert found is not None
        return found.heads, found.kv_heads, found.head

    assert chosen(heads=2) == (2, 1, 16)
    assert chosen(kv_heads=1) == (2, 1, 16)
    assert chosen(heads=2, kv_heads=2) == (2, 2, 16)
    assert chosen(intermediate=32) == (4, 2, 16)
    assert choose_sizes(model, Student(layers=1), "student") is None


RECIPE = """
task = "text-classification"
[teacher]
source = "teacher"

[data]
path = "data"

[student]
layers = 1
depth = "influence"
intermediate = 32

[distill]
epochs = 1
holdout = 0.0
"""


def test_a_teacher_is_ranked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another width reads what was measured; another teacher, or other texts, are measured anew."""
    make_checkpoint(tmp_path / "teacher", labels=LABELS)
    make_data(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    ranked: list[int] = []
    asked = ranking.rank
    monkeypatch.setattr(ranking, "rank", lambda *given: (ranked.append(len(given[1])), asked(*given))[1])

    def student(*changes: str) -> Path:
        recipe, session = load_recipe(tmp_path / "recipe.toml", changes), open_session(tmp_path / "cache", tmp_path)
        prompts = gather_prompts(recipe, session)
        return distill(read_settings(recipe), tmp_path / "teacher", prompts, session)

    first = student()
    assert (student(), ranked) == (first, [12])
    facts = open_product(next((tmp_path / "cache" / "importance").iterdir()), "importance").facts
    kept = int(np.argmax(facts["influence"]))
    told = open_product(first, "distill").facts
    assert (told["keep"], told["sizes"]["intermediate"]) == ([kept], 32)
    assert student("student={keep=[0], intermediate=32}") != first
    assert student('student={layers=1, depth="influence"}') != first
    assert len(ranked) == 1
    # A cut by rule needs no measuring.
    student("student={layers=1}")
    assert len(ranked) == 1
    make_checkpoint(tmp_path / "teacher", labels=LABELS, seed=1)
    student()
    assert len(ranked) == 2


def test_llama_cpp_answers_as_a_narrower_student(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")
    from tests.formats.gguf.test_convert import check_logits, logits, reference, tokens, write

    out = tmp_path / "student"
    out.mkdir()
    file = tmp_path / FILE
    save_file(measure(load(folders["llama"], "llama"), [BATCH]), file)
    after = Sizes(hidden=32, heads=2, kv_heads=1, head=16, intermediate=32)
    cut = Cut(folder=folders["llama"], keep=[0, 2], sizes=after, importance=file)
    save_model(make_student(cut, TASKS["text-generation"]).module, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((folders["llama"] / name).read_bytes())
    ids = tokens(60)
    wanted = reference(out, ids)
    for kind in ("f32", "q8_0"):
        write(out, tmp_path / f"{kind}.gguf", kind)
        found = logits(tmp_path / f"{kind}.gguf", ids)
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.995
        if kind == "f32":
            check_logits(found, wanted)


def test_what_other_tools_cut_texts_by(tmp_path: Path) -> None:
    """Both transformers' file and sentence-transformers' say no more tokens than there are positions, and less stays."""
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656, "a": 1}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 20}')
    note_length(tmp_path, 32)
    told = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert told == {
        "tokenizer_config.json": {"model_max_length": 32, "a": 1},
        "sentence_bert_config.json": {"max_seq_length": 32},
        "sentence_roberta_config.json": {"max_seq_length": 20},
    }
