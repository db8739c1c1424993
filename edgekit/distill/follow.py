"""What a rank does that was not asked by a command: it answers what the first rank spreads, into a folder that nobody keeps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.distill.loop import Led
from edgekit.distill.processes import find, unpack
from edgekit.distill.ranks import Ranks, meet
from edgekit.progress import Progress, silent


def answer(request: Mapping[str, Any], ranks: Ranks, own: Path, progress: Progress) -> dict[str, object] | None:
    """What a request's verb returns; None of another rank than the first, which is done when the training is, and fills `own`."""
    verb, inputs = find(request["verb"]), unpack(request["inputs"])
    if ranks.leads:
        facts: dict[str, object] = verb(inputs, unpack(request["out"]), progress)
        return facts
    try:
        verb(inputs, own, silent)
    except Led:
        return None
    raise RuntimeError("a training ended elsewhere than in its loop")


def serve() -> int:
    """Be a rank of torchrun's: answer each request of the first one, until it has none; the exit code."""
    ranks = meet()
    while request := ranks.tell(""):
        with tempfile.TemporaryDirectory(prefix="edgekit-") as own:
            answer(json.loads(request), ranks, Path(own), silent)
    return 0
