"""Room: how many of a batch's rows go through the models at once, where memory does not take all of them.

A batch is cut into parts whose losses and gradients add up to its own. Into how many decides the last bits of the sums, so what
was chosen is kept with the step from which it holds: in the folder that is trained into, so that a killed run goes on as it would
have, and in the step's facts, so that a later run does the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from edgekit.distill.ranks import Ranks
from edgekit.errors import EdgekitError
from edgekit.workspace import write_atomically

# Of a training: from which step on (counted from 0) how many rows each process lets through at once; 0: all that it has.
Plan = Mapping[str, Sequence[int]]
# The key of a step's facts that holds the plan of each of its trainings, by name.
ROWS_AT_ONCE = "rows_at_once"
_FILE, _WHOLE = "rows-at-once.json", "training"
# How torch's allocators (of the CPU on Linux, elsewhere, Apple's), the C++ library and oneDNN say it.
_FULL = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "could not create a primitive")


class Room:
    """How many rows this process lets through at once: `most`, None for all that it has.

    pairs: names of the losses that compare all rows of a batch with each other; with any, a batch stays whole. changed: whether
    `most` is less than at the last `settle`.
    """

    def __init__(self, most: int | None = None, pairs: Sequence[str] = ()) -> None:
        self.most, self.pairs, self.changed = most, pairs, False
        self.plan: dict[str, Sequence[int]] = {}

    def begin(self, step: int, ranks: Ranks) -> None:
        """Let through what the plan says of a step; a plan of another number of processes counts by its smallest."""
        since = [int(begin) for begin in self.plan if int(begin) <= step]
        if since:
            rows = self.plan[str(max(since))]
            own = rows[ranks.index] if len(rows) == ranks.count else min((one for one in rows if one), default=0)
            self.most = own or None

    def halve(self, rows: int, device: str) -> int:
        """Let half as many of this process's rows through from now on; how many. EdgekitError where they cannot be fewer."""
        size = min(self.most or rows, rows)
        if self.pairs or size < 2:
            raise self.full(device)
        self.most, self.changed = size // 2, True
        return self.most

    def settle(self, step: int, ranks: Ranks) -> None:
        """Note what all processes let through from a step on, whatever was to be from a later one on."""
        self.plan = {begin: rows for begin, rows in self.plan.items() if int(begin) < step}
        self.plan[str(step)] = [int(one) for one in ranks.gather(torch.tensor([self.most or 0]))]
        self.changed = False

    @contextmanager
    def telling(self, device: str) -> Iterator[None]:
        """Say of a full memory within what `full` says, wherever it was."""
        try:
            yield
        except (RuntimeError, MemoryError) as failed:
            if is_full(failed):
                raise self.full(device) from failed
            raise

    def full(self, device: str) -> EdgekitError:
        """What is told where no part of a batch is small enough."""
        why = "no fewer rows can go through it at once"
        if self.pairs:
            why = f"the loss {self.pairs[0]} compares all rows of a batch with each other, so that none can be cut"
        elsewhere = "" if device == "cpu" else ', or device = "cpu"'
        return EdgekitError(
            f"training: the memory of {device} is full, and {why}; give a smaller batch, a shorter data.max_length, a smaller"
            f" model{elsewhere}"
        )


def is_full(failed: BaseException) -> bool:
    """Whether an error says that memory is full."""
    if isinstance(failed, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(failed, RuntimeError) and any(words in str(failed) for words in _FULL)


class Chosen:
    """The plans of a step's trainings, by name; while the step is made they lie in a file of its folder.

    folder: None where nothing is kept. before: those that an earlier run of the same step found.
    """

    def __init__(self, folder: Path | None = None, before: Mapping[str, Plan] | None = None) -> None:
        self._folder = folder
        path = None if folder is None else folder / _FILE
        known = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else before
        self.plans: dict[str, Plan] = dict(known or {})

    def name(self, out: Path) -> str:
        """Of a training into a folder."""
        inside = "." if self._folder is None else out.relative_to(self._folder).as_posix()
        return _WHOLE if inside == "." else inside

    def is_last(self, out: Path) -> bool:
        """Whether the training into a folder is the one that the step is for: what it tries goes before that."""
        return self.name(out) == _WHOLE

    def keep(self, out: Path, plan: Plan) -> None:
        """Have the disk hold the plan of the training into a folder."""
        self.plans[self.name(out)] = dict(plan)
        if self._folder is not None:
            write_atomically(self._folder / _FILE, json.dumps(self.plans, sort_keys=True))

    def settle(self) -> dict[str, object]:
        """What the step's facts say, when its last training is over; the file goes."""
        if self._folder is not None:
            (self._folder / _FILE).unlink(missing_ok=True)
        return {ROWS_AT_ONCE: self.plans} if self.plans else {}
