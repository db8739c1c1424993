"""A lesson: the weighted sum of losses on a batch, of a student beside its teacher or alone, for encoders and decoders alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from edgekit.distill import losses
from edgekit.distill.batches import Source
from edgekit.distill.chunked import mean_over_tokens
from edgekit.distill.divergences import Compared, LossOptions, pull_tokens
from edgekit.distill.loop import Lesson
from edgekit.distill.losses import Loss, compare_logits
from edgekit.distill.options import Schedule, at
from edgekit.distill.ranks import Ranks
from edgekit.distill.room import Room
from edgekit.distill.signals import IGNORED, Batch, Recorded, Signal
from edgekit.distill.tap import Tap
from edgekit.distill.teachers import Teacher
from edgekit.errors import EdgekitError

# TAID's constants: of its moving average, and what keeps a loss of 0 from dividing.
_BETA, _LEAST = 0.99, 1e-15
# Losses with their names in LOSSES, and what each weighs.
Terms = Sequence[tuple[str, float, Loss]]
MakeBatch = Callable[[Sequence[int]], Batch]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What the losses are, and what they are told, at each share of a training's steps.

    weights: of entries of LOSSES. options: what losses are told. judge: what the early stop looks at, else the weighted sum as it
    is at the end. micro_batch: how many rows go through the models at once, None for all of a batch. per_sequence: of a decoder,
    every row counts alike, however many tokens it has. adaptive: TAID's alpha, with which the teacher's share also rises as the
    loss falls; 0 keeps to the options. written: of a decoder, what the student writes in the place of some rows at a share of the
    steps, as the batch of any of them; None where it writes nothing then. rewarded: whether that has a reward. ranks: which of a
    batch's rows are this process's.
    """

    weights: Mapping[str, float | Schedule]
    options: Callable[[float], LossOptions] = lambda _share: LossOptions()
    judge: Loss | None = None
    micro_batch: int | None = None
    per_sequence: bool = False
    adaptive: float = 0.0
    written: Callable[[Sequence[int], float], MakeBatch | None] = lambda _rows, _share: None
    rewarded: bool = False
    ranks: Ranks = field(default_factory=Ranks)


def make_lesson(student: Tap, teacher: Teacher | None, source: Source, teaching: Teaching) -> Lesson:
    """What the loop trains on.

    The score counts every held-out output alike, whatever batch it is in: of a decoder's cross-entropy it is the logarithm of the
    perplexity. Without a teacher the losses get the student's own signal in its place.
    """
    names = [*teaching.weights, *(["reward"] if teaching.rewarded else [])]
    beside = _Beside(student=student, teacher=teacher, per_sequence=teaching.per_sequence, names=names)
    pace = _Pace(teaching.options, teaching.adaptive)
    room = Room(teaching.micro_batch, _find_pairs(teaching))
    current = 0

    def begin(epoch: int) -> None:
        nonlocal current
        current = epoch

    def read(rows: Sequence[int]) -> Batch:
        return source.batch(rows) if source.varied is None else source.varied(rows, current)

    # Of a step that is done again in smaller parts nothing is written anew.
    write = lru_cache(maxsize=1)(teaching.written)

    def sample(count: int) -> Tensor:
        loss = beside.compare(read([longest] * count), _terms(teaching.weights, 0.0), pace.options(0.0))
        beside.tell()
        return loss

    def parts(rows: Sequence[int], share: float) -> Iterator[Tensor]:
        taught, options = _terms(teaching.weights, share), pace.options(share)
        make: MakeBatch = read
        # The next word of a student's own text is right or wrong by its teacher alone.
        asked = [one for one in taught if one[2].teacher]
        if asked and (written := write(tuple(rows), share)) is not None:
            taught, options, make = asked, replace(options, correct_teacher=None), written
        cut = _cut(teaching.ranks.own(rows), room.most)
        whole = None if cut == [rows] else make(rows)
        yield from (beside.compare(make(part), taught, options, whole) for part in cut)

    longest = max(source.train, key=source.lengths.__getitem__, default=0)
    mean = sum(source.counts[row] for row in source.held) / max(len(source.held), 1)

    def judge(rows: Sequence[int]) -> Tensor:
        judged = _terms(teaching.weights, 1.0) if teaching.judge is None else [("judged", 1.0, teaching.judge)]
        loss = beside.compare(source.batch(rows), judged, teaching.options(1.0))
        beside.tell()
        return loss * (sum(source.counts[row] for row in rows) / (mean * len(rows)))

    return Lesson(
        lengths=source.lengths,
        train=source.train,
        held=source.held,
        parts=parts,
        judge=judge,
        room=room,
        sample=sample,
        told=pace.told,
        memory=pace.memory,
        by_name=beside.tell,
        begin=begin,
    )


class _Pace:
    """What losses are told at each share of the steps, with TAID's adaptive update of the teacher's share t.

    After each step t rises by alpha sigmoid(m) (1 - t), where m is a moving average of how much of the loss before a step took
    away; it is never behind its schedule nor beyond the schedule's end. Shing et al. (arXiv:2501.16937), algorithm 1, with its
    beta. The loss is the weighted sum of all that there are.
    """

    def __init__(self, options: Callable[[float], LossOptions], adaptive: float) -> None:
        self._options, self._adaptive = options, adaptive
        self.memory: dict[str, float] = {}

    def options(self, share: float) -> LossOptions:
        """What losses are told after this share of the steps."""
        told = self._options(share)
        if not self._adaptive:
            return told
        return replace(told, taid=min(self._options(1.0).taid, max(told.taid, self.memory.get("taid", 0.0))))

    def told(self, loss: float, share: float) -> None:
        """Learn the loss of a step at this share."""
        if not self._adaptive:
            return
        before, now = self.memory.get("loss"), self.options(share).taid
        if before is not None:
            change = (before - loss) / (before + _LEAST)
            momentum = _BETA * self.memory.get("momentum", 0.0) + (1 - _BETA) * change
            # The sigmoid, which no number overflows so.
            now += self._adaptive * (1 - now) * (1 + math.tanh(momentum / 2)) / 2
            self.memory["momentum"] = momentum
        self.memory.update(loss=loss, taid=now)


def _terms(weights: Mapping[str, float | Schedule], share: float) -> Terms:
    """The losses that count at this share of the steps; where a schedule gives none any weight, all of them, at 0."""
    found = [(name, at(weight, share), losses.LOSSES[name]) for name, weight in weights.items()]
    return [(name, weight, loss) for name, weight, loss in found if weight > 0] or found


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """A student beside its teacher, or alone."""

    student: Tap
    teacher: Teacher | None
    per_sequence: bool
    names: Sequence[str]
    told: dict[str, Tensor] = field(default_factory=dict)
    """The weighted sum of each loss, by name, since it was last asked for."""

    def tell(self) -> dict[str, float]:
        """What each loss added, by name, since this was last asked."""
        found = {name: float(self.told.get(name, 0.0)) for name in self.names}
        self.told.clear()
        return found

    def compare(self, batch: Batch, terms: Terms, options: LossOptions, whole: Batch | None = None) -> Tensor:
        """The weighted sum of losses on a batch; of a part of a `whole` batch, its share in the batch's.

        The shares of all parts add up to the loss of the batch: every row, label or token counts in it as it does in the whole.
        """
        batch = batch.to(self.student.device)
        given = self.student(batch)
        wanted = given if self.teacher is None or self.teacher.recorded is not None else self.teacher.ask(batch)
        if self.teacher is not None and self.teacher.mix is not None and batch.scored is None:
            wanted = replace(wanted, output=self.teacher.mix(wanted.output, options.temperature))
        by_token = [term for term in terms if batch.scored and "output" in term[2].needs]
        others = [term for term in terms if term not in by_token]
        if whole is not None:
            others = [(name, weight * _share(loss, batch, whole), loss) for name, weight, loss in others]
        parts = []
        if by_token:
            parts.append(self._of_tokens((given, wanted, batch), by_token, options, whole or batch))
        if others:
            parts.append(self._sum(others, given, wanted, batch, options))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _of_tokens(
        self, compared: tuple[Signal, Signal, Batch], terms: Terms, options: LossOptions, whole: Batch
    ) -> Tensor:
        """The weighted sum of losses of scored tokens' logits, mean over the tokens of the whole batch, or over its rows."""
        given, wanted, batch = compared
        targets, (rows, positions) = _scored(batch)
        mine = given.output[rows, positions]
        shown = self._teacher_of(wanted, batch, options) if any(loss.teacher for _, _, loss in terms) else None
        owners = _owners(batch)
        share = (1 / torch.bincount(owners).to(mine.dtype))[owners] if self.per_sequence else None

        whole_owners = _owners(whole)
        texts = max(len(torch.unique(whole_owners)), 1)
        count = texts if self.per_sequence else max(len(whole_owners), 1)

        def compare(logits: Tensor, part: slice) -> Compared:
            def note(name: str, values: Tensor) -> None:
                self._note(name, (values if share is None else values * share[part]).sum() / count)

            wanted = logits if shown is None else shown(part)
            values, gradient = _sum_of_logits(terms, logits, wanted, targets[part], options, note)
            if batch.pull is not None:
                # Of an answer's tokens the sum, mean over answers: the gradient of the mean reward.
                weights = batch.pull.weights[part] * (count / texts)
                weights = weights if share is None else weights / share[part]
                pulled, more = pull_tokens(logits, targets[part], weights, batch.pull.temperature)
                note("reward", pulled)
                values, gradient = values + pulled, gradient.add_(more)
            return (values, gradient) if share is None else (values * share[part], gradient.mul_(share[part, None]))

        return mean_over_tokens(mine, self.student.head, compare, count)

    def _sum(self, terms: Terms, given: Signal, wanted: Signal, batch: Batch, options: LossOptions) -> Tensor:
        values = [(name, weight * loss.compare(given, wanted, batch, options)) for name, weight, loss in terms]
        for name, value in values:
            self._note(name, value)
        return torch.stack([value for _, value in values]).sum()

    def _note(self, name: str, value: Tensor) -> None:
        self.told[name] = self.told.get(name, 0.0) + value.detach()

    def _teacher_of(
        self, wanted: Signal, batch: Batch, options: LossOptions
    ) -> Callable[[slice], Tensor | Recorded] | None:
        """What the teacher says of a slice of the scored tokens: its logits, or what was recorded; None without a teacher."""
        teacher = self.teacher
        if teacher is None:
            return None
        if teacher.recorded is not None:
            return teacher.recorded(batch)[batch.targets != IGNORED].__getitem__
        _, (rows, positions) = _scored(batch)
        theirs, mix = wanted.output[rows, positions], teacher.mix
        if mix is None:
            return lambda part: teacher.logits(theirs[part])
        return lambda part: mix(teacher.logits(theirs[part]), options.temperature)


def _scored(batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The wanted ids of a decoder's batch that are learned, with their rows and positions."""
    assert batch.scored is not None
    known = batch.targets != IGNORED
    rows, positions = batch.scored
    return (
        (batch.targets, (rows, positions))
        if bool(known.all())
        else (batch.targets[known], (rows[known], positions[known]))
    )


def _cut(rows: Sequence[int], most: int | None) -> list[Sequence[int]]:
    """Rows in parts of at most so many; None: all in one."""
    size = most or max(len(rows), 1)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _find_pairs(teaching: Teaching) -> list[str]:
    """The losses that compare a batch's rows with each other; EdgekitError where each process has only some of the rows."""
    pairs = [name for name in teaching.weights if losses.LOSSES[name].pairs]
    if pairs and teaching.ranks.count > 1:
        raise EdgekitError(
            f"distill.losses.{pairs[0]}: compares all rows of a batch with each other, and each process has some; train in one"
        )
    return pairs


def _owners(batch: Batch) -> Tensor:
    """Which text of a decoder's batch each learned id is of."""
    assert batch.scored is not None
    texts = batch.scored[0] if batch.packed is None else batch.packed.texts
    return texts[batch.targets != IGNORED]


def _share(loss: Loss, part: Batch, whole: Batch) -> float:
    """Which share of what a loss is a mean of (real tokens, rows that have a label, rows) is in a part of a batch."""
    if "output" not in loss.needs:
        counts = [float(batch.mask.sum()) for batch in (part, whole)]
    elif not loss.teacher:
        counts = [float(batch.targets.sum()) for batch in (part, whole)]
    else:
        counts = [float(len(batch.rows)) for batch in (part, whole)]
    return counts[0] / max(counts[1], 1.0)


def _sum_of_logits(
    terms: Terms,
    given: Tensor,
    wanted: Tensor | Recorded,
    targets: Tensor,
    options: LossOptions,
    note: Callable[[str, Tensor], None],
) -> Compared:
    """The weighted sum of losses of logits, for each token, with its gradients. note: is told each loss's weighted values."""
    total = None
    for name, weight, loss in terms:
        if isinstance(wanted, Tensor) and loss.teacher and not loss.any_width and given.shape[-1] != wanted.shape[-1]:
            _refuse_ids_beyond(targets, min(given.shape[-1], wanted.shape[-1]))
        values, gradient = compare_logits(loss, given, wanted, targets, options)
        weighted = values * weight
        note(name, weighted)
        if total is None:
            total = (weighted, gradient if weight == 1 else gradient.mul_(weight))
        else:
            total = (total[0] + weighted, total[1].add_(gradient, alpha=weight))
    assert total is not None
    return total


def _refuse_ids_beyond(targets: Tensor, shared: int) -> None:
    """Logits that pad one of two vocabularies are left out; a token of the texts that has no logit in one is an error."""
    if len(targets) and int(targets.max()) >= shared:
        raise EdgekitError(
            f"distill.losses: the texts have the token {int(targets.max())}, but teacher and student share {shared} tokens only;"
            " give a student of the teacher's tokenizer, or compare by the loss uld"
        )
