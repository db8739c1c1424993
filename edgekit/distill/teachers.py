"""TEACHERS: where a teacher's signals come from. A further kind is one function and one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from edgekit.distill.batches import Source
from edgekit.distill.options import SIGNAL_BYTES
from edgekit.distill.recorded import Reader, RowReader
from edgekit.distill.signals import Batch, Packed, Recorded, Signal, check_finite
from edgekit.distill.tap import Tap
from edgekit.errors import EdgekitError
from edgekit.progress import Progress, silent

ANSWERING = "texts that the teacher has answered"
# Texts that are asked at a time where every answer is kept.
_AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What a student is compared with, without dropout and gradients, on the student's device."""

    ask: Callable[[Batch], Signal]
    """The signal for a batch."""
    logits: Callable[[Tensor], Tensor]
    """Of a decoder: the outputs of scored tokens [tokens, ...] -> logits [tokens, vocabulary]."""
    recorded: Callable[[Batch], Recorded] | None = None
    """Of a decoder whose answers were recorded: what it said of a batch's scored tokens; it is never asked."""
    mix: Callable[[Tensor, float], Tensor] | None = None
    """Of several teachers, whose logits are [..., teachers, width]: the logits of their mean at a temperature, [..., width]."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the step writes about it."""


@dataclass(frozen=True, kw_only=True)
class TeacherInputs:
    """What there is to teach with: the teacher's folder, and the source whose batches it will be asked."""

    folder: Path
    source: Source
    open: Callable[[], Tap]
    """The folder's checkpoint with taps for the signals that the losses need, loaded at the first call."""
    progress: Progress = silent
    channels: Tensor | None = None
    """Of its hidden states the channels that the student has; None for all."""
    recording: Path | None = None
    """A folder that `recorded.record` filled, where the student is to learn from that."""
    anew: bool = False
    """Whether it is asked other texts than the source's: changed ones (`Source.varied`), or what its student writes."""
    share: float = 1.0
    """How much of SIGNAL_BYTES its kept answers may take."""


def recorded(inputs: TeacherInputs) -> Teacher | None:
    """What was recorded of the checkpoint, which is not opened; None where nothing was."""
    if inputs.recording is None:
        return None
    source = inputs.source

    def never(_: object) -> NoReturn:
        raise RuntimeError("a recorded teacher is not asked")

    if not source.passages:
        return Teacher(ask=RowReader(inputs.recording, len(source.lengths)), logits=never)
    return Teacher(ask=never, logits=never, recorded=Reader(inputs.recording, source.counts))


def kept(inputs: TeacherInputs) -> Teacher | None:
    """The checkpoint asked once for every text, its answers in this machine's memory; None where they do not fit into it, or
    it is asked other texts.

    They fit where their float32 numbers take at most their share of SIGNAL_BYTES, and the texts do.
    """
    if inputs.anew or inputs.source.streams:
        return None
    tap, source = inputs.open(), inputs.source
    first = _answer(inputs, source.batch([0]))
    whole = first.output.ndim == 2  # one row per text; a decoder's has one per token
    tokens = sum(source.lengths)
    numbers = sum(tensor.shape[-1] for tensor in first.hidden) * tokens
    numbers += sum(tensor.shape[1] * tensor.shape[-1] for tensor in first.projections) * tokens
    numbers += first.output.shape[-1] * (len(source.lengths) if whole else tokens)
    if 4 * numbers > SIGNAL_BYTES * inputs.share:
        return None
    known: dict[int, Signal] = {}
    order = sorted(range(len(source.lengths)), key=lambda row: (-source.lengths[row], row))
    inputs.progress(0, len(order), ANSWERING)
    for start in range(0, len(order), _AT_A_TIME):
        rows = order[start : start + _AT_A_TIME]
        batch = source.batch(rows)
        signal = _answer(inputs, batch)
        for index, row in enumerate(rows):
            line, begin = (index, 0) if batch.packed is None else batch.packed.places[index]
            part = slice(begin, begin + source.lengths[row])
            known[row] = Signal(
                output=_keep(signal.output[line] if whole else signal.output[line, part]),
                hidden=tuple(_keep(tensor[line, part]) for tensor in signal.hidden),
                projections=tuple(_keep(tensor[line, :, part]) for tensor in signal.projections),
            )
        inputs.progress(len(known), len(order), ANSWERING)
    return Teacher(
        ask=lambda batch: _stack([known[row] for row in batch.rows], tap.device, batch.packed), logits=tap.logits
    )


def live(inputs: TeacherInputs) -> Teacher:
    """The checkpoint asked for every batch anew."""
    tap = inputs.open()
    as_it_was = inputs.source.varied is not None and not inputs.anew

    def ask(batch: Batch) -> Signal:
        return _answer(inputs, inputs.source.batch(batch.rows) if as_it_was else batch)

    return Teacher(ask=ask, logits=tap.logits)


TEACHERS: dict[str, Callable[[TeacherInputs], Teacher | None]] = {
    # In the order in which they are tried: the first that can teach does.
    "recorded": recorded,
    "kept": kept,
    "live": live,
}


def find_teacher(inputs: TeacherInputs) -> Teacher:
    """The teacher of the first kind that can teach."""
    for kind in TEACHERS.values():
        if teacher := kind(inputs):
            return teacher
    raise EdgekitError(f"{inputs.folder}: no kind of teacher can answer for it; add one to TEACHERS")


def _answer(inputs: TeacherInputs, batch: Batch) -> Signal:
    tap = inputs.open()
    with torch.no_grad():
        signal = tap(batch.to(tap.device))
    if inputs.channels is not None:
        channels = inputs.channels.to(tap.device)
        signal = replace(signal, hidden=tuple(states[..., channels] for states in signal.hidden))
    check_finite(signal.output[batch.mask.bool()] if signal.output.ndim > 2 else signal.output, inputs.folder)
    return signal


def _keep(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)


def _stack(signals: Sequence[Signal], device: str, packed: Packed | None = None) -> Signal:
    """One batch of single texts' signals on a device, zeros where a text is shorter than the longest, or a row has no text."""

    def pad(tensors: Sequence[Tensor]) -> Tensor:
        if packed is None:
            return pad_sequence(list(tensors), batch_first=True).to(device)
        whole = tensors[0].new_zeros(*packed.positions.shape, *tensors[0].shape[1:])
        for tensor, (row, first) in zip(tensors, packed.places, strict=True):
            whole[row, first : first + len(tensor)] = tensor
        return whole.to(device)

    hidden = [pad(tensors) for tensors in zip(*(signal.hidden for signal in signals), strict=True)]
    turned = zip(*([tensor.transpose(0, 1) for tensor in signal.projections] for signal in signals), strict=True)
    outputs = [signal.output for signal in signals]
    return Signal(
        output=torch.stack(outputs).to(device) if outputs[0].ndim == 1 else pad(outputs),
        hidden=tuple(hidden),
        projections=tuple(pad(tensors).transpose(1, 2) for tensors in turned),
    )
