"""A lesson: the weighted sum of losses on a batch, of a student beside its teacher or alone, for encoders and decoders alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgekit.distill import losses
from edgekit.distill.batches import Source
from edgekit.distill.decoders import mean_over_tokens
from edgekit.distill.loop import Lesson
from edgekit.distill.losses import Batch, Loss, Signal
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import Teacher

Terms = Sequence[tuple[float, Loss]]


def make_lesson(
    student: Tap,
    teacher: Teacher | None,
    source: Source,
    weights: Mapping[str, float],
    *,
    temperature: float = 1.0,
    judge: Loss | None = None,
) -> Lesson:
    """What the loop trains on. weights: of entries of LOSSES. judge: what the early stop looks at, else the weighted sum.

    The score counts every held-out output alike, whatever batch it is in: of a decoder's cross-entropy it is the logarithm of the
    perplexity. Without a teacher the losses get the student's own signal in its place.
    """
    loss = _weighted(
        student, teacher, source, [(weight, losses.LOSSES[name]) for name, weight in weights.items()], temperature
    )
    judged = loss if judge is None else _weighted(student, teacher, source, [(1.0, judge)], temperature)
    mean = sum(source.counts[row] for row in source.held) / max(len(source.held), 1)
    return Lesson(
        lengths=source.lengths,
        train=source.train,
        held=source.held,
        loss=loss,
        judge=lambda rows: judged(rows) * (sum(source.counts[row] for row in rows) / (mean * len(rows))),
    )


def _weighted(
    student: Tap, teacher: Teacher | None, source: Source, terms: Terms, temperature: float
) -> Callable[[Sequence[int]], Tensor]:
    def loss(rows: Sequence[int]) -> Tensor:
        batch = source.batch(rows).to(student.device)
        given = student(batch)
        wanted = given if teacher is None else teacher.ask(batch)
        by_token = [term for term in terms if batch.scored and "output" in term[1].needs]
        whole = [term for term in terms if term not in by_token]
        parts = []
        if by_token:
            parts.append(_of_tokens(student, teacher, (given, wanted, batch), by_token, temperature))
        if whole:
            parts.append(_sum(whole, given, wanted, batch, temperature))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    return loss


def _of_tokens(
    student: Tap, teacher: Teacher | None, compared: tuple[Signal, Signal, Batch], terms: Terms, temperature: float
) -> Tensor:
    """The weighted sum of losses of scored tokens' logits, mean over the tokens."""
    given, wanted, batch = compared
    assert batch.scored is not None
    mine, theirs = (signal.output[batch.scored] for signal in (given, wanted))
    asked = teacher if any(term.teacher for _, term in terms) else None

    def compare(part: slice) -> Tensor:
        logits = Signal(output=student.logits(mine[part]))
        with torch.no_grad():
            shown = logits if asked is None else Signal(output=asked.logits(theirs[part]))
        return _sum(terms, logits, shown, replace(batch, targets=batch.targets[part]), temperature)

    return mean_over_tokens(len(batch.targets), student.vocabulary, compare)


def _sum(terms: Terms, given: Signal, wanted: Signal, batch: Batch, temperature: float) -> Tensor:
    return torch.stack([weight * loss.compare(given, wanted, batch, temperature) for weight, loss in terms]).sum()
