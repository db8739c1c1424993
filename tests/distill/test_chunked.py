"""Losses whose gradients are made in the forward pass, slice by slice, against the same losses of all logits at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgekit.distill import chunked
from edgekit.distill.chunked import Head, mean_over_rows, mean_over_tokens
from edgekit.distill.divergences import Compared, LossOptions
from edgekit.distill.losses import LOSSES, compare_logits

OF_LOGITS = [name for name, loss in LOSSES.items() if loss.divergence is not None]
TOKENS, CHANNELS, WIDTH = 23, 6, 40
OPTIONS = LossOptions(temperature=2.0, correct_teacher=0.1, confidence=1.0, label_smoothing=0.1, taid=0.7)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 5 tokens."""
    monkeypatch.setattr(chunked, "LOGIT_BYTES", 5 * 4 * WIDTH)


def leaves() -> list[Tensor]:
    return [draw(1, TOKENS, CHANNELS), draw(2, WIDTH, CHANNELS), draw(3, WIDTH)]


def compare(name: str, teacher: Tensor) -> Callable[[Tensor, slice], Compared]:
    targets = torch.arange(TOKENS)
    return lambda logits, part: compare_logits(
        LOSSES[name], logits, teacher[part].to(logits.dtype), targets[part], OPTIONS
    )


def gradients(loss: Callable[[list[Tensor]], Tensor], parts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    parts = [part.clone().requires_grad_() for part in parts]
    value = loss(parts)
    (value * 3).backward()  # type: ignore[no-untyped-call]
    return value.detach(), [part.grad for part in parts if part.grad is not None]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("cap", [None, 3.0])
def test_slices_give_the_loss_and_all_gradients_of_the_whole(name: str, cap: float | None) -> None:
    """Of hidden states, the head's weight and its bias; the head of Gemma 2 caps its logits."""
    each = compare(name, draw(4, TOKENS, WIDTH) * 2)

    def whole(parts: list[Tensor]) -> Tensor:
        logits = torch.nn.functional.linear(*parts)
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        return mean_over_rows(logits, lambda given: each(given, slice(0, TOKENS)), TOKENS)

    def sliced(parts: list[Tensor]) -> Tensor:
        return mean_over_tokens(parts[0], Head(weight=parts[1], bias=parts[2], cap=cap), each, TOKENS)

    expected, found = gradients(whole, leaves()), gradients(sliced, leaves())
    assert len(found[1]) == 3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    single = gradients(sliced, [part.float() for part in leaves()])
    for one, other in zip([single[0], *single[1]], [expected[0], *expected[1]], strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 1e-5


@pytest.mark.usefixtures("few")
def test_never_more_than_a_slice_of_logits_and_none_kept() -> None:
    """What autograd keeps for the backward pass, and the widest thing that the loss is given."""
    seen: list[int] = []
    each = compare("logits", draw(4, TOKENS, WIDTH))

    def watch(logits: Tensor, part: slice) -> Compared:
        seen.append(len(logits))
        return each(logits, part)

    kept: list[int] = []
    states, weight, _ = (part.requires_grad_() for part in leaves())
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.numel()), lambda saved: saved):
        loss = mean_over_tokens(states, Head(weight=weight), watch, TOKENS)
    assert seen == [5, 5, 5, 5, 3]
    assert kept == []
    loss.backward()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="handed over already"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_bf16_products_stay_near_float64() -> None:
    """Products in bf16, the loss in float32: the gradients are off by bf16's own rounding of hidden states and weights."""
    each = compare("logits", draw(4, TOKENS, WIDTH))

    def loss(parts: list[Tensor], dtype: torch.dtype | None) -> Tensor:
        return mean_over_tokens(parts[0], Head(weight=parts[1], bias=parts[2], dtype=dtype), each, TOKENS)

    rounded = [part.bfloat16().double() for part in leaves()]
    expected = gradients(lambda parts: loss(parts, None), rounded)[1]
    found = gradients(lambda parts: loss(parts, torch.bfloat16), [part.float() for part in rounded])[1]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one.double() - other).norm() / other.norm()) < 0.02


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        pytest.fail("gradients of a loss that is only read")

    monkeypatch.setattr(chunked, "_Gradients", refuse)
    states, weight, _ = (part.requires_grad_() for part in leaves())
    with torch.no_grad():
        mean_over_tokens(states, Head(weight=weight), compare("logits", draw(4, TOKENS, WIDTH)), TOKENS)
