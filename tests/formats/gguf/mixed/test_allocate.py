"""Types at a size: the sum is exact, the sizes are kept, and what is predicted is what a real trained Llama loses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.mixed.allocate import (
    COSTS,
    ROLE_LOSS,
    TYPES_FOR,
    Pace,
    Sensitivity,
    allocate,
    candidates,
    instruction_set,
    measure,
    read_budget,
    refine,
)
from edgekit.formats.gguf.schemes import Shape
from tests.conftest import ROOT

STORIES = ROOT.parent / "shared" / "data" / "stories260K"
KINDS = ("q4_k", "q5_k", "q6_k", "q8_0")
ROLES = ("attn_q", "attn_v", "ffn_up", "ffn_down")


def sensitive(layers: int, seed: int = 0) -> list[Sensitivity]:
    """Tensors of some shapes whose losses fall four times with each bit, from starts that differ a lot."""
    pick = np.random.default_rng(seed)
    return [
        Sensitivity(
            name=f"blk.{layer}.{role}.weight",
            bytes={kind: rows * ggml.row_bytes(kind, 512) for kind in KINDS},
            losses={
                kind: float(start * 4.0 ** -(8 * ggml.row_bytes(kind, 512) / 512 - 4) * pick.uniform(0.8, 1.2))
                for kind in KINDS
            },
        )
        for layer in range(layers)
        for role, rows in zip(ROLES, (64, 32, 192, 200), strict=True)
        for start in (pick.lognormal(-6, 1.5),)
    ]


def size(sensitivities: list[Sensitivity], kind: str) -> int:
    return sum(one.bytes[kind] for one in sensitivities)


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    """Compared with every one of the 4^8 ways to choose, at a tight, a middling and a generous size."""
    some = sensitive(2, seed)
    ways = np.array(list(itertools.product(range(len(KINDS)), repeat=len(some))))
    table = [[(one.bytes[kind], one.losses[kind]) for kind in KINDS] for one in some]
    costs = sum(np.array(row)[ways[:, at], 0] for at, row in enumerate(table))
    losses = sum(np.array(row)[ways[:, at], 1] for at, row in enumerate(table))
    low, high = size(some, "q4_k"), size(some, "q8_0")
    for share in (0.02, 0.3, 0.8):
        budget = int(low + share * (high - low))
        found = allocate(some, budget)
        assert found.bytes <= budget
        assert found.loss == pytest.approx(losses[costs <= budget].min(), rel=1e-12)
        assert found.bytes == sum(one.bytes[found.types[one.name]] for one in some)


def test_budgets_are_used_up_and_never_exceeded() -> None:
    some = sensitive(12)
    low, high = size(some, "q4_k"), size(some, "q8_0")
    for budget in range(low, high, (high - low) // 17):
        found = allocate(some, budget)
        assert 0.99 * budget <= found.bytes <= budget
        assert found == allocate(some, budget)
    assert set(allocate(some, 2 * high).types.values()) == {"q8_0"}
    with pytest.raises(EdgekitError, match=rf"mixed: {low - 1:,} bytes are too few: .* take {low:,}"):
        allocate(some, low - 1)


def test_sizes_without_a_common_divisor_stay_within_the_budget() -> None:
    """Rows of many lengths: the sizes are told apart in steps, rounded up."""
    pick = np.random.default_rng(3)
    some = [
        Sensitivity(
            name=f"blk.{at}.ffn_up.weight",
            bytes={"q4_k": 10_000_019 * (at + 1), "q6_k": 14_000_029 * (at + 1)},
            losses={"q4_k": float(pick.uniform(1, 2)), "q6_k": 0.1},
        )
        for at in range(40)
    ]
    budget = (size(some, "q4_k") + size(some, "q6_k")) // 2
    found = allocate(some, budget)
    assert 0.995 * budget <= found.bytes <= budget


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_takes_no_longer_than_what_it_is_like(seed: int) -> None:
    """Against every one of the 4^8 ways: the bytes and the time are kept, and few ways lose less."""
    some = sensitive(2, seed)
    shapes = {one.name: Shape(name=one.name, rows=one.bytes["q8_0"] // 544, columns=512) for one in some}
    like = {one.name: "q6_k" if "ffn_down" in one.name else "q4_k" for one in some}
    pace = Pace(costs={"q4_k": (0, 0), "q5_k": (90, 9), "q6_k": (40, 5), "q8_0": (60, -3)}, shapes=shapes, like=like)
    ways = np.array(list(itertools.product(range(len(KINDS)), repeat=len(some))))

    def total(of: Callable[[Sensitivity, str], float]) -> NDArray[np.float64]:
        return sum(np.array([of(one, kind) for kind in KINDS])[ways[:, at]] for at, one in enumerate(some))  # type: ignore[return-value]

    costs, losses = total(lambda one, kind: one.bytes[kind]), total(lambda one, kind: one.losses[kind])
    times = total(lambda one, kind: pace.time(one.name, kind))
    budget = int(1.05 * sum(one.bytes[like[one.name]] for one in some))
    possible = (costs <= budget) & (times <= pace.total(like))
    found = allocate(some, budget, pace=pace)
    assert found.bytes <= budget
    assert pace.excess(found.types) <= 0
    assert found.loss <= 1.2 * losses[possible].min()
    assert found.loss <= (1 + 1e-9) * sum(one.losses[like[one.name]] for one in some)
    # With time enough nothing changes.
    slow = {one.name: "q5_k" for one in some}
    assert allocate(some, budget, pace=replace(pace, like=slow)) == allocate(some, budget)


def test_time_of_types_without_figures_counts_as_the_slowest() -> None:
    shape = Shape(name="blk.0.ffn_up.weight", rows=10, columns=100)
    pace = Pace(costs={"q4_k": (0, 0), "q8_0": (2, 3)}, shapes={shape.name: shape}, like={shape.name: "q8_0"})
    assert pace.time(shape.name, "q8_0") == 10 * (100 * 2 + 1000 * 3)
    assert pace.time(shape.name, "q5_0") == pace.time(shape.name, "q8_0")
    assert pace.time("token_embd.weight", "q8_0") == 0
    assert pace.excess({shape.name: "q4_k"}) == -32_000


@pytest.mark.parametrize("instructions", sorted(COSTS))
def test_figures_are_there_for_all_types_of_an_instruction_set(instructions: str) -> None:
    assert set(COSTS[instructions]) == set(TYPES_FOR[instructions])
    assert COSTS[instructions]["q4_k"] == (0, 0)


def test_bytes_that_are_not_read_do_not_count() -> None:
    some = [
        *sensitive(4),
        Sensitivity(name="token_embd.weight", bytes={"q4_k": 10**9, "q8_0": 2 * 10**9}, losses={"q4_k": 1, "q8_0": 0}),
    ]
    found = allocate(some, 2 * size(some[:-1], "q4_k"), free={"token_embd.weight"})
    assert found.types["token_embd.weight"] == "q8_0"
    assert found.bytes > 2 * 10**9
    assert read_budget(20, 10) == 350_000_000


def test_types_are_those_that_the_instruction_set_runs_fast() -> None:
    assert instruction_set("x86_64", ["avx2", "fma"]) == "x86-avx2"
    assert instruction_set("x86_64", []) == instruction_set("wasm32", ["simd128"]) == "other"
    assert instruction_set("aarch64", ["asimd", "asimdhp", "asimddp", "i8mm"]) == "arm-i8mm"
    assert instruction_set("aarch64", ["asimd", "asimdhp", "asimddp"]) == "arm-dotprod"
    assert instruction_set("aarch64", ["asimd"]) == "arm-neon"
    for instructions, kinds in TYPES_FOR.items():
        wide = candidates(Shape(name="blk.0.ffn_up.weight", rows=8, columns=512), instructions, tied=False)
        assert wide == kinds
        assert "iq4_xs" not in wide
        narrow = candidates(Shape(name="blk.0.ffn_up.weight", rows=8, columns=96), instructions, tied=False)
        assert all(96 % ggml.TYPES[kind].block == 0 for kind in narrow)
        assert {"q4_0", "q8_0"} <= set(narrow)
        embedding = Shape(name="token_embd.weight", rows=8, columns=512)
        assert "q3_k" in candidates(embedding, instructions, tied=False)
        assert "q3_k" not in candidates(embedding, instructions, tied=True)
    assert "q6_k" not in TYPES_FOR["arm-dotprod"]
    assert candidates(Shape(name="blk.0.ffn_down.weight", rows=8, columns=172), "other", tied=False) == ("f16",)


def test_losses_are_the_weighed_errors() -> None:
    """The definition in float64, over rows that come in pieces."""
    pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")
    pick = np.random.default_rng(0)
    rows = pick.normal(size=(10, 512)).astype(np.float32)
    inputs, outputs = (pick.gamma(1.0, size=count).astype(np.float32) for count in (512, 10))
    tensor = Shape(name="blk.3.ffn_up.weight", rows=10, columns=512)
    found = measure(tensor, [rows[:3], rows[3:]], KINDS, layers=4, importance=inputs, gradient=outputs)
    without = measure(tensor, [rows], KINDS, layers=4, importance=inputs)
    plain = measure(tensor, [rows], ("q4_k", "f16"), layers=4)
    for kind in KINDS:
        back = ggml.dequantize(ggml.quantize(rows, kind, inputs), kind, 512)
        squares = (rows.astype(np.float64) - back) ** 2
        assert found.bytes[kind] == 10 * ggml.row_bytes(kind, 512)
        assert found.losses[kind] == pytest.approx(0.5 * outputs @ squares @ inputs, rel=1e-5)
        relative = (squares @ inputs).sum() / (rows.astype(np.float64) ** 2 @ inputs).sum()
        assert without.losses[kind] == pytest.approx(ROLE_LOSS["ffn_up"] * relative / 4, rel=1e-5)
    assert found.losses["q4_k"] > found.losses["q5_k"] > found.losses["q6_k"] > found.losses["q8_0"] > 0
    assert 0 < plain.losses["f16"] < plain.losses["q4_k"] / 1000


def test_a_large_tensor_is_measured_by_some_of_its_rows() -> None:
    pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")
    pick = np.random.default_rng(0)
    rows = (pick.normal(size=(5000, 64)) * pick.lognormal(0, 0.3, size=(5000, 1))).astype(np.float32)
    inputs, outputs = pick.gamma(1.0, size=64).astype(np.float32), pick.lognormal(0, 1, size=5000).astype(np.float32)
    tensor = Shape(name="output.weight", rows=5000, columns=64)
    whole = [rows[at : at + 77] for at in range(0, 5000, 77)]
    found = measure(tensor, whole, ("q4_0",), layers=1, importance=inputs, gradient=outputs)
    squares = (rows - ggml.dequantize(ggml.quantize(rows, "q4_0", inputs), "q4_0", 64)) ** 2
    assert found.losses["q4_0"] == pytest.approx(0.5 * outputs @ squares @ inputs, rel=0.1)
    at_once = measure(tensor, [rows], ("q4_0",), layers=1, importance=inputs, gradient=outputs)
    assert found.losses["q4_0"] == pytest.approx(at_once.losses["q4_0"], rel=1e-6)


def test_refining_finds_what_was_predicted_wrongly() -> None:
    """Attention values cost 40 times what is predicted and ffn_up nothing: measuring finds the optimum of the true losses."""
    some = sensitive(6)
    wrong = {"attn_q": 1.0, "attn_v": 40.0, "ffn_up": 0.05, "ffn_down": 1.0}
    asked: list[Mapping[str, str]] = []

    def true(types: Mapping[str, str]) -> float:
        asked.append(dict(types))
        return sum(wrong[one.name.split(".")[2]] * one.losses[types[one.name]] for one in some)

    low, high = size(some, "q4_k"), size(some, "q8_0")
    budget = low + (high - low) // 4
    found = refine(some, budget, true, evaluations=16)
    assert len(asked) == found.evaluations <= 16
    assert len({tuple(one.values()) for one in asked}) == len(asked), "a mixture was measured twice"
    truth = [
        Sensitivity(
            name=one.name,
            bytes=one.bytes,
            losses={kind: wrong[one.name.split(".")[2]] * loss for kind, loss in one.losses.items()},
        )
        for one in some
    ]
    best = allocate(truth, budget)
    assert found.mixture.bytes <= budget
    assert found.kl < 0.7 * found.first_kl
    assert found.kl == pytest.approx(true(found.mixture.types))
    assert found.kl == pytest.approx(best.loss, rel=0.02)


def test_refining_keeps_the_first_choice_where_it_is_right() -> None:
    some = sensitive(6)
    budget = size(some, "q5_k")
    found = refine(
        some,
        budget,
        lambda types: sum(one.losses[types[one.name]] for one in some),
        evaluations=12,
    )
    assert found.mixture == allocate(some, budget)
    assert found.kl == found.first_kl


@pytest.fixture(scope="module")
def stories() -> tuple[Any, list[list[int]]]:
    """A trained Llama and blocks of 96 tokens of the text that it was trained for."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    pytest.importorskip("llama_cpp", reason="the [gguf] extra is not installed")
    if not STORIES.is_dir():
        pytest.skip("needs ../shared/data/stories260K")
    folder: Path = STORIES / "hf"
    text = (STORIES / "text" / "tinystories.txt").read_text(encoding="utf-8")[:60_000]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return AutoModelForCausalLM.from_pretrained(folder).eval(), [ids[at : at + 96] for at in range(0, 96 * 60, 96)]


def test_the_prediction_is_what_a_trained_model_loses(stories: tuple[Any, list[list[int]]]) -> None:
    """In nats: the KL divergence of each role's tensors at 4 bits within a factor of 2.5, of all together within 1.4."""
    import torch
    from torch.nn.functional import log_softmax

    model, blocks = stories
    paths = {
        f"blk.{layer}.{ours}.weight": model.get_submodule(f"model.layers.{layer}.{theirs}")
        for layer in range(model.config.num_hidden_layers)
        for theirs, ours in (
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
        )
    }
    inputs: dict[str, Any] = dict.fromkeys(paths, 0)
    gradients: dict[str, Any] = dict.fromkeys(paths, 0)

    def watch(name: str) -> Any:
        def seen(_: Any, given: tuple[Any, ...], out: Any) -> None:
            inputs[name] += given[0].detach().double()[0].square().sum(0)
            out.register_hook(lambda g: gradients.update({name: gradients[name] + g.double()[0].square().sum(0)}))

        return seen

    torch.manual_seed(0)
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in paths.items()]
    for block in blocks[:30]:
        chances = log_softmax(model(torch.tensor([block])).logits[0], -1)
        # What the model itself would say, so that the squares are its Fisher information.
        said = torch.multinomial(chances.detach().exp(), 1)
        chances.gather(1, said).sum().backward()
    for hook in hooks:
        hook.remove()

    tokens = sum(map(len, blocks[:30]))
    floats = {name: layer.weight.detach().clone() for name, layer in paths.items()}
    losses = {}
    for name, weight in floats.items():
        rows, columns = weight.shape
        losses[name] = measure(
            Shape(name=name, rows=rows, columns=columns),
            [weight.numpy()],
            ("q4_0",),
            layers=5,
            importance=(inputs[name] / tokens).float().numpy(),
            gradient=(gradients[name] / tokens).float().numpy(),
        ).losses["q4_0"]

    @torch.inference_mode()
    def answers() -> list[Any]:
        return [log_softmax(model(torch.tensor([block])).logits[0], -1) for block in blocks[30:]]

    reference = answers()

    def kl(names: list[str]) -> float:
        for name in names:
            importance = (inputs[name] / tokens).float().numpy()
            data = ggml.quantize(floats[name].numpy(), "q4_0", importance)
            paths[name].weight.data = torch.from_numpy(ggml.dequantize(data, "q4_0", floats[name].shape[1]))
        pairs = zip(reference, answers(), strict=True)
        total = sum(float((one.exp() * (one - other)).sum(-1).mean()) for one, other in pairs)
        for name in names:
            paths[name].weight.data = floats[name]
        return total / len(reference)

    for role in ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
        names = [name for name in paths if role in name]
        ratio = kl(names) / sum(losses[name] for name in names)
        assert 0.4 < ratio < 2.5, (role, ratio)
    assert 1 / 1.4 < kl(list(paths)) / sum(losses.values()) < 1.4
