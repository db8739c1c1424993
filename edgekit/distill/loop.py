"""The training loop: AdamW, warm-up and decay, length-bucketed batches, early stop, snapshots.

Everything that a step depends on is in the seed, the step's number and the snapshot: a run killed at any step and continued ends
in the same bytes as one that was not (on the CPU always; on an accelerator where torch has deterministic kernels).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.distill.journal import Journal
from edgekit.distill.machine import count_threads
from edgekit.distill.options import TrainingOptions
from edgekit.distill.snapshot import Snapshot, drop_snapshot, read_snapshot, write_snapshot
from edgekit.errors import EdgekitError
from edgekit.progress import Progress, silent

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("edgekit")

# Batches are cut from windows of this many batches, sorted by length: little padding, yet every epoch mixes anew.
_WINDOW = 16
# A kill costs at most about this much work.
SNAPSHOT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What to train on. Rows are a source's.

    parts: the loss of a batch in parts that add up to it, at a share of the steps; each goes backward before the next is made.
    judge: turns rows into a scalar; lower is better. fewer: lets half as many rows of a batch of so many through at once from now
    on, and says how many; None where they cannot be fewer. told: is given the loss of each batch and the share at which it was
    computed. memory: what the lesson knows of the steps so far, which a snapshot keeps. by_name: what each loss was in the
    parts since this was last asked. begin: is told of the epoch (from 0) that the next parts are of.
    """

    lengths: Sequence[int]
    train: Sequence[int]
    held: Sequence[int]
    parts: Callable[[list[int], float], Iterable[Tensor]]
    judge: Callable[[list[int]], Tensor]
    fewer: Callable[[int], int | None] = lambda _rows: None
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
    keeps_start: bool = False
    """Whether the weights before the first step are judged too, and stay where no epoch's are better."""


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
    """Train a module of this hidden size in place; leave it, in eval mode and on the CPU, with the weights of its best epoch."""
    from accelerate import Accelerator

    # Not mixed_precision, nor Accelerate's placement: it fixes both for the life of a process, losses must stay in float32 (see
    # Tap), and two trainings of one build may be on two devices.
    accelerator = Accelerator(device_placement=False, mixed_precision="no")
    peak = options.learning_rate or 2e-4 * 384 / width
    module.to(run.device)
    plain = torch.optim.AdamW(_groups(module, options.weight_decay), lr=peak, fused=True)
    module, optimizer = accelerator.prepare(module, plain)
    per_epoch = math.ceil(len(lesson.train) / options.batch)
    total = per_epoch * options.epochs
    last, patience = (total, options.patience) if run.epochs is None else (per_epoch * run.epochs, total)
    state = _begin(run, module, plain, lesson.memory)
    journal = Journal(run.folder, state.step, board=options.tensorboard)
    saved = begun = time.monotonic()
    run.progress(state.step, last, f"batches of {options.batch}")
    module.train()
    if run.keeps_start and not state.step and lesson.held:
        score = _judge(module, lesson, options.batch, run, (0, last), ", before the first step")
        state.judge_start(module, score)
        journal.tell(0, score=score)
    while state.step < last and not state.stopped(patience) and state.broken is None:
        epoch, done = divmod(state.step, per_epoch)
        for rows in epoch_batches(lesson, options.batch, run.seed, epoch)[done:]:
            rate, score = peak * ramp(state.step, total, options.warmup), None
            for group in plain.param_groups:
                group["lr"] = rate
            loss = _backward(accelerator, module, lesson, rows, state.step / total, run)
            losses = lesson.by_name() or None
            norm = float(accelerator.clip_grad_norm_(module.parameters(), options.clip))
            if not math.isfinite(loss + norm):
                # The weights are those of the step before.
                state.broken = _explain(loss, norm, state.step, per_epoch, peak)
                journal.tell(state.step + 1, stopped=state.broken)
                break
            optimizer.step()
            optimizer.zero_grad()
            lesson.told(loss, state.step / total)
            state.step += 1
            run.progress(state.step, last, f"loss {loss:.3f}")
            pace = round(sum(lesson.lengths[row] for row in rows) / max(time.monotonic() - begun, 1e-9), 1)
            if state.step % per_epoch == 0:
                score = _judge(module, lesson, options.batch, run, (state.step, last))
                state.judge(module, score)
            journal.tell(state.step, loss=loss, losses=losses, norm=norm, rate=rate, tokens_per_s=pace, score=score)
            if time.monotonic() - saved >= SNAPSHOT_SECONDS:
                journal.sync()
                write_snapshot(run.folder, _take_snapshot(state, module, plain, run, lesson.memory))
                saved = time.monotonic()
            begun = time.monotonic()
    journal.close()
    accelerator.free_memory()
    if state.best:
        _put(module, state.best)
    module.to("cpu").eval()
    return _outcome(state, lesson, options, peak)


def _backward(
    accelerator: Accelerator, module: nn.Module, lesson: Lesson, rows: list[int], share: float, run: Run
) -> float:
    """Add the gradients of a batch's parts; its loss.

    Where the device's memory is full, the batch is cut into parts half as large, the following ones too: the loss and the
    gradients stay what they are. Raises EdgekitError where parts cannot be smaller.
    """
    while True:
        loss = 0.0
        try:
            with run.rounded():
                for part in lesson.parts(rows, share):
                    accelerator.backward(part)
                    loss += float(part.detach())
        except torch.OutOfMemoryError as full:
            size = lesson.fewer(len(rows))
            if size is None:
                raise EdgekitError(
                    f"training: the memory of {run.device} is full, and no fewer rows can go through it at once; give a smaller"
                    ' batch, a shorter data.max_length, or device = "cpu"'
                ) from full
        else:
            return loss
        # Behind the handler: what it caught holds the tensors of the part.
        module.zero_grad()
        lesson.by_name()
        if run.device != "cpu":
            _torch_of(run.device).empty_cache()
        log.warning("training: the memory of %s is full; from now on %d rows go through it at once", run.device, size)


def _explain(loss: float, norm: float, step: int, per_epoch: int, peak: float) -> str:
    """What is told of a step without a finite loss or gradient; raises EdgekitError where no epoch was finished before it."""
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    remedy = f'use a lower learning_rate (it was {peak:.2g}), or precision = "fp32"'
    if step < per_epoch:
        raise EdgekitError(f"training: {what} in step {step + 1}, before one epoch was over; {remedy}")
    log.warning("training stopped: %s in step %d; what was best before is kept; %s", what, step + 1, remedy)
    return f"{what} in step {step + 1}"


def epoch_batches(lesson: Lesson, size: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's batches of rows: shuffled, texts of like length together, the same for the same seed and epoch, which begins."""
    lesson.begin(epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = [lesson.train[index] for index in torch.randperm(len(lesson.train), generator=generator).tolist()]
    batches = []
    for start in range(0, len(order), size * _WINDOW):
        window = sorted(order[start : start + size * _WINDOW], key=lambda row: lesson.lengths[row])
        batches += [window[first : first + size] for first in range(0, len(window), size)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def ramp(step: int, total: int, warmup: float) -> float:
    """The learning rate's share of its peak: a linear rise over `warmup` of the steps, then a linear fall to zero."""
    rise = warmup * total
    return min(1.0, (step + 1) / max(rise, 1.0), (total - step) / max(total - rise, 1.0))


@contextmanager
def reproducible(seed: int, device: str = "cpu") -> Iterator[None]:
    """Fixed seeds, deterministic kernels and a fixed number of threads (the physical cores, or OMP_NUM_THREADS).

    On an accelerator an operation without a deterministic kernel is warned of and runs; on the CPU it is an error.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    switch: Any = torch.utils.deterministic
    fill = switch.fill_uninitialized_memory
    random = None if device == "cpu" else get_device_random(device)
    if device == "cuda":
        # https://docs.nvidia.com/cuda/cublas/#results-reproducibility: read when cuBLAS is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(count_threads())
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # Filling fresh memory costs time and changes nothing: no kernel reads it before it writes it.
    switch.fill_uninitialized_memory = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=lenient)
            switch.fill_uninitialized_memory = fill
            if random is not None:
                set_device_random(device, random)


def get_device_random(device: str) -> Tensor:
    """The state of an accelerator's random generator, uint8."""
    state: Tensor = _torch_of(device).get_rng_state()
    return state


def set_device_random(device: str, state: Tensor) -> None:
    """Put an accelerator's random generator into a state that `get_device_random` gave."""
    _torch_of(device).set_rng_state(state)


def _torch_of(device: str) -> Any:
    """What torch offers for one kind of accelerator: torch.cuda, torch.mps."""
    return torch.get_device_module(device)


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
        self.start, self.best_epoch, self.best = score, -1, _copy(module)

    def judge(self, module: nn.Module, score: float | None) -> None:
        """Note an epoch's score; among equals the later epoch is the better."""
        if score is None:
            return
        self.scores.append(score)
        if score <= min(self.scores) and (self.start is None or score < self.start):
            self.best_epoch = len(self.scores) - 1
            self.best = _copy(module)

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


def _judge(
    module: nn.Module, lesson: Lesson, batch: int, run: Run, at: tuple[int, int], note: str = ""
) -> float | None:
    """The mean of `judge` over the held-out rows, in eval mode; None where nothing is held out. at: the step, and the last."""
    if not lesson.held:
        return None
    run.progress(*at, f"judging {len(lesson.held)} texts that are held out{note}")
    with run.rounded():
        return _score(module, lesson, batch)


def _score(module: nn.Module, lesson: Lesson, batch: int) -> float:
    order = sorted(lesson.held, key=lambda row: (lesson.lengths[row], row))
    module.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            total += float(lesson.judge(rows)) * len(rows)
    module.train()
    return total / len(order)


def _begin(run: Run, module: nn.Module, optimizer: torch.optim.Optimizer, memory: dict[str, float]) -> _State:
    """The state of the folder's snapshot, put into module, optimizer and memory, where it is this run's; else a fresh one."""
    if snapshot := read_snapshot(run.folder, run.identity):
        log.info("training continues at step %d", snapshot.state["step"])
        memory.update(snapshot.state["memory"])
        return _restore(snapshot, module, optimizer, run)
    drop_snapshot(run.folder)
    return _State()


def _take_snapshot(
    state: _State, module: nn.Module, optimizer: torch.optim.Optimizer, run: Run, memory: Mapping[str, float]
) -> Snapshot:
    """The run as it stands, on the CPU."""
    tensors = {f"weight/{key}": weight for key, weight in _weights(module).items()}
    tensors |= {f"best/{key}": weight for key, weight in state.best.items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        tensors |= {f"moment/{index}/{key}": moment for key, moment in optimizer.state[parameter].items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if run.device != "cpu":
        tensors["random/device"] = get_device_random(run.device)
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
    state.best = _part(snapshot.tensors, "best/")
    _put(module, _part(snapshot.tensors, "weight/"))
    for index, parameter in enumerate(_parameters(optimizer)):
        if moments := _part(snapshot.tensors, f"moment/{index}/"):
            optimizer.state[parameter] = {key: moment.to(run.device) for key, moment in moments.items()}
    torch.set_rng_state(snapshot.tensors["random/cpu"])
    if run.device != "cpu":
        set_device_random(run.device, snapshot.tensors["random/device"])
    return state


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """What a module's state holds, a tensor that has two names (a tied head) under its first one."""
    first: dict[int, str] = {}
    state = module.state_dict()
    for key, weight in state.items():
        first.setdefault(weight.data_ptr(), key)
    return {key: state[key].detach() for key in first.values()}


def _copy(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights as they are now, on the CPU."""
    return {key: weight.to("cpu", copy=True) for key, weight in _weights(module).items()}


def _put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what `_weights` gave into the module; a tied tensor gets its values through its first name."""
    state = module.state_dict()
    with torch.no_grad():
        for key, weight in weights.items():
            state[key].copy_(weight)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices, none for biases and norms."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [weight for weight in parameters if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in parameters if weight.ndim <= 1], "weight_decay": 0.0},
    ]
