"""What a training tells of its steps: one line of JSON each, and where asked for the same numbers in TensorBoard's files.

Both lie in the folder that is trained into and are no part of what is made: they hold times. A line has `step` (from 1; 0 is
before the first), `loss` and `losses` (its weighted parts by name), `norm` (of the gradient, before it is clipped), `rate` (the
learning rate), `tokens_per_s`, and after the last step of an epoch `score` (of the held-out rows, lower is better). A training
that ended for want of a finite number says so in `stopped`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Line = Mapping[str, Any]
FILE, BOARD = "training.jsonl", "tensorboard"
# How often TensorBoard sees what is new, seconds.
_FLUSH = 10


class Journal:
    """A training's lines. Those of steps that a snapshot does not know are taken out, so that none is there twice."""

    def __init__(self, folder: Path, step: int, *, board: bool = False) -> None:
        """step: the last one that counts, 0 for a training that begins. board: whether TensorBoard's files are written too."""
        path = folder / FILE
        kept = list(_lines_until(path, step)) if step else []
        partial = path.with_name(f".{FILE}.partial")
        partial.write_text("".join(_text(line) for line in kept), encoding="utf-8", newline="\n")
        partial.replace(path)
        self._file: IO[str] = path.open("a", encoding="utf-8", newline="\n")
        shutil.rmtree(folder / BOARD, ignore_errors=True)
        self._board = _open_board(folder / BOARD) if board else None
        for line in kept:
            self._draw(line)

    def tell(self, step: int, **told: object) -> None:
        """A line of a step; what is None is left out."""
        line = {"step": step, **{key: value for key, value in told.items() if value is not None}}
        self._file.write(_text(line))
        self._file.flush()
        self._draw(line)

    def sync(self) -> None:
        """Have the disk hold every line: a snapshot must not know of steps that the journal lost."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """After the last line."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _draw(self, line: Line) -> None:
        if self._board is None:
            return
        step, parts = line["step"], line.get("losses", {})
        numbers = {key: value for key, value in line.items() if key not in {"step", "losses", "stopped"}}
        for name, value in {**numbers, **{f"losses/{name}": value for name, value in parts.items()}}.items():
            self._board.add_scalar(name, value, step)


def _lines_until(path: Path, step: int) -> Iterator[Line]:
    """The whole lines of a journal up to a step; a killed run may have left half a line at the end."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            return
        if line["step"] > step:
            return
        yield line


def _text(line: Mapping[str, object]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _open_board(folder: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), flush_secs=_FLUSH)
