"""The training loop: AdamW, warm-up and decay, length-bucketed batches, early stop, snapshots.

Everything that a step depends on is in the seed, the step's number and the snapshot: a run killed at any step and continued ends
in the same bytes as one that was not (on the CPU always; on an accelerator where torch has deterministic kernels).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.distill.determinism import get_random, set_random, torch_of
from edgekit.distill.footprint import measure
from edgekit.distill.journal import Journal
from edgekit.distill.options import TrainingOptions
from edgekit.distill.ranks import Ranks, count_beside
from edgekit.distill.room import Plan, Room, is_full
from edgekit.distill.snapshot import (
    Snapshot,
    copy_weights,
    drop_snapshot,
    part_of,
    put_weights,
    read_snapshot,
    weights_of,
    write_snapshot,
)
from edgekit.errors import EdgekitError
from edgekit.progress import Progress, silent
from edgekit.runtimes.control_groups import free_memory
from edgekit.stored import Lazy

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

log = logging.getLogger("edgekit")

# Batches are cut from windows of this many batches, sorted by length: little padding, yet every epoch mixes anew.
_WINDOW = 16
# A kill costs at most about this much work.
SNAPSHOT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What to train on. Rows are a source's.

    parts: the loss of a batch in parts that add up to it, at a share of the steps; each goes backward before the next is made.
    judge: turns rows into a scalar; lower is better. room: how many rows a part has at most. sample: the loss of so many of the
    longest rows in one part, None where memory is not asked. told: is given the loss of each batch and the share at which it was
    computed. memory: what the lesson knows of the steps so far, which a snapshot keeps. by_name: what each loss was in the
    parts since this was last asked. begin: is told of the epoch (from 0) that the next parts are of.
    """

    lengths: Sequence[int]
    train: Sequence[int]
    held: Sequence[int]
    parts: Callable[[list[int], float], Iterable[Tensor]]
    judge: Callable[[list[int]], Tensor]
    room: Room = field(default_factory=Room)
    sample: Callable[[int], Tensor] | None = None
    told: Callable[[float, float], None] = lambda _loss, _share: None
    memory: dict[str, float] = field(default_factory=dict)
    by_name: Callable[[], Mapping[str, float]] = dict
    begin: Callable[[int], None] = lambda _epoch: None


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a training runs, and what it is.

    folder: for its snapshots. identity: a fingerprint of everything that it depends on: a snapshot in the folder that has it is
    continued, any other is dropped.
    """

    folder: Path
    identity: str
    seed: int = 0
    device: str = "cpu"
    progress: Progress = silent
    epochs: int | None = None
    """After how many of the schedule's epochs it ends; without it, when the held-out rows are no longer judged better."""
    rounded: Callable[[], AbstractContextManager[None]] = nullcontext
    """In which weights each batch is computed, forward and backward (see `on_grid`); without it, the module's own."""
    ranks: Ranks = field(default_factory=Ranks)
    """The processes that share each batch; the first one judges, writes and tells."""
    keeps_start: bool = False
    """Whether the weights before the first step are judged too, and stay where no epoch's are better."""
    plan: Plan = field(default_factory=dict)
    """How many rows a run before this one let through at once."""
    keep: Callable[[Plan], None] = lambda _plan: None
    """Is told of a plan that is another one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training went. scores: of the held-out rows after each epoch, lower is better; epochs count from 1.

    stopped: why it ended before its time, where a step had no finite loss or gradient. start: the score before the first step,
    where it counted; best_epoch is 0 where no epoch's was lower.
    """

    steps: int
    epochs: int
    best_epoch: int
    scores: list[float]
    learning_rate: float
    threads: int
    train_texts: int
    held_texts: int
    start: float | None = None
    stopped: str | None = None


def train(module: nn.Module, lesson: Lesson, options: TrainingOptions, run: Run, *, width: int) -> Outcome:
    """Train a module of this hidden size in place; leave it, in eval mode and on the CPU, with the weights of its best epoch.

    Raises Led in another rank than the first, where nothing is left to do.
    """
    from accelerate import Accelerator

    # Not mixed_precision, nor Accelerate's placement: it fixes both for the life of a process, losses must stay in float32 (see
    # Tap), and two trainings of one build may be on two devices.
    accelerator = Accelerator(
        device_placement=False, mixed_precision="no", cpu=run.ranks.count > 1 and run.device == "cpu"
    )
    peak = options.learning_rate or 2e-4 * 384 / width
    module.to(run.device)
    plain = torch.optim.AdamW(_groups(module, options.weight_decay), lr=peak, fused=True)
    state = _begin(run, module, plain, lesson.memory)
    training = _Training(
        module=module,
        lesson=lesson,
        options=options,
        run=run,
        accelerator=accelerator,
        plain=plain,
        peak=peak,
        state=state,
        journal=Journal(run.folder, state.step, board=options.tensorboard and run.ranks.leads),
    )
    with lesson.room.telling(run.device):
        training.go()
    accelerator.free_memory()
    if not run.ranks.leads:
        raise Led
    if state.best:
        put_weights(module, state.best)
    module.to("cpu").eval()
    return _outcome(state, lesson, options, peak)


class Led(Exception):
    """The training of a rank that follows is over: the first one writes what was made."""


@dataclass(kw_only=True)
class _Training:
    """A training that has begun."""

    module: nn.Module
    lesson: Lesson
    options: TrainingOptions
    run: Run
    accelerator: Accelerator
    plain: torch.optim.AdamW
    peak: float
    state: _State
    journal: Journal
    saved: float = field(default_factory=time.monotonic)

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.lesson.train) / self.options.batch)

    @property
    def total(self) -> int:
        """Steps of the schedule."""
        return self.per_epoch * self.options.epochs

    @property
    def last(self) -> int:
        """The step after which it ends in any case."""
        return self.total if self.run.epochs is None else self.per_epoch * self.run.epochs

    def go(self) -> None:
        """All steps that are left."""
        lesson, run, state, options = self.lesson, self.run, self.state, self.options
        # Not the module: it would be wrapped for several processes, whose gradients are added up where a batch's parts are.
        optimizer = self.accelerator.prepare_optimizer(self.plain)
        patience = options.patience if run.epochs is None else self.total
        run.progress(state.step, self.last, f"batches of {options.batch}")
        self.module.train()
        self.make_room()
        if run.keeps_start and not state.step and lesson.held:
            score = self.judge(", before the first step")
            state.judge_start(self.module, score)
            self.journal.tell(0, score=score)
        while state.step < self.last and not state.stopped(patience) and state.broken is None:
            epoch, done = divmod(state.step, self.per_epoch)
            batches = epoch_batches(lesson, options.batch, run.seed, epoch)
            for index in range(done, len(batches)):
                if not self.step(optimizer, batches[index]):
                    break
        self.journal.close()

    def make_room(self) -> None:
        """Follow the plan of a run before this one; on a CPU let fewer rows through where memory would not take a batch."""
        room, run, ranks, step = self.lesson.room, self.run, self.run.ranks, self.state.step
        room.plan = json.loads(ranks.tell(json.dumps(dict(run.plan))))
        room.begin(step, ranks)
        free = free_memory() if run.device == "cpu" and self.lesson.sample is not None and not room.pairs else None
        # Measured by all before any of them takes more.
        found = min(int(one) for one in ranks.gather(torch.tensor([-1 if free is None else free])))
        rows = len(ranks.own(range(self.options.batch))[: room.most])
        if found < 0 or rows < 2 or self.lesson.sample is None:
            return
        with run.rounded():
            taken = measure(self.module, self.lesson.sample, rows, begun=step > 0, judged=bool(self.lesson.held))
        if taken.fit(room, rows, found / count_beside(ranks.count), tell=ranks.leads):
            self.settle()

    def settle(self) -> None:
        """Keep what the processes let through from this step on."""
        self.lesson.room.settle(self.state.step, self.run.ranks)
        if self.run.ranks.leads:
            self.run.keep(self.lesson.room.plan)

    def step(self, optimizer: AcceleratedOptimizer, rows: list[int]) -> bool:
        """Learn from a batch, and judge after an epoch's last; False where it has no finite loss or gradient."""
        lesson, run, state, options, begun = self.lesson, self.run, self.state, self.options, time.monotonic()
        share, rate, score = state.step / self.total, self.peak * ramp(state.step, self.total, options.warmup), None
        for group in self.plain.param_groups:
            group["lr"] = rate
        lesson.room.begin(state.step, run.ranks)
        loss = _backward(self.accelerator, self.module, lesson, rows, share, run)
        parts, saves = lesson.by_name(), run.ranks.leads and begun - self.saved >= SNAPSHOT_SECONDS
        # The first rank's clock decides for all.
        told = [loss, float(saves), float(lesson.room.changed), *parts.values()]
        loss, saved, changed, *values = run.ranks.add(told)
        if changed:
            self.settle()
        run.ranks.add_gradients(self.module)
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), options.clip))
        if not math.isfinite(loss + norm):
            # The weights are those of the step before.
            state.broken = _explain(loss, norm, state.step, self.per_epoch, self.peak)
            self.journal.tell(state.step + 1, stopped=state.broken)
            return False
        optimizer.step()
        optimizer.zero_grad()
        lesson.told(loss, share)
        state.step += 1
        run.progress(state.step, self.last, f"loss {loss:.3f}")
        pace = round(sum(lesson.lengths[row] for row in rows) / max(time.monotonic() - begun, 1e-9), 1)
        if state.step % self.per_epoch == 0:
            score = self.judge()
            state.judge(self.module, score)
        losses = dict(zip(parts, values, strict=True)) or None
        self.journal.tell(state.step, loss=loss, losses=losses, norm=norm, rate=rate, tokens_per_s=pace, score=score)
        if saved:
            self.save()
        return True

    def judge(self, note: str = "") -> float | None:
        """The mean of the lesson's `judge` over the held-out rows, in eval mode; None where nothing is held out."""
        held = len(self.lesson.held)
        if not held:
            return None
        self.run.progress(self.state.step, self.last, f"judging {held} texts that are held out{note}")
        with self.run.rounded():
            return _score(self.module, self.lesson, self.options.batch, self.run.ranks)

    def save(self) -> None:
        """Write a snapshot: in it lies what each rank has of its own."""
        random = _gather_random(self.run)
        if self.run.ranks.leads:
            self.journal.sync()
            taken = _take_snapshot(self.state, self.module, self.plain, self.run, self.lesson.memory)
            write_snapshot(self.run.folder, replace(taken, tensors={**taken.tensors, **random}))
        self.saved = time.monotonic()


def _backward(
    accelerator: Accelerator, module: nn.Module, lesson: Lesson, rows: list[int], share: float, run: Run
) -> float:
    """Add the gradients of a batch's parts; its loss.

    Where the device's memory is full, the batch is cut into parts half as large, the following ones too, and gone through again
    with the same random numbers. Raises EdgekitError where parts cannot be smaller.
    """
    random = get_random(run.device)
    while True:
        loss = 0.0
        try:
            with run.rounded():
                for part in lesson.parts(rows, share):
                    accelerator.backward(part)
                    loss += float(part.detach())
        except (RuntimeError, MemoryError) as failed:
            if not is_full(failed):
                raise
        else:
            return loss
        # Behind the handler: what it caught holds the tensors of the part.
        size = lesson.room.halve(len(run.ranks.own(rows)), run.device)
        module.zero_grad()
        lesson.by_name()
        set_random(run.device, random)
        if run.device != "cpu":
            torch_of(run.device).empty_cache()
        log.warning("training: the memory of %s is full; from now on %d rows go through it at once", run.device, size)


def _explain(loss: float, norm: float, step: int, per_epoch: int, peak: float) -> str:
    """What is told of a step without a finite loss or gradient; raises EdgekitError where no epoch was finished before it."""
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    remedy = f'use a lower learning_rate (it was {peak:.2g}), or precision = "fp32"'
    if step < per_epoch:
        raise EdgekitError(f"training: {what} in step {step + 1}, before one epoch was over; {remedy}")
    log.warning("training stopped: %s in step %d; what was best before is kept; %s", what, step + 1, remedy)
    return f"{what} in step {step + 1}"


def epoch_batches(lesson: Lesson, size: int, seed: int, epoch: int) -> Sequence[list[int]]:
    """An epoch's batches of rows: shuffled, texts of like length together, the same for the same seed and epoch, which begins.

    Of each row 8 bytes are held, its place in the order; a window is sorted when one of its batches is asked for.
    """
    lesson.begin(epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lesson.train), generator=generator)
    turns = torch.randperm(math.ceil(len(order) / size), generator=generator)

    def batch(turn: int) -> list[int]:
        window, part = divmod(int(turns[turn]), _WINDOW)
        places = order[window * size * _WINDOW : (window + 1) * size * _WINDOW].tolist()
        rows = sorted((lesson.train[place] for place in places), key=lambda row: lesson.lengths[row])
        return rows[part * size : (part + 1) * size]

    return Lazy(len(turns), batch)


def ramp(step: int, total: int, warmup: float) -> float:
    """The learning rate's share of its peak: a linear rise over `warmup` of the steps, then a linear fall to zero."""
    rise = warmup * total
    return min(1.0, (step + 1) / max(rise, 1.0), (total - step) / max(total - rise, 1.0))


class _State:
    """Where a run stands: the step, the held-out score of each epoch, and the best epoch's weights."""

    def __init__(self) -> None:
        self.step = 0
        self.scores: list[float] = []
        self.best_epoch = 0
        self.best: dict[str, Tensor] = {}
        self.start: float | None = None
        self.broken: str | None = None

    def judge_start(self, module: nn.Module, score: float | None) -> None:
        """Note the score before the first step, which an epoch's must be below."""
        self.start, self.best_epoch, self.best = score, -1, copy_weights(module)

    def judge(self, module: nn.Module, score: float | None) -> None:
        """Note an epoch's score; among equals the later epoch is the better."""
        if score is None:
            return
        self.scores.append(score)
        if score <= min(self.scores) and (self.start is None or score < self.start):
            self.best_epoch = len(self.scores) - 1
            self.best = copy_weights(module)

    def stopped(self, patience: int) -> bool:
        return len(self.scores) - 1 - self.best_epoch >= patience


def _outcome(state: _State, lesson: Lesson, options: TrainingOptions, peak: float) -> Outcome:
    return Outcome(
        steps=state.step,
        epochs=state.step // math.ceil(len(lesson.train) / options.batch),
        best_epoch=state.best_epoch + 1 if state.scores else options.epochs,
        scores=[round(score, 6) for score in state.scores],
        learning_rate=peak,
        threads=torch.get_num_threads(),
        train_texts=len(lesson.train),
        held_texts=len(lesson.held),
        start=None if state.start is None else round(state.start, 6),
        stopped=state.broken,
    )


def _score(module: nn.Module, lesson: Lesson, batch: int, ranks: Ranks) -> float:
    order = sorted(lesson.held, key=lambda row: (lesson.lengths[row], row))
    size = min(batch, lesson.room.most or batch) if lesson.room.plan else batch
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    scores = [0.0] * len(batches)
    module.eval()
    with torch.no_grad():
        for index in ranks.own(range(len(batches))):
            scores[index] = float(lesson.judge(batches[index])) * len(batches[index])
    module.train()
    # In one order, whoever judged which: as many ranks as there may be come to the same bits.
    return sum(ranks.add(scores)) / len(order)


def _begin(run: Run, module: nn.Module, optimizer: torch.optim.Optimizer, memory: dict[str, float]) -> _State:
    """The state of the folder's snapshot, put into module, optimizer and memory, where it is this run's; else a fresh one."""
    snapshot = read_snapshot(run.folder, run.identity) if run.ranks.leads else None
    if snapshot := _share(snapshot, run.ranks):
        log.info("training continues at step %d", snapshot.state["step"])
        memory.update(snapshot.state["memory"])
        return _restore(snapshot, module, optimizer, run)
    drop_snapshot(run.folder)
    run.ranks.copy([*weights_of(module).values()])
    return _State()


def _share(snapshot: Snapshot | None, ranks: Ranks) -> Snapshot | None:
    """The first rank's snapshot, in all of them; the best weights so far stay where they are written."""
    if ranks.count == 1:
        return snapshot
    needed = {} if snapshot is None else {key: one for key, one in snapshot.tensors.items() if key[:5] != "best/"}
    kinds = {key: [str(one.dtype).removeprefix("torch."), list(one.shape)] for key, one in needed.items()}
    told = ranks.tell("" if snapshot is None else json.dumps({"state": snapshot.state, "kinds": kinds}))
    if not told:
        return None
    if snapshot is None:
        read = json.loads(told)
        empty = {key: torch.empty(shape, dtype=getattr(torch, kind)) for key, (kind, shape) in read["kinds"].items()}
        snapshot, needed = Snapshot(state=read["state"], tensors=empty), empty
    ranks.copy([*needed.values()])
    return snapshot


def _gather_random(run: Run) -> dict[str, Tensor]:
    """Of each rank the states of its random generators."""
    every = {name: run.ranks.gather(state) for name, state in get_random(run.device).items()}
    return {f"random/{index}/{name}": state for name, states in every.items() for index, state in enumerate(states)}


def _take_snapshot(
    state: _State, module: nn.Module, optimizer: torch.optim.Optimizer, run: Run, memory: Mapping[str, float]
) -> Snapshot:
    """The run as it stands but for its random generators, on the CPU."""
    tensors = {f"weight/{key}": weight for key, weight in weights_of(module).items()}
    tensors |= {f"best/{key}": weight for key, weight in state.best.items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        tensors |= {f"moment/{index}/{key}": moment for key, moment in optimizer.state[parameter].items()}
    return Snapshot(
        state={
            "run": run.identity,
            "step": state.step,
            "scores": state.scores,
            "best_epoch": state.best_epoch,
            "start": state.start,
            "memory": dict(memory),
        },
        tensors={key: tensor.to("cpu") for key, tensor in tensors.items()},
    )


def _restore(snapshot: Snapshot, module: nn.Module, optimizer: torch.optim.Optimizer, run: Run) -> _State:
    state = _State()
    state.step = snapshot.state["step"]
    state.scores = snapshot.state["scores"]
    state.best_epoch = snapshot.state["best_epoch"]
    state.start = snapshot.state["start"]
    state.best = part_of(snapshot.tensors, "best/")
    put_weights(module, part_of(snapshot.tensors, "weight/"))
    for index, parameter in enumerate(_parameters(optimizer)):
        if moments := part_of(snapshot.tensors, f"moment/{index}/"):
            optimizer.state[parameter] = {key: moment.to(run.device) for key, moment in moments.items()}
    set_random(run.device, part_of(snapshot.tensors, f"random/{run.ranks.index}/"))
    return state


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices, none for biases and norms."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [weight for weight in parameters if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in parameters if weight.ndim <= 1], "weight_decay": 0.0},
    ]
