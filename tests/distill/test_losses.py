"""Every loss against finite differences and its own definition."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from edgekit.distill import losses
from edgekit.distill.divergences import LossOptions
from edgekit.distill.encoder_losses import attention_relation, embedding, hidden
from edgekit.distill.losses import BRIER, LOSSES, Loss, labels, logits
from edgekit.distill.options import read_distill_options
from edgekit.distill.signals import Batch, Signal
from edgekit.errors import EdgekitError
from tests.architectures.families import make_family
from tests.conftest import LABELS, make_data
from tests.steps import distill

ROWS, WIDTH, SEQUENCE, CHANNELS, HEADS = 3, 5, 4, 6, 2
PLAIN, AT_2 = LossOptions(), LossOptions(temperature=2.0)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def signal(seed: int, scale: float = 1.0) -> Signal:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    return Signal(
        output=draw(ROWS, WIDTH),
        hidden=(draw(ROWS, SEQUENCE, CHANNELS), draw(ROWS, SEQUENCE, CHANNELS)),
        projections=tuple(draw(ROWS, HEADS, SEQUENCE, CHANNELS // HEADS) for _ in range(3)),
        views=tuple(draw(ROWS, CHANNELS) for _ in range(2)),
    )


def batch() -> Batch:
    targets = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    targets[0, 2] = 1.0
    targets[1] = 1 / WIDTH
    return Batch(rows=(0, 1, 2), tokens=MASK, mask=MASK, targets=targets)


def leaves(whole: Signal) -> list[torch.Tensor]:
    return [whole.output, *whole.hidden, *whole.projections, *whole.views]


def rebuilt(parts: tuple[torch.Tensor, ...]) -> Signal:
    return Signal(output=parts[0], hidden=tuple(parts[1:3]), projections=tuple(parts[3:6]), views=tuple(parts[6:]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_is_that_of_finite_differences(name: str, temperature: float) -> None:
    teacher = signal(1)
    parts = tuple(part.requires_grad_() for part in leaves(signal(2)))

    def value(*parts: torch.Tensor) -> torch.Tensor:
        return LOSSES[name].compare(rebuilt(parts), teacher, batch(), LossOptions(temperature=temperature))

    assert torch.autograd.gradcheck(value, parts, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_needs_what_it_reads(name: str) -> None:
    """It has a gradient in the signals that it names and in no others, and reads the teacher where it says so."""
    student = signal(2)
    for part in leaves(student):
        part.requires_grad_()
    loss = LOSSES[name]
    loss.compare(student, signal(1), batch(), AT_2).backward()  # type: ignore[no-untyped-call]
    touched = {"output": [student.output], "hidden": student.hidden, "projections": student.projections}
    touched["views"] = student.views
    assert set(touched) == {field.name for field in fields(Signal)}
    assert loss.needs == {key for key, parts in touched.items() if any(part.grad is not None for part in parts)}
    values = {float(loss.compare(student, signal(seed), batch(), AT_2).detach()) for seed in (1, 3)}
    assert loss.teacher == (len(values) == 2)
    assert set(loss.weights) <= {"logits", "embedding", "tokens"}
    # Of a decoder's output a loss gets the logits of some tokens, so it can read nothing else.
    assert "tokens" not in loss.weights or "output" not in loss.needs or loss.needs == {"output"}


def squares(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> torch.Tensor:
    """The mean squared difference of the matched blocks' outputs."""
    pairs = zip(student.hidden, teacher.hidden, strict=True)
    return torch.stack([torch.nn.functional.mse_loss(mine, theirs) for mine, theirs in pairs]).sum()


def test_a_further_loss_is_a_function_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may ask for it, its signals are collected, and a student learns by it alone."""
    line = {"squares": Loss(compare=squares, needs=frozenset({"hidden"}), weights={"logits": 0.5})}
    monkeypatch.setattr(losses, "LOSSES", LOSSES | line)
    assert read_distill_options({}, "logits", "distill")[1]["squares"] == 0.5
    with pytest.raises(EdgekitError, match=r"distill.losses.squares: does not apply to embedding"):
        read_distill_options({"losses": {"squares": 1.0}}, "embedding", "distill")
    options = {"losses": {"squares": 1.0}, "epochs": 12, "batch": 4, "learning_rate": 3e-3, "holdout": 0.3}
    data, out = make_data(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    teacher = make_family("bert", tmp_path / "teacher", LABELS)
    facts = distill(teacher, data, task="text-classification", layers=1, options=options, max_length=32, out=out)
    assert facts["losses"] == {"squares": 1.0}
    assert facts["matched_layers"] == [3]
    assert facts["scores"][-1] < 0.7 * facts["scores"][0]


def test_brier_by_hand() -> None:
    student = Signal(output=torch.tensor([[math.log(3.0), 0.0]]))
    facts = replace(batch(), targets=torch.tensor([[0.0, 1.0]]))
    assert float(BRIER.compare(student, student, facts, PLAIN)) == pytest.approx(2 * 0.75**2)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.teacher])
def test_a_student_like_its_teacher_has_no_loss(name: str) -> None:
    assert float(LOSSES[name].compare(signal(1), signal(1), batch(), AT_2)) == pytest.approx(0.0, abs=1e-12)
    assert float(LOSSES[name].compare(signal(2), signal(1), batch(), AT_2)) > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_padding_counts_for_nothing(name: str) -> None:
    student, teacher = signal(2), signal(1)
    before = float(LOSSES[name].compare(student, teacher, batch(), AT_2))
    for tensor in (*student.hidden, *teacher.hidden):
        tensor[MASK == 0] = 1e3
    for tensor in (*student.projections, *teacher.projections):
        tensor.transpose(1, 2)[MASK == 0] = 1e3
    assert float(LOSSES[name].compare(student, teacher, batch(), AT_2)) == pytest.approx(before, rel=1e-12)


def test_temperature_does_not_change_the_size_of_the_gradient() -> None:
    """With logits that are small against T, the gradient is (student - teacher) / (classes * rows) at every T (section 2
    of arXiv:1503.02531, equation 4): without T^2 it would fall by 16 from T = 1 to T = 4."""
    teacher, norms = signal(1, scale=0.02), []
    for temperature in (1.0, 2.0, 4.0):
        student = signal(2, scale=0.02)
        student.output.requires_grad_()
        logits(student, teacher, batch(), LossOptions(temperature=temperature)).backward()
        norms.append(float(student.output.grad.norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
    assert norms[2] == pytest.approx(norms[0], rel=0.02)


def test_logits_is_the_divergence_by_hand() -> None:
    student = Signal(output=torch.tensor([[0.0, 0.0]]))
    teacher = Signal(output=torch.tensor([[2.0 * math.log(3.0), 0.0]]))
    # At T = 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2.
    wanted = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(logits(student, teacher, batch(), AT_2)) == pytest.approx(wanted, rel=1e-6)


def test_taid_holds_its_target_still() -> None:
    """The rows' own KL: no gradient reaches the student through the teacher that is mixed with it."""
    student, teacher, options = signal(2), signal(1), LossOptions(temperature=2.0, taid=0.4)
    student.output.requires_grad_()
    logits(student, teacher, batch(), options).backward()
    given = student.output.detach()
    p, q = ((0.6 * given + 0.4 * teacher.output) / 2).softmax(-1), (given / 2).softmax(-1)
    torch.testing.assert_close(student.output.grad, 2 * (q - p) / ROWS)


def test_labels_is_the_cross_entropy_of_the_known_rows() -> None:
    student = signal(2)
    logs = torch.log_softmax(student.output, dim=-1)
    wanted = (-logs[0, 2] - logs[1].mean()) / 2
    assert float(labels(student, student, batch(), PLAIN)) == pytest.approx(float(wanted), rel=1e-9)


def test_labels_without_any_known_row_is_zero() -> None:
    unknown = replace(batch(), targets=torch.zeros(ROWS, WIDTH))
    assert float(labels(signal(2), signal(2), unknown, PLAIN)) == 0.0


def test_a_longer_vector_of_the_same_direction_is_no_loss() -> None:
    teacher = signal(1)
    student = Signal(output=teacher.output * 3, hidden=tuple(tensor * 7 for tensor in teacher.hidden))
    assert float(hidden(student, teacher, batch(), PLAIN)) == pytest.approx(0.0, abs=1e-12)
    assert float(embedding(student, teacher, batch(), PLAIN)) == pytest.approx(0.0, abs=1e-12)


def test_attention_relation_by_hand() -> None:
    student, teacher = signal(2), signal(1)
    total = 0.0
    for given, wanted in zip(student.projections, teacher.projections, strict=True):
        per_token = []
        for row in range(ROWS):
            real = int(MASK[row].sum())
            for query in range(real):
                parts = []
                for head in range(HEADS):
                    keys = [side[row, head, :real] @ side[row, head, query] / math.sqrt(3) for side in (wanted, given)]
                    p, q = (key.softmax(dim=0) for key in keys)
                    parts.append(float((p * (p / q).log()).sum()))
                per_token.append(sum(parts) / HEADS)
        total += sum(per_token) / len(per_token)
    assert float(attention_relation(student, teacher, batch(), PLAIN)) == pytest.approx(total, rel=1e-9)
