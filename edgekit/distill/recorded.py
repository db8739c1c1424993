"""A teacher's recorded answers: one row of numbers of each text, or of each scored token its likeliest tokens, and draws of the
others that are right on average.

Where an answer is one row, it is recorded whole: logits or an embedding, float32. A record of a token holds the EXACT largest
probabilities p at the recorded temperature, and the ids of DRAWN draws of all other tokens, each of which stands for a like share
of their mass `tail`. The mean of what the draws give is p, so that a loss that is linear in p, and its gradient, are right on
average; the largest alone, made to sum to 1, teach an overconfident student: Anshumann et al., "Sparse Logit Sampling"
(arXiv:2503.16870). Draws are systematic: one random number a token, DRAWN points at equal distances (Madow 1949), which varies
less than independent draws. `entropy` is exact: KL(p || q) = -H(p) - sum(p log q).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit.distill.signals import Recorded, Signal, check_finite
from edgekit.errors import EdgekitError
from edgekit.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.distill.batches import Source
    from edgekit.distill.signals import Batch
    from edgekit.distill.tap import Tap

EXACT, DRAWN = 16, 32
RECORD = np.dtype([("ids", "<u4", (EXACT + DRAWN,)), ("exact", "<f4", (EXACT,)), ("tail", "<f4"), ("entropy", "<f4")])
"""A token's record, 264 bytes: the ids of the largest, falling, and of the draws; the largest; the mass and the entropy."""
RECORDING = "recording the teacher's answers"
# Rows of one file: what a killed recording loses at most. And texts that are asked at a time.
_ROWS, _AT_A_TIME = 256, 16
# Probabilities [tokens, vocabulary] that are there at once.
_SLICE = 1 << 24


def summarize(logits: Tensor, temperature: float, random: Tensor) -> np.ndarray:
    """Records [tokens] of logits [tokens, vocabulary]; random: a number from 0 to below 1 for each token, float64 [tokens]."""
    count, width = logits.shape
    found = np.zeros(count, RECORD)
    for start in range(0, count, step := max(1, _SLICE // width)):
        part = slice(start, min(start + step, count))
        p = (logits[part].double() / temperature).softmax(dim=-1)
        found["entropy"][part] = torch.special.entr(p).sum(dim=-1).numpy()
        largest, ids = p.topk(min(EXACT, width), dim=-1)
        found["exact"][part, : largest.shape[1]] = largest.numpy()
        found["ids"][part, : largest.shape[1]] = ids.numpy()
        sums = p.scatter_(1, ids, 0.0).cumsum(dim=-1)
        tail = sums[:, -1:]
        points = (random[part, None] + torch.arange(DRAWN, dtype=torch.float64)) * (tail / DRAWN)
        # The first token whose sum is above the point: one of mass 0 is never that.
        drawn = torch.searchsorted(sums, points, right=True).clamp(max=width - 1)
        found["ids"][part, EXACT:] = drawn.numpy()
        found["tail"][part] = tail[:, 0].numpy()
    return found


def record(
    teacher: Path, tap: Tap, source: Source, out: Path, *, temperature: float, seed: int, progress: Progress = silent
) -> dict[str, object]:
    """Ask a decoder for every row of the source once, into files of `out`; those that are there already are kept.

    teacher: its folder, as errors call it; tap: of its checkpoint. Raises EdgekitError where it answers no numbers.

    Each row is drawn by its own number, so that neither a kill nor the batches change a byte.
    """

    def answer(rows: Sequence[int]) -> np.ndarray:
        return np.concatenate(_of_rows(teacher, tap, source, rows, temperature, seed))

    _fill(out, len(source.lengths), answer, progress)
    return {"temperature": temperature, "tokens": sum(source.counts), "bytes_per_token": RECORD.itemsize}


def record_rows(
    teacher: Path, tap: Tap, source: Source, out: Path, *, progress: Progress = silent
) -> dict[str, object]:
    """Ask a classifier or an encoder for its row of each text once, into files of `out`, as `record` does; raises as it does."""

    def answer(rows: Sequence[int]) -> np.ndarray:
        found = dict[int, np.ndarray]()
        order = sorted(rows, key=lambda row: (source.lengths[row], row))
        for start in range(0, len(order), _AT_A_TIME):
            asked = order[start : start + _AT_A_TIME]
            with torch.no_grad():
                output = tap(source.batch(asked).to(tap.device)).output.float().cpu()
            check_finite(output, teacher)
            found |= dict(zip(asked, output.numpy(), strict=True))
        return np.stack([found[row] for row in rows])

    _fill(out, len(source.lengths), answer, progress)
    return {"tokens": sum(source.lengths), "rows": len(source.lengths)}


def _fill(out: Path, count: int, answer: Callable[[Sequence[int]], np.ndarray], progress: Progress) -> None:
    """Write what is said of so many rows, _ROWS to a file in NumPy's own form; files that are there already are kept."""
    rows = range(count)
    progress(0, len(rows), RECORDING)
    for start in range(0, len(rows), _ROWS):
        path = _file(out, start // _ROWS)
        part = rows[start : start + _ROWS]
        if not path.is_file():
            partial = path.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.save(stream, answer(part), allow_pickle=False)
            partial.replace(path)
        progress(part[-1] + 1, len(rows), RECORDING)


def _of_rows(
    teacher: Path, tap: Tap, source: Source, rows: Sequence[int], temperature: float, seed: int
) -> list[np.ndarray]:
    """The records of each row."""
    found = dict[int, np.ndarray]()
    order = sorted(rows, key=lambda row: (source.lengths[row], row))
    for start in range(0, len(order), _AT_A_TIME):
        asked = order[start : start + _AT_A_TIME]
        batch = source.batch(asked).to(tap.device)
        assert batch.scored is not None
        owners, positions = batch.scored
        with torch.no_grad():
            states = tap(batch).output[owners, positions]
            for index, row in enumerate(asked):
                logits = tap.logits(states[owners == index]).cpu()
                check_finite(logits, teacher)
                generator = torch.Generator().manual_seed(seed * 1_000_003 + row)
                random = torch.rand(len(logits), generator=generator, dtype=torch.float64)
                found[row] = summarize(logits, temperature, random)
    return [found[row] for row in rows]


class Reader:
    """The records of a source's rows in a folder that `record` filled."""

    def __init__(self, folder: Path, counts: Sequence[int]) -> None:
        """counts: of each row its scored tokens. Raises EdgekitError for files that hold another number of them."""
        self._starts = np.concatenate([[0], np.cumsum(np.fromiter(counts, np.int64, len(counts)))])
        parts = _open(folder, int(self._starts[-1]), "tokens")
        self._firsts = np.cumsum([0, *map(len, parts)])
        self._parts = parts

    def __call__(self, batch: Batch) -> Recorded:
        """What the teacher said of a batch's scored tokens, in their order, on the batch's device."""
        rows = np.concatenate([self._row(row) for row in batch.rows])
        weights = np.concatenate([rows["exact"], np.repeat(rows["tail"][:, None] / DRAWN, DRAWN, axis=1)], axis=1)
        device = batch.tokens.device
        return Recorded(
            ids=torch.from_numpy(rows["ids"].astype(np.int64)).to(device),
            weights=torch.from_numpy(weights).to(device),
            entropy=torch.from_numpy(rows["entropy"].copy()).to(device),
        )

    def _row(self, row: int) -> np.ndarray:
        begin, end = self._starts[row], self._starts[row + 1]
        part = int(np.searchsorted(self._firsts, begin, side="right")) - 1
        if begin == end:
            return np.zeros(0, RECORD)
        # A row lies in one file.
        return np.asarray(self._parts[part][begin - self._firsts[part] : end - self._firsts[part]])


class RowReader:
    """The rows that `record_rows` recorded in a folder, of each text one."""

    def __init__(self, folder: Path, count: int) -> None:
        """count: of texts. Raises EdgekitError for files that hold another number of rows."""
        self._rows = np.concatenate(_open(folder, count, "rows"))

    def __call__(self, batch: Batch) -> Signal:
        """What the teacher said of a batch's texts, on the batch's device."""
        return Signal(output=torch.from_numpy(self._rows[list(batch.rows)]).to(batch.tokens.device))


def _open(folder: Path, count: int, of: str) -> list[np.ndarray]:
    """A recording's files, of so many records in all; no more of them is in memory than is read."""
    told = "it was cut, or recorded of other texts; delete it, and build again"
    parts = []
    for path in sorted(folder.glob("signals-*.npy")):
        try:
            parts.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError) as cut:
            raise EdgekitError(f"{path}: no whole recording: {told}") from cut
    if (found := sum(map(len, parts))) != count:
        raise EdgekitError(f"{folder}: holds {found} recorded {of}, but the texts have {count}: {told}")
    return parts


def _file(folder: Path, index: int) -> Path:
    return folder / f"signals-{index:05}.npy"
