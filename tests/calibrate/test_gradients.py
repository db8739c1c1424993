"""Gradients of a decoder's likelihoods: those of autograd, and what they foretell is what a changed weight costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.calibrate.gradients import EMBEDDING, gradient_squares
from edgekit.formats.source import is_judged
from edgekit.modalities.text import token_ids
from edgekit.model import load_model
from edgekit.prompts import Prompt
from edgekit.tasks.decoders import Decoder, load_decoder
from edgekit.tasks.text_generation import encode
from tests.architectures.decoders import ROOMS, make_decoder, orders

LAYERS = (
    "model.model.layers.0.self_attn.o_proj",
    "model.model.layers.1.mlp.up_proj",
    "model.model.layers.1.mlp.down_proj",
)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Random weights as large as trained ones: no token is sure."""
    folder = make_decoder(
        "llama", tmp_path_factory.mktemp("llama"), num_hidden_layers=2, vocab_size=300, hidden_size=32
    )
    return load_decoder(folder)


def texts(count: int, length: int) -> list[list[int]]:
    """Random tokens of which nobody is kept for judging."""
    numbers = np.random.default_rng(0)
    made = (numbers.integers(5, 300, length).tolist() for _ in range(4 * count))
    return [row for row in made if not is_judged(row)][:count]


def test_squares_are_autograds(decoder: Decoder) -> None:
    ids = texts(3, 12)
    found = gradient_squares(decoder, ids, seed=7)
    draw = torch.Generator().manual_seed(7)
    path, tokens = LAYERS[1], 0
    squares: Any = 0
    embedded: Any = 0
    layer, embedding = decoder.get_submodule(path), decoder.model.get_input_embeddings()
    expected: Any = 0
    for row in ids:
        kept: dict[str, torch.Tensor] = {}
        hooks = [
            part.register_forward_hook(lambda _part, _inputs, out, name=name, kept=kept: kept.update({name: out}))
            for name, part in {"layer": layer, "embedding": embedding}.items()
        ]
        feed = torch.tensor([row])
        likely = torch.log_softmax(decoder.model(input_ids=feed).logits[0], -1)
        said = torch.multinomial(likely.detach().exp(), 1, generator=draw)
        total = likely.gather(1, said).sum()
        of_layer, of_embedding = torch.autograd.grad(total, [kept["layer"], kept["embedding"]])
        squares = squares + of_layer[0].double().square().sum(0)
        embedded = embedded + of_embedding[0].double().square().sum(0)
        chances = likely.detach().double().exp()
        expected = expected + (chances * (1 - chances)).sum(0)
        tokens += len(row)
        for hook in hooks:
            hook.remove()
    np.testing.assert_allclose(found[path], (squares / tokens).numpy(), rtol=1e-4)
    np.testing.assert_allclose(found[EMBEDDING], (embedded / tokens).numpy(), rtol=1e-4)
    np.testing.assert_allclose(found["model.lm_head"], (expected / tokens).numpy(), rtol=1e-4)
    linears = {path for path, part in decoder.named_modules() if isinstance(part, torch.nn.Linear)}
    assert set(found) == linears | {EMBEDDING}
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}


def test_a_model_is_left_as_it_was(decoder: Decoder) -> None:
    ids = texts(2, 12)
    before = [parameter.requires_grad for parameter in decoder.parameters()]
    first, second, other = (gradient_squares(decoder, ids, seed=seed) for seed in (1, 1, 2))
    for path, values in first.items():
        np.testing.assert_array_equal(values, second[path])
    assert not np.array_equal(first[LAYERS[0]], other[LAYERS[0]])
    assert [parameter.requires_grad for parameter in decoder.parameters()] == before
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert not any(part._forward_hooks for part in decoder.modules())


def test_no_gradient_is_taken_of_what_judges(decoder: Decoder) -> None:
    numbers = np.random.default_rng(1)
    rows = [numbers.integers(5, 300, 12).tolist() for _ in range(20)]
    told: list[tuple[int, int]] = []
    found = gradient_squares(decoder, rows, seed=0, progress=lambda *now: told.append(now))
    others = [row for row in rows if not is_judged(row)]
    assert 0 < len(others) < len(rows)
    assert told[-1] == (len(others), len(others))
    np.testing.assert_array_equal(found[LAYERS[0]], gradient_squares(decoder, others, seed=0)[LAYERS[0]])


def divergence(decoder: Decoder, ids: list[list[int]], path: str, noise: torch.Tensor) -> tuple[float, np.ndarray]:
    """KL in nats a token of a layer whose weights are `noise` off, and the mean square of the error at its outputs."""
    layer: Any = decoder.get_submodule(path)
    inputs: list[torch.Tensor] = []
    with torch.inference_mode():
        hook = layer.register_forward_pre_hook(lambda _layer, given: inputs.append(given[0][0]))
        before = [torch.log_softmax(decoder.model(input_ids=torch.tensor([row])).logits[0].double(), -1) for row in ids]
        hook.remove()
        layer.weight += noise
        after = [torch.log_softmax(decoder.model(input_ids=torch.tensor([row])).logits[0].double(), -1) for row in ids]
        layer.weight -= noise
    kl = [(one.exp() * (one - other)).sum(-1) for one, other in zip(before, after, strict=True)]
    errors = (torch.cat(inputs).detach().double() @ noise.double().T).square().mean(0)
    return float(torch.cat(kl).mean()), errors.numpy()


@pytest.mark.parametrize("path", [LAYERS[0], LAYERS[2]])
def test_half_of_it_times_the_error_is_the_divergence(decoder: Decoder, path: str) -> None:
    """To second order: of noise that moves no token far, within 30 %; twice the noise costs four times as much.

    Errors of different channels that work together, or against each other, level out over several draws of the noise.
    """
    ids = texts(24, 32)
    squares = gradient_squares(decoder, ids, seed=0)[path]
    weight: Any = decoder.get_submodule(path).weight
    numbers = torch.Generator().manual_seed(3)
    draws = [torch.randn(weight.shape, generator=numbers) * 0.02 * weight.detach().std() for _ in range(8)]
    found = [divergence(decoder, ids, path, noise) for noise in draws]
    kl = float(np.mean([one for one, _ in found]))
    assert float(np.mean([0.5 * squares @ errors for _, errors in found])) == pytest.approx(kl, rel=0.3)
    assert kl < 0.05
    noise = draws[0]
    assert divergence(decoder, ids, path, 2 * noise)[0] == pytest.approx(4 * found[0][0], rel=0.3)
    # Channels count by how much they matter: noise on the least of them costs less.
    order = np.argsort(squares)
    least, most = (torch.zeros_like(noise) for _ in range(2))
    half = len(order) // 2
    least[order[:half].tolist()] = noise[order[:half].tolist()]
    most[order[half:].tolist()] = noise[order[half:].tolist()]
    assert divergence(decoder, ids, path, least)[0] < divergence(decoder, ids, path, most)[0]


def test_a_taught_model_is_sure_where_it_answers(talker: Path) -> None:
    """Of a conversation the template's tokens are counted too; the squares are no larger than those of a guess."""
    prompts = [Prompt(text=said, label=answer) for said, answer in orders(ROOMS[:4])]
    ids = token_ids(encode(load_model(talker), prompts, 64))
    head = gradient_squares(load_decoder(talker), ids, seed=0)["model.lm_head"]
    assert 0 < head.sum() < 1.0, "the sum of p (1 - p) over the vocabulary"
