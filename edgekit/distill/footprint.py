"""What a step of a training takes of the memory, told before it is begun: on a CPU a process that takes too much is killed."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgekit.distill.room import Room

log = logging.getLogger("edgekit")

# A process grows by up to so much more than its tensors are: what backward passes add, and what the allocator cannot give back
# (`benchmarks/step_memory.py` measures both).
MARGIN = 1.4


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The bytes that training adds to a process: `fixed`, and for each row that goes through at once."""

    fixed: float
    row: float

    def of(self, rows: int) -> float:
        """Of so many rows at once."""
        return MARGIN * (self.fixed + self.row * rows)

    def fit(self, room: Room, rows: int, free: float, *, tell: bool) -> bool:
        """Let fewer than these rows through, half as many until they fit into so many bytes; whether that changed anything.

        tell: whether it is said. One row goes through even where it does not fit.
        """
        chosen = rows
        while chosen > 1 and self.of(chosen) > free:
            chosen //= 2
        if tell and self.of(rows) > free:
            log.warning(
                "training: %d rows at once take about %.3g GB of memory, and %.3g GB are free; %s",
                rows,
                self.of(rows) / 1e9,
                free / 1e9,
                f"{chosen} go through at once (about {self.of(chosen) / 1e9:.3g} GB), with the same loss"
                if self.of(chosen) <= free
                else f"{chosen} may still be too many: free some, or give a shorter data.max_length or a smaller model",
            )
        if chosen == rows:
            return False
        room.most = chosen
        return True


def measure(module: nn.Module, sample: Callable[[int], Tensor], rows: int, *, begun: bool, judged: bool) -> Footprint:
    """The footprint of a training on the CPU.

    sample: the loss of so many of its longest rows, ready to go backward; never of more than `rows` (two or more) that are to go
    through at once. begun: whether AdamW's moments, and the best epoch's weights where one is `judged`, are there already. What
    rows take is what twice as many hold more, at the most during the forward pass: of two and four where there are so many, for
    slices of a decoder's logits are not full before. torch's random numbers stay as they are.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    trained, whole = (sum(one.nbytes for one in some) for some in (weights, module.parameters()))
    few, state = 2 if rows >= 4 else 1, torch.get_rng_state()
    try:
        less, more = _held(sample, few), _held(sample, 2 * few)
    finally:
        torch.set_rng_state(state)
    row = max(more - less, 0) / few
    # A gradient and two moments of each weight.
    kept = trained if begun else 3 * trained + (whole if judged else 0)
    return Footprint(fixed=kept + max(less - few * row, 0), row=row)


def _held(sample: Callable[[int], Tensor], rows: int) -> int:
    live = _Live()
    with live:
        sample(rows)
    return live.peak


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made and still there: `peak` at the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak, self._now = 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run an operation; what it was given was there before, unless it was made under this mode."""
        named = kwargs or {}
        for given in tree_leaves((args, named)):
            self._note(given, counts=False)
        made = func(*args, **named)
        for one in tree_leaves(made):
            self._note(one, counts=True)
        return made

    def _note(self, value: object, *, counts: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counts else 0
        self._now += self._sizes[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)
