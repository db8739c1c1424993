"""`python -m edgekit.distill FOLDER`: one rank of a training, which `spread` starts; it answers the request in the folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import IO

from edgekit.distill.follow import answer
from edgekit.distill.processes import ANSWER, REQUEST
from edgekit.distill.ranks import meet
from edgekit.errors import EdgekitError


class _Told(logging.Handler):
    """Warnings as lines for who started this rank."""

    def __init__(self, told: IO[str]) -> None:
        super().__init__(logging.WARNING)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one of them."""
        self._told.write(json.dumps({"warning": self.format(record)}) + "\n")


def _end_with(starter: IO[bytes], folder: Path) -> None:
    """Wait until who started this rank is gone, then end too, at whatever it is, and leave nothing."""
    starter.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main(folder: Path) -> int:
    """Answer; the exit code."""
    # A Ctrl-C reaches all processes of a terminal: who started them ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.fdopen(os.dup(0), "rb"), folder), daemon=True).start()
    # Whatever a library prints is no line of ours.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        ranks = meet()
        if ranks.leads:
            logging.getLogger("edgekit").addHandler(_Told(told))
        own = folder / f"rank-{ranks.index}"
        own.mkdir()

        def progress(done: int, total: int, note: str) -> None:
            told.write(json.dumps({"progress": [done, total, note]}) + "\n")

        facts = answer(request, ranks, own, progress)
    except EdgekitError as bad:
        error = folder / f".error-{os.environ['RANK']}"
        error.write_text(json.dumps(bad.message), encoding="utf-8")
        error.replace(folder / f"error-{os.environ['RANK']}.json")
        return 1
    if facts is not None:
        (folder / ANSWER).write_text(json.dumps(facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    # The thread that waits for standard input holds its lock.
    os._exit(code)
