"""Every divergence of logits against its textbook formula, its closed form, finite differences, and the laws that it must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgekit.distill.chunked import mean_over_rows
from edgekit.distill.divergences import LossOptions, confidence, correct, cross_entropy, interpolate
from edgekit.distill.losses import LOSSES, Loss, compare_logits
from edgekit.distill.signals import IGNORED

OF_LOGITS = {name: loss for name, loss in LOSSES.items() if loss.divergence is not None}
TAUGHT = {name: loss for name, loss in OF_LOGITS.items() if loss.teacher}
FIRST_ORDER = {"total_variation", "uld"}
TEMPERATURES = [1.0, 2.0, 4.0, 8.0]
ROWS, WIDTH = 4, 7
TARGETS = torch.tensor([3, 0, 6, 2])
Formula = Callable[[Tensor, Tensor, LossOptions], Tensor]


def draw(seed: int, rows: int = ROWS, width: int = WIDTH, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor, o: LossOptions) -> Tensor:
    mixed = o.jensen_shannon * p + (1 - o.jensen_shannon) * q
    return o.jensen_shannon * kl(p, mixed) + (1 - o.jensen_shannon) * kl(q, mixed)


def alpha_beta(p: Tensor, q: Tensor, o: LossOptions) -> Tensor:
    a, b = o.alpha, o.beta
    parts = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -parts.sum(-1) / (a * b)


FORMULAS: dict[str, Formula] = {
    "alpha_beta": alpha_beta,
    "jensen_shannon": jensen_shannon,
    "logits": lambda p, q, _: kl(p, q),
    "reverse_kl": lambda p, q, _: kl(q, p),
    "skew_kl": lambda p, q, o: kl(p, o.skew * p + (1 - o.skew) * q),
    "skew_reverse_kl": lambda p, q, o: kl(q, o.skew * q + (1 - o.skew) * p),
    "total_variation": lambda p, q, _: (p - q).abs().sum(-1) / 2,
    "uld": lambda p, q, _: (p.sort(-1).values - q.sort(-1).values).abs().sum(-1),
}


def mean(loss: Loss, given: Tensor, wanted: Tensor, options: LossOptions, targets: Tensor = TARGETS) -> Tensor:
    return mean_over_rows(given, lambda mine: compare_logits(loss, mine, wanted, targets, options), len(given))


@pytest.mark.parametrize("name", TAUGHT)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_value_and_gradient_are_those_of_the_formula(name: str, temperature: float) -> None:
    """Against torch's derivative of the formula as it is printed: T^2, of a first-order divergence T."""
    options = LossOptions(temperature=temperature, jensen_shannon=0.3, skew=0.2, alpha=0.4, beta=0.9)
    given, wanted = draw(2).requires_grad_(), draw(1)
    values, gradient = compare_logits(TAUGHT[name], given.detach(), wanted, TARGETS, options)
    if name == "logit_squares":
        expected = (given - wanted).square().mean(-1)
    else:
        p, q = (wanted / temperature).softmax(-1), (given / temperature).softmax(-1)
        expected = FORMULAS[name](p, q, options) * temperature ** (1 if name in FIRST_ORDER else 2)
    expected.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(values, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, given.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_closed_forms(temperature: float) -> None:
    """KL: T (q - p); reverse KL: T q (log q / p - KL); total variation: q (s - sum(q s)) / 2 with s the sign of q - p."""
    given, wanted, options = draw(2), draw(1), LossOptions(temperature=temperature)
    p, q = (wanted / temperature).softmax(-1), (given / temperature).softmax(-1)
    signs = (q - p).sign()
    closed = {
        "logits": temperature * (q - p),
        "reverse_kl": temperature * q * ((q / p).log() - kl(q, p)[:, None]),
        "total_variation": q * (signs - (q * signs).sum(-1, keepdim=True)) / 2,
        "logit_squares": 2 * (given - wanted) / WIDTH,
    }
    for name, expected in closed.items():
        gradient = compare_logits(TAUGHT[name], given, wanted, TARGETS, options)[1]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradients_are_finite_differences(name: str, temperature: float) -> None:
    """With every correction in it."""
    options = LossOptions(temperature=temperature, correct_teacher=0.2, confidence=1.5, label_smoothing=0.1)
    wanted = draw(1)
    assert torch.autograd.gradcheck(
        lambda given: mean(OF_LOGITS[name], given, wanted, options), draw(2).requires_grad_(), eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", TAUGHT)
def test_temperature_does_not_change_the_size_of_a_small_gradient(name: str) -> None:
    """Logits of standard deviation 0.05, the limit in which T^2 is derived; without it the norm would fall by 64 to T = 8."""
    norms = []
    for temperature in TEMPERATURES:
        options = LossOptions(temperature=temperature)
        given, wanted = (draw(seed, rows=64, width=1000, scale=0.05) for seed in (2, 1))
        norms.append(float(compare_logits(TAUGHT[name], given, wanted, TARGETS[:1].expand(64), options)[1].norm()))
    assert norms == pytest.approx([norms[0]] * len(norms), rel=0.01)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_gradients_of_bf16_logits_are_those_of_float64(name: str) -> None:
    options = LossOptions(temperature=2.0)
    given, wanted = (draw(seed, rows=32, width=2000, scale=3.0).bfloat16() for seed in (2, 1))
    targets = torch.arange(32)
    small = given.clone().requires_grad_()
    mean(OF_LOGITS[name], small, wanted.float(), options, targets).backward()  # type: ignore[no-untyped-call]
    exact = given.double().requires_grad_()
    mean(OF_LOGITS[name], exact, wanted.double(), options, targets).backward()  # type: ignore[no-untyped-call]
    assert small.grad is not None
    assert exact.grad is not None
    assert float((small.grad.double() - exact.grad).norm() / exact.grad.norm()) < 0.005


@pytest.mark.parametrize("name", TAUGHT)
def test_logits_that_only_pad_one_vocabulary_change_nothing(name: str) -> None:
    options = LossOptions(temperature=2.0)
    given, wanted = draw(2), draw(1)
    values, gradient = compare_logits(TAUGHT[name], given, wanted, TARGETS, options)
    padding = torch.full((ROWS, 3), -1e4 if name == "uld" else 5.0, dtype=torch.float64)
    wide = torch.cat([wanted, padding], dim=1)
    torch.testing.assert_close(compare_logits(TAUGHT[name], given, wide, TARGETS, options), (values, gradient))
    wide_values, wide_gradient = compare_logits(
        TAUGHT[name], torch.cat([given, padding], dim=1), wanted, TARGETS, options
    )
    torch.testing.assert_close(wide_values, values)
    torch.testing.assert_close(wide_gradient, torch.cat([gradient, torch.zeros_like(padding)], dim=1))


def test_uld_compares_vocabularies_of_any_two_sizes_and_orders() -> None:
    given, wanted = draw(2), draw(1)
    value = compare_logits(TAUGHT["uld"], given, wanted, TARGETS, LossOptions())[0]
    shuffled = wanted[:, torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(compare_logits(TAUGHT["uld"], given, shuffled, TARGETS, LossOptions())[0], value)
    narrow = draw(3, width=4)
    by_hand = torch.zeros(ROWS, dtype=torch.float64)
    for row in range(ROWS):
        few = [*narrow[row].softmax(-1).sort(descending=True).values.tolist(), 0.0, 0.0, 0.0]
        many = given[row].softmax(-1).sort(descending=True).values.tolist()
        by_hand[row] = sum(abs(a - b) for a, b in zip(few, many, strict=True))
    torch.testing.assert_close(compare_logits(TAUGHT["uld"], given, narrow, TARGETS, LossOptions())[0], by_hand)
    torch.testing.assert_close(compare_logits(TAUGHT["uld"], narrow, given, TARGETS[:4] * 0, LossOptions())[0], by_hand)


def test_the_limits_of_the_mixtures() -> None:
    """As the shares vanish: Jensen-Shannon over its share is KL, the skew divergences are KL, alpha-beta is KL at (1, 0), (0, 1)."""
    given, wanted, small = draw(2), draw(1), 1e-6
    for name, options, limit in (
        ("jensen_shannon", LossOptions(jensen_shannon=small), "logits"),
        ("jensen_shannon", LossOptions(jensen_shannon=1 - small), "reverse_kl"),
        ("skew_kl", LossOptions(skew=small), "logits"),
        ("skew_reverse_kl", LossOptions(skew=small), "reverse_kl"),
        ("alpha_beta", LossOptions(alpha=1.0, beta=small), "logits"),
        ("alpha_beta", LossOptions(alpha=small, beta=1.0), "reverse_kl"),
    ):
        values, gradient = compare_logits(TAUGHT[name], given, wanted, TARGETS, options)
        scale = 1 / small if name == "jensen_shannon" else 1.0
        found = compare_logits(TAUGHT[limit], given, wanted, TARGETS, options)
        torch.testing.assert_close((values * scale, gradient * scale), found, rtol=1e-4, atol=1e-5, msg=name)


def test_cross_entropy_is_torchs_own() -> None:
    given = draw(2).requires_grad_()
    targets = torch.tensor([3, IGNORED, 6, 2])
    for share in (0.0, 0.1):
        given.grad = None
        expected = torch.nn.functional.cross_entropy(given, targets, reduction="none", label_smoothing=share)
        expected.sum().backward()  # type: ignore[no-untyped-call]
        values, gradient = cross_entropy(given.detach(), targets, LossOptions(label_smoothing=share))
        torch.testing.assert_close(values, expected.detach())
        torch.testing.assert_close(gradient, given.grad)
        wanted = torch.nn.functional.one_hot(targets.clamp(min=0), WIDTH).double() * (targets != IGNORED)[:, None]
        torch.testing.assert_close(cross_entropy(given.detach(), wanted, LossOptions(label_smoothing=share))[0], values)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_wrong_teacher_is_corrected_by_the_margin_exactly(temperature: float) -> None:
    """And one that is right by less than the margin; one that is right by more, or has no right answer, stays as it is."""
    options = LossOptions(temperature=temperature, correct_teacher=0.2)
    logits = torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.1, 0.0], [0.0, 30.0, 0.0], [4.0, 1.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([1, 1, 1, IGNORED])
    p = (correct(logits, targets, options) / temperature).softmax(-1)
    before = (logits / temperature).softmax(-1)
    for row in (0, 1):
        others = p[row, [0, 2]]
        assert float(p[row, 1] - others.max()) == pytest.approx(0.2, abs=1e-12)
        ratio = before[row, [0, 2]] / before[row, [0, 2]].sum()
        torch.testing.assert_close(others / others.sum(), ratio)  # the rest keep their shares
    torch.testing.assert_close(p[2:], before[2:], rtol=0, atol=0)
    soft = torch.tensor([[0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    found = (correct(logits[:2], soft, options) / temperature).softmax(-1)
    torch.testing.assert_close(found, torch.stack([p[0], before[1]]))
    assert correct(logits, targets, replace(options, correct_teacher=None)) is logits


def test_a_teacher_that_is_sure_counts_and_one_that_is_not_does_not() -> None:
    logits = torch.tensor([[50.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    p = logits[2].softmax(-1)
    some = 1 + float((p * p.log()).sum()) / torch.log(torch.tensor(3.0, dtype=torch.float64)).item()
    torch.testing.assert_close(confidence(logits, 2.0), torch.tensor([1.0, 0.0, some**2], dtype=torch.float64))
    given, options = draw(2, rows=3, width=3), LossOptions(confidence=2.0)
    plain = compare_logits(TAUGHT["reverse_kl"], given, logits, TARGETS[:3] * 0, LossOptions())
    weighed = compare_logits(TAUGHT["reverse_kl"], given, logits, TARGETS[:3] * 0, options)
    weights = confidence(logits, 2.0)
    torch.testing.assert_close(weighed, (plain[0] * weights, plain[1] * weights[:, None]))


@pytest.mark.parametrize("name", [name for name, loss in TAUGHT.items() if not loss.any_width])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_teacher_between_student_and_teacher(name: str, temperature: float) -> None:
    """TAID: the gradient is that of finite differences of the loss whose target stands still; of KL it is T (q - p_t)."""
    options = LossOptions(temperature=temperature, taid=0.3)
    given, wanted = draw(2), draw(1)
    between = 0.7 * given + 0.3 * wanted
    values, gradient = compare_logits(TAUGHT[name], given, wanted, TARGETS, options)
    plain = replace(options, taid=1.0)

    def moved(by: Tensor) -> Tensor:
        return compare_logits(TAUGHT[name], given + by, between, TARGETS, plain)[0]

    torch.testing.assert_close(values, moved(torch.zeros_like(given)))
    step = 1e-6 * torch.eye(WIDTH, dtype=torch.float64)
    slopes = torch.stack([(moved(by) - moved(-by)) / 2e-6 for by in step], dim=1)
    torch.testing.assert_close(gradient, slopes, rtol=1e-6, atol=1e-8)
    if name == "logits":
        q, p = (given / temperature).softmax(-1), (between / temperature).softmax(-1)
        torch.testing.assert_close(gradient, temperature * (q - p), rtol=1e-12, atol=1e-12)


def test_at_the_end_it_is_the_teacher_itself_and_at_no_share_the_student() -> None:
    given, wanted = draw(2).requires_grad_(), draw(1)
    assert interpolate(wanted, given, LossOptions(taid=1.0)) is wanted
    assert not interpolate(wanted, given, LossOptions(taid=0.5)).requires_grad
    assert torch.equal(interpolate(wanted, given, LossOptions(taid=0.0)), given.detach())
