"""The training loop: AdamW, warm-up and decay, length-bucketed batches, early stop, checkpoints.

Everything that a step depends on is in the seed, the step's number and the checkpoint: a run killed at any step and
continued ends in the same bytes as one that was not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.distill.machine import count_threads
from edgekit.distill.options import TrainingOptions
from edgekit.distill.snapshot import Checkpoint, drop_checkpoint, read_checkpoint, write_checkpoint
from edgekit.progress import Progress, silent

log = logging.getLogger("edgekit")

# Batches are cut from windows of this many batches, sorted by length: little padding, yet every epoch mixes anew.
_WINDOW = 16
# A kill costs at most about this much work.
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What to train on. Rows are numbers of texts; `loss` and `judge` (lower is better) turn rows into a scalar."""

    lengths: Sequence[int]
    train: Sequence[int]
    held: Sequence[int]
    loss: Callable[[list[int]], Tensor]
    judge: Callable[[list[int]], Tensor]


def train(
    module: nn.Module,
    lesson: Lesson,
    options: TrainingOptions,
    *,
    width: int,
    seed: int,
    folder: Path,
    run: str,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a module in place and leave it, in eval mode, with the weights of its best epoch.

    `width` is the hidden size; `run` is a fingerprint of everything that the run depends on: a checkpoint in `folder` that
    has it is continued, any other is dropped. Returns facts: steps, epochs, the held-out score of each epoch.
    """
    from accelerate import Accelerator

    # Not mixed_precision: Accelerate fixes it for the life of a process, and losses must stay in float32 (see Tap).
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    peak = options.learning_rate or 2e-4 * 384 / width
    plain = torch.optim.AdamW(_groups(module, options.weight_decay), lr=peak, fused=True)
    module, optimizer = accelerator.prepare(module, plain)
    per_epoch = math.ceil(len(lesson.train) / options.batch)
    total = per_epoch * options.epochs
    state = _begin(folder, run, module, plain)
    saved = time.monotonic()
    progress(state.step, total, f"batches of {options.batch}")
    module.train()
    while state.step < total and not state.stopped(options.patience):
        epoch, place = divmod(state.step, per_epoch)
        for rows in epoch_batches(lesson, options.batch, seed, epoch)[place:]:
            for group in plain.param_groups:
                group["lr"] = peak * ramp(state.step, total, options.warmup)
            loss = lesson.loss(rows)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(module.parameters(), options.clip)
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            progress(state.step, total, f"loss {float(loss.detach()):.3f}")
            if state.step % per_epoch == 0:
                if lesson.held:
                    progress(state.step, total, f"judging {len(lesson.held)} texts that are held out")
                state.judge(module, _score(module, lesson, options.batch))
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                write_checkpoint(folder, _snapshot(state, module, plain, run))
                saved = time.monotonic()
    accelerator.free_memory()
    if state.best:
        _put(module, state.best)
    module.eval()
    return _facts(state, lesson, options, peak)


def epoch_batches(lesson: Lesson, size: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's batches of rows: shuffled, texts of like length together, the same for the same seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = [lesson.train[place] for place in torch.randperm(len(lesson.train), generator=generator).tolist()]
    batches = []
    for start in range(0, len(order), size * _WINDOW):
        window = sorted(order[start : start + size * _WINDOW], key=lambda row: lesson.lengths[row])
        batches += [window[place : place + size] for place in range(0, len(window), size)]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def ramp(step: int, total: int, warmup: float) -> float:
    """The learning rate's share of its peak: a linear rise over `warmup` of the steps, then a linear fall to zero."""
    rise = warmup * total
    return min(1.0, (step + 1) / max(rise, 1.0), (total - step) / max(total - rise, 1.0))


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Fixed seeds, deterministic kernels and a fixed number of threads (the physical cores, or OMP_NUM_THREADS)."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    switch: Any = torch.utils.deterministic
    fill = switch.fill_uninitialized_memory
    torch.set_num_threads(count_threads())
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory costs time and changes nothing: no kernel reads it before it writes it.
    switch.fill_uninitialized_memory = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)
            switch.fill_uninitialized_memory = fill


class _State:
    """Where a run stands: the step, the held-out score of each epoch, and the best epoch's weights."""

    def __init__(self) -> None:
        self.step = 0
        self.scores: list[float] = []
        self.best_epoch = 0
        self.best: dict[str, Tensor] = {}

    def judge(self, module: nn.Module, score: float | None) -> None:
        """Note an epoch's score; among equals the later epoch is the better."""
        if score is None:
            return
        self.scores.append(score)
        if score <= min(self.scores):
            self.best_epoch = len(self.scores) - 1
            self.best = {key: one.clone() for key, one in _weights(module).items()}

    def stopped(self, patience: int) -> bool:
        return len(self.scores) - 1 - self.best_epoch >= patience


def _facts(state: _State, lesson: Lesson, options: TrainingOptions, peak: float) -> dict[str, Any]:
    return {
        "steps": state.step,
        "epochs": state.step // math.ceil(len(lesson.train) / options.batch),
        "best_epoch": state.best_epoch + 1 if state.scores else options.epochs,
        "scores": [round(score, 6) for score in state.scores],
        "learning_rate": peak,
        "threads": torch.get_num_threads(),
        "train_texts": len(lesson.train),
        "held_texts": len(lesson.held),
    }


def _score(module: nn.Module, lesson: Lesson, batch: int) -> float | None:
    """The mean of `judge` over the held-out rows, in eval mode; None where nothing is held out."""
    if not lesson.held:
        return None
    order = sorted(lesson.held, key=lambda row: (lesson.lengths[row], row))
    module.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            total += float(lesson.judge(rows)) * len(rows)
    module.train()
    return total / len(order)


def _begin(folder: Path, run: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
    """The state of the folder's checkpoint, put into module and optimizer, where it is this run's; else a fresh one."""
    if found := read_checkpoint(folder, run):
        log.info("training continues at step %d", found.state["step"])
        return _restore(found, module, optimizer)
    drop_checkpoint(folder)
    return _State()


def _snapshot(state: _State, module: nn.Module, optimizer: torch.optim.Optimizer, run: str) -> Checkpoint:
    tensors = {f"weight/{key}": one for key, one in _weights(module).items()}
    tensors |= {f"best/{key}": one for key, one in state.best.items()}
    for place, parameter in enumerate(_parameters(optimizer)):
        tensors |= {f"moment/{place}/{key}": one for key, one in optimizer.state[parameter].items()}
    tensors["random/cpu"] = torch.get_rng_state()
    return Checkpoint(
        state={"run": run, "step": state.step, "scores": state.scores, "best_epoch": state.best_epoch},
        tensors=tensors,
    )


def _restore(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
    state = _State()
    state.step = checkpoint.state["step"]
    state.scores = checkpoint.state["scores"]
    state.best_epoch = checkpoint.state["best_epoch"]
    state.best = _part(checkpoint.tensors, "best/")
    _put(module, _part(checkpoint.tensors, "weight/"))
    for place, parameter in enumerate(_parameters(optimizer)):
        if moments := _part(checkpoint.tensors, f"moment/{place}/"):
            optimizer.state[parameter] = moments
    torch.set_rng_state(checkpoint.tensors["random/cpu"])
    return state


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """What a module's state holds, a tensor that has two names (a tied head) under its first one."""
    first: dict[int, str] = {}
    state = module.state_dict()
    for key, one in state.items():
        first.setdefault(one.data_ptr(), key)
    return {key: state[key].detach() for key in first.values()}


def _put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what `_weights` gave into the module; a tied tensor gets its values through its first name."""
    state = module.state_dict()
    with torch.no_grad():
        for key, one in weights.items():
            state[key].copy_(one)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for biases and norms."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
