"""How a lesson puts losses together: a mean over the real tokens of the whole batch, however it is cut, packed or padded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from edgekit.distill import losses
from edgekit.distill.batches import Source
from edgekit.distill.chunked import Head
from edgekit.distill.divergences import LossOptions
from edgekit.distill.lessons import Teaching, make_lesson
from edgekit.distill.losses import LOSSES, Loss
from edgekit.distill.options import Schedule, at, loss_options, read_distill_options
from edgekit.distill.signals import IGNORED, Batch, Signal
from edgekit.distill.teachers import Teacher
from edgekit.errors import EdgekitError

WORDS, CHANNELS = 30, 5
BY_TOKEN = {name: 0.5 for name, loss in LOSSES.items() if "tokens" in loss.weights}
BY_ROW = {name: 0.5 for name, loss in LOSSES.items() if "logits" in loss.weights and not loss.pairs}
ROWS = [[4, 9, 2, 7, 7, 1], [3, 8], [5, 6, 1, 2], [29, 11, 3]]


class Model:
    """A Tap of a model that sees each token alone, so that what it says does not depend on what is beside it."""

    device = "cpu"

    def __init__(self, seed: int, *, words: int = WORDS, classes: int | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = [(WORDS, CHANNELS), (words, CHANNELS), (classes or 1, CHANNELS)]
        drawn = [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]
        self.embedding, self.weight, self.classes = (tensor.requires_grad_() for tensor in drawn)
        self.decoder = classes is None

    def __call__(self, batch: Batch) -> Signal:
        states = self.embedding[batch.tokens]
        mask = batch.mask[:, :, None]
        text = (states * mask).sum(1) / mask.sum(1)
        heads = tuple((states * scale)[:, None] for scale in (1.0, 2.0, 3.0))
        return Signal(output=states if self.decoder else text @ self.classes.T, hidden=(states,), projections=heads)

    @property
    def head(self) -> Head:
        return Head(weight=self.weight)

    def gradients(self) -> list[Tensor]:
        return [
            tensor.grad.clone() for tensor in (self.embedding, self.weight, self.classes) if tensor.grad is not None
        ]


def tokens(rows: Sequence[Sequence[int]], *, pad: int = 0, ignored: Sequence[tuple[int, int]] = ()) -> Source:
    """A decoder's rows: each token but the first is learned, but for `ignored` ones (row, position that predicts it)."""

    def batch(chosen: Sequence[int]) -> Batch:
        width = max(len(rows[row]) for row in chosen) + pad
        ids = torch.tensor([[*rows[row], *[0] * (width - len(rows[row]))] for row in chosen])
        mask = torch.tensor([[1] * len(rows[row]) + [0] * (width - len(rows[row])) for row in chosen])
        scored = [(index, at) for index, row in enumerate(chosen) for at in range(len(rows[row]) - 1)]
        targets = [IGNORED if (chosen[row], at) in ignored else rows[chosen[row]][at + 1] for row, at in scored]
        owners, positions = torch.tensor(scored).T
        return Batch(
            rows=tuple(chosen), tokens=ids, mask=mask, targets=torch.tensor(targets), scored=(owners, positions)
        )

    return source(rows, batch, [len(row) - 1 for row in rows])


def texts(rows: Sequence[Sequence[int]]) -> Source:
    """A classifier's rows; the second has no label, the third is of no class."""
    wanted = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1 / 3] * 3, [0, 1, 0]], dtype=torch.float64)
    inner = tokens(rows)
    return source(
        rows, lambda chosen: replace(inner.batch(chosen), targets=wanted[list(chosen)], scored=None), [1] * len(rows)
    )


def source(rows: Sequence[Sequence[int]], batch: Any, counts: Sequence[int]) -> Source:
    return Source(
        lengths=[len(row) for row in rows],
        train=range(len(rows)),
        held=range(len(rows)),
        counts=counts,
        batch=batch,
        identity={},
    )


def learn(
    source: Source, teaching: Teaching, *, classes: int | None = None, words: int = WORDS, share: float = 0.0
) -> Any:
    """The loss of all rows and its gradients in the student."""
    student, other = Model(1, classes=classes), Model(2, classes=classes, words=words)
    teacher = Teacher(ask=other, logits=lambda states: (states @ other.weight.T).detach())
    lesson = make_lesson(cast(Any, student), teacher, source, teaching)
    total = 0.0
    for part in lesson.parts(list(lesson.train), share):
        part.backward()  # type: ignore[no-untyped-call]
        total += float(part.detach())
    return torch.tensor(total), student.gradients()


OPTIONS = LossOptions(temperature=2.0, correct_teacher=0.1, confidence=0.5, label_smoothing=0.1, taid=0.7)
DECODER = Teaching(weights=BY_TOKEN, options=lambda _share: OPTIONS)
CLASSIFIER = Teaching(weights=BY_ROW, options=lambda _share: OPTIONS)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_micro_batches_add_up_to_the_batch(size: int) -> None:
    """Rows of 1 to 5 learned tokens: a mean of means would weigh them otherwise."""
    small = replace(DECODER, micro_batch=size)
    torch.testing.assert_close(learn(tokens(ROWS), small), learn(tokens(ROWS), DECODER))
    small = replace(DECODER, micro_batch=size, per_sequence=True)
    torch.testing.assert_close(learn(tokens(ROWS), small), learn(tokens(ROWS), replace(small, micro_batch=None)))
    small = replace(CLASSIFIER, micro_batch=size)
    torch.testing.assert_close(learn(texts(ROWS), small, classes=3), learn(texts(ROWS), CLASSIFIER, classes=3))


def test_padding_counts_for_nothing() -> None:
    torch.testing.assert_close(
        learn(tokens(ROWS, pad=9), DECODER), learn(tokens(ROWS), DECODER), rtol=1e-12, atol=1e-12
    )


def test_packed_rows_are_the_rows() -> None:
    """Two texts behind each other in one row, where the first token of the second is not learned."""
    packed = tokens([ROWS[0] + ROWS[1], ROWS[2], ROWS[3]], ignored=[(0, 5)])
    torch.testing.assert_close(learn(packed, DECODER), learn(tokens(ROWS), DECODER), rtol=1e-12, atol=1e-12)


def test_ignored_tokens_teach_nothing() -> None:
    """Neither their own loss nor the mean knows of them; the hidden states of their positions are real, and are learned."""
    teaching = replace(DECODER, weights={name: weight for name, weight in BY_TOKEN.items() if LOSSES[name].divergence})
    found = learn(tokens([[4, 9, 2, 7], [3, 8, 1]], ignored=[(0, 2), (1, 1)]), teaching)
    torch.testing.assert_close(found, learn(tokens([[4, 9, 2], [3, 8]]), teaching))
    nothing = learn(tokens([[4, 9]], ignored=[(0, 0)]), teaching)
    assert float(nothing[0]) == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in nothing[1])


def test_per_sequence_every_text_counts_alike() -> None:
    teaching = replace(DECODER, weights={"logits": 1.0}, per_sequence=True)
    alone = [float(learn(tokens([row]), replace(teaching, per_sequence=False))[0]) for row in ROWS]
    assert float(learn(tokens(ROWS), teaching)[0]) == pytest.approx(sum(alone) / len(alone), rel=1e-6)


def test_a_padded_vocabulary_is_cut_and_a_token_beyond_it_refused() -> None:
    teaching = replace(DECODER, weights={"logits": 1.0, "reverse_kl": 1.0})
    rows = [[4, 9, 2], [3, 8]]
    learn(tokens(rows), teaching, words=WORDS - 3)
    with pytest.raises(EdgekitError, match=r"distill.losses: the texts have the token 29, but .* share 27 tokens only"):
        learn(tokens([[4, 29]]), teaching, words=WORDS - 3)
    learn(tokens([[4, 29]]), replace(teaching, weights={"uld": 1.0}), words=WORDS - 3)


def test_weights_and_temperature_follow_their_schedules() -> None:
    line, half = Schedule(start=4.0, end=1.0), Schedule(start=1.0, end=0.0, shape="cosine")
    assert [at(line, share) for share in (0.0, 0.5, 1.0)] == [4.0, 2.5, 1.0]
    assert [at(half, share) for share in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.853553, 0.5, 0.0])
    table = {
        "temperature": {"start": 4.0, "end": 1.0},
        "losses": {"logits": {"start": 1.0, "end": 0.0, "shape": "cosine"}, "labels": 0.5},
    }
    options, weights = read_distill_options(table, "tokens", "distill")
    assert weights == {"logits": half, "labels": 0.5}
    scheduled = Teaching(weights=weights, options=lambda share: loss_options(options, share))
    for share in (0.0, 0.25, 1.0):
        still = {"logits": at(half, share), "labels": 0.5}
        now = LossOptions(temperature=at(line, share))
        fixed = Teaching(weights=still, options=lambda _share, now=now: now)
        torch.testing.assert_close(learn(tokens(ROWS), scheduled, share=share), learn(tokens(ROWS), fixed))


@pytest.mark.parametrize(("alpha", "end"), [(0.0, 1.0), (5e-4, 1.0), (0.4, 0.9)])
def test_taid_goes_as_its_paper_says(alpha: float, end: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """t at each step, against algorithm 1 of arXiv:2501.16937; a lesson that is continued goes on where it was."""
    options, _ = read_distill_options({"taid": {"start": 0.2, "end": end, "adaptive": alpha}}, "logits", "distill")
    given = [3.0, 2.9, 2.0, 2.5, 1.0, 0.5, 0.5, 0.4]
    seen: list[float] = []

    def watch(student: Signal, _teacher: Signal, _batch: Batch, told: LossOptions) -> Tensor:
        seen.append(told.taid)
        return student.output.sum()

    monkeypatch.setattr(losses, "LOSSES", {"seen": Loss(compare=watch, needs=frozenset({"output"}), weights={})})
    teaching = Teaching(weights={"seen": 1.0}, options=lambda share: loss_options(options, share), adaptive=alpha)
    memory: dict[str, float] = {}
    for step, loss in enumerate(given):
        lesson = make_lesson(cast(Any, Model(1, classes=3)), None, texts(ROWS), teaching)
        lesson.memory.update(memory)
        share = step / len(given)
        assert len(list(lesson.parts([0, 1], share))) == 1
        lesson.told(loss, share)
        memory = dict(lesson.memory)
    expected, momentum = [0.2], 0.0
    for step in range(1, len(given)):
        line = 0.2 + (end - 0.2) * step / len(given)
        if alpha == 0 or step == 1:
            expected.append(line)  # the first loss has none before it
            continue
        momentum = 0.99 * momentum + 0.01 * (given[step - 2] - given[step - 1]) / (given[step - 2] + 1e-15)
        rise = alpha / (1 + math.exp(-momentum)) * (1 - expected[-1])
        expected.append(min(end, max(line, expected[-1] + rise)))
    assert seen == pytest.approx(expected, abs=1e-12)
    assert seen == sorted(seen)
    judged = lesson.judge([0])
    assert seen[-1] == pytest.approx(end)
    assert judged.requires_grad


@pytest.mark.parametrize(
    ("table", "output", "message"),
    [
        ({"temperature": {"start": 2.0}}, "logits", r"recipe.toml: distill.temperature.end: missing key"),
        ({"temperature": {"start": 2.0, "end": 0.0}}, "logits", r"distill.temperature: start and end must be greater"),
        ({"temperature": {"from": 2.0, "end": 1.0}}, "logits", r"distill.temperature.from: unknown key"),
        ({"losses": {"logits": {"start": -1, "end": 1}}}, "logits", r"distill.losses.logits.start: .*greater than"),
        ({"losses": {"logits": {"start": 0, "end": 0}}}, "logits", r"distill.losses: every weight is zero"),
        ({"losses": {"logits": {"start": 1, "end": 0, "shape": "step"}}}, "logits", r"distill.losses.logits.shape: "),
        ({"losses": {"contrastive": 1.0}, "micro_batch": 4}, "logits", r"distill.micro_batch: contrastive compares"),
        ({"losses": {"labels": 1.0}, "correct_teacher": 0.2}, "logits", r"distill.correct_teacher: no loss compares"),
        ({"losses": {"uld": 1.0}, "correct_teacher": 0.2}, "logits", r"distill.correct_teacher: no loss compares"),
        ({"confidence": 1.0}, "embedding", r"distill.confidence: no loss compares"),
        ({"losses": {"logits": 1.0}, "label_smoothing": 0.1}, "logits", r"distill.label_smoothing: the loss labels"),
        ({"per": "sequence"}, "logits", r"distill.per: a text has one output here"),
        ({"jensen_shannon": 1.0}, "logits", r"distill.jensen_shannon: .*less than 1"),
        ({"taid": {"start": 0.9, "end": 0.5}}, "logits", r"distill.taid: start \(0.9\) is above end \(0.5\); swap"),
        ({"taid": {"end": 1.5}}, "logits", r"distill.taid.end: .*less than or equal to 1"),
        ({"taid": {"begin": 0.1}}, "logits", r"distill.taid.begin: unknown key"),
        ({"taid": {}, "losses": {"uld": 1.0}}, "logits", r"distill.taid: no loss compares logits"),
        ({"taid": {}}, "embedding", r"distill.taid: no loss compares logits"),
        ({"taid": {}, "signals": "recorded"}, "tokens", r"distill.taid: needs all of the teacher's probabilities"),
        ({"alpha_beta": [0.2]}, "logits", r"distill.alpha_beta"),
        ({"correct_teacher": 1.5}, "logits", r"distill.correct_teacher"),
    ],
)
def test_options_that_cannot_work_are_told(table: dict[str, object], output: str, message: str) -> None:
    with pytest.raises(EdgekitError, match=message):
        read_distill_options(table, output, "recipe.toml: distill")
