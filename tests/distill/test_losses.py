"""Every loss against finite differences and its own definition."""

from __future__ import annotations

import math

import pytest
import torch

from edgekit.distill.losses import LOSSES, Batch, Signal, attention_relation, embedding, hidden, labels, logits

ROWS, WIDTH, SEQUENCE, CHANNELS, HEADS = 3, 5, 4, 6, 2
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def signal(seed: int, scale: float = 1.0) -> Signal:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    return Signal(
        output=draw(ROWS, WIDTH),
        hidden=(draw(ROWS, SEQUENCE, CHANNELS), draw(ROWS, SEQUENCE, CHANNELS)),
        projections=tuple(draw(ROWS, HEADS, SEQUENCE, CHANNELS // HEADS) for _ in range(3)),
    )


def batch() -> Batch:
    targets = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    targets[0, 2] = 1.0
    targets[1] = 1 / WIDTH
    return Batch(mask=MASK, targets=targets)


def leaves(one: Signal) -> list[torch.Tensor]:
    return [one.output, *one.hidden, *one.projections]


def rebuilt(parts: tuple[torch.Tensor, ...]) -> Signal:
    return Signal(output=parts[0], hidden=tuple(parts[1:3]), projections=tuple(parts[3:]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_is_that_of_finite_differences(name: str, temperature: float) -> None:
    teacher = signal(1)
    parts = tuple(part.requires_grad_() for part in leaves(signal(2)))

    def value(*parts: torch.Tensor) -> torch.Tensor:
        return LOSSES[name](rebuilt(parts), teacher, batch(), temperature)

    assert torch.autograd.gradcheck(value, parts, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"labels"}))
def test_a_student_like_its_teacher_has_no_loss(name: str) -> None:
    assert float(LOSSES[name](signal(1), signal(1), batch(), 2.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(LOSSES[name](signal(2), signal(1), batch(), 2.0)) > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_padding_counts_for_nothing(name: str) -> None:
    student, teacher = signal(2), signal(1)
    before = float(LOSSES[name](student, teacher, batch(), 2.0))
    for one in (*student.hidden, *teacher.hidden):
        one[MASK == 0] = 1e3
    for one in (*student.projections, *teacher.projections):
        one.transpose(1, 2)[MASK == 0] = 1e3
    assert float(LOSSES[name](student, teacher, batch(), 2.0)) == pytest.approx(before, rel=1e-12)


def test_temperature_does_not_change_the_size_of_the_gradient() -> None:
    """With logits that are small against T, the gradient is (student - teacher) / (classes * rows) at every T (section 2
    of arXiv:1503.02531, equation 4): without T^2 it would fall by 16 from T = 1 to T = 4."""
    teacher, norms = signal(1, scale=0.02), []
    for temperature in (1.0, 2.0, 4.0):
        student = signal(2, scale=0.02)
        student.output.requires_grad_()
        logits(student, teacher, batch(), temperature).backward()
        norms.append(float(student.output.grad.norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
    assert norms[2] == pytest.approx(norms[0], rel=0.02)


def test_logits_is_the_divergence_by_hand() -> None:
    student = Signal(output=torch.tensor([[0.0, 0.0]]))
    teacher = Signal(output=torch.tensor([[2.0 * math.log(3.0), 0.0]]))
    # At T = 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2.
    wanted = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(logits(student, teacher, batch(), 2.0)) == pytest.approx(wanted, rel=1e-6)


def test_labels_is_the_cross_entropy_of_the_known_rows() -> None:
    student = signal(2)
    told = torch.log_softmax(student.output, dim=-1)
    wanted = (-told[0, 2] - told[1].mean()) / 2
    assert float(labels(student, student, batch(), 1.0)) == pytest.approx(float(wanted), rel=1e-9)


def test_labels_without_any_known_row_is_zero() -> None:
    unknown = Batch(mask=MASK, targets=torch.zeros(ROWS, WIDTH))
    assert float(labels(signal(2), signal(2), unknown, 1.0)) == 0.0


def test_a_longer_vector_of_the_same_direction_is_no_loss() -> None:
    teacher = signal(1)
    student = Signal(output=teacher.output * 3, hidden=tuple(one * 7 for one in teacher.hidden))
    assert float(hidden(student, teacher, batch(), 1.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(embedding(student, teacher, batch(), 1.0)) == pytest.approx(0.0, abs=1e-12)


def test_attention_relation_by_hand() -> None:
    student, teacher = signal(2), signal(1)
    total = 0.0
    for said, wanted in zip(student.projections, teacher.projections, strict=True):
        per_token = []
        for row in range(ROWS):
            real = int(MASK[row].sum())
            for query in range(real):
                parts = []
                for head in range(HEADS):
                    keys = [one[row, head, :real] @ one[row, head, query] / math.sqrt(3) for one in (wanted, said)]
                    p, q = (key.softmax(dim=0) for key in keys)
                    parts.append(float((p * (p / q).log()).sum()))
                per_token.append(sum(parts) / HEADS)
        total += sum(per_token) / len(per_token)
    assert float(attention_relation(student, teacher, batch(), 1.0)) == pytest.approx(total, rel=1e-9)
