"""A training in several processes: one command starts them, shows what the first one tells, and ends them all together.

`spread` has a verb run in as many processes as its inputs ask for: children of this Python (`python -m edgekit.distill`), which
meet through a file and the loopback interface. Each ends when this process does, however it ends: its standard input then
ends too. Where torchrun started edgekit itself, its processes are the ranks: the first runs the command, the others wait for
what it spreads (`serve`).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

from edgekit.apart import last_reason, name_end
from edgekit.distill.machine import MEETING, RANK, WORLD, count_ranks
from edgekit.distill.options import TrainingOptions
from edgekit.errors import EdgekitError, Unfinished
from edgekit.progress import Progress, silent
from edgekit.runtimes.machine import count_threads

log = logging.getLogger("edgekit")

REQUEST, ANSWER = "request.json", "answer.json"
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}
# How long a rank may say why it ended, after another one did, seconds.
_LAST_WORDS = 3.0
Verb = TypeVar("Verb", bound=Callable[..., dict[str, object]])


class Asks(Protocol):
    """What the inputs of every training have."""

    @property
    def options(self) -> TrainingOptions:
        """How to train."""


class Child(Protocol):
    """What is used of a subprocess.Popen."""

    @property
    def stdout(self) -> IO[str] | None:
        """What it tells."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def kill(self) -> None:
        """SIGKILL."""

    def wait(self) -> int:
        """Its exit code."""


def spread(verb: Verb) -> Verb:
    """A verb of (inputs, out, progress) that runs here, or in as many processes as `inputs.options.processes` says.

    Raises the EdgekitError that it raises, and Unfinished where a process dies: the folder keeps what it can be continued from.
    """

    @wraps(verb)
    def spreading(inputs: Asks, out: Path, progress: Progress = silent) -> dict[str, object]:
        return _spread(verb, inputs, out, progress)

    return cast("Verb", spreading)


def _spread(verb: Callable[..., dict[str, object]], inputs: Asks, out: Path, progress: Progress) -> dict[str, object]:
    request = json.dumps({"verb": f"{verb.__module__}:{verb.__qualname__}", "inputs": pack(inputs), "out": pack(out)})
    if count_ranks() > 1:
        if MEETING not in os.environ:
            from edgekit.distill.ranks import meet

            meet().tell(request)
        return verb(inputs, out, progress)
    if inputs.options.processes == 1:
        return verb(inputs, out, progress)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        (Path(folder) / REQUEST).write_text(request, encoding="utf-8")
        return _run(Path(folder), inputs.options.processes, progress)


def pack(value: object) -> object:
    """A step's inputs as JSON: dataclasses, paths and tuples by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: pack(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"of": f"{type(value).__module__}:{type(value).__qualname__}", "is": fields}
    if isinstance(value, Path):
        return {"of": "path", "is": str(value.resolve())}
    if isinstance(value, Mapping):
        return {"of": "mapping", "is": {key: pack(inner) for key, inner in value.items()}}
    if isinstance(value, tuple):
        return {"of": "tuple", "is": [pack(inner) for inner in value]}
    if isinstance(value, list):
        return [pack(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r}: cannot be told to another process")


def unpack(value: Any) -> Any:
    """What `pack` was given."""
    if isinstance(value, list):
        return [unpack(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value["of"], value["is"]
    if kind == "path":
        return Path(inner)
    if kind == "tuple":
        return tuple(unpack(one) for one in inner)
    fields = {key: unpack(one) for key, one in inner.items()}
    return fields if kind == "mapping" else find(kind)(**fields)


def find(name: str) -> Any:
    """What "module:name" names."""
    module, _, inner = name.partition(":")
    return getattr(importlib.import_module(module), inner)


def start(folder: Path, index: int, environment: Mapping[str, str]) -> Child:
    """A rank that answers the request in a folder; it ends when its standard input does."""
    command = [sys.executable, "-m", "edgekit.distill", str(folder)]
    pipe = subprocess.PIPE
    with (folder / f"rank-{index}.log").open("wb") as said:
        return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=said, encoding="utf-8")


def _run(folder: Path, count: int, progress: Progress) -> dict[str, object]:
    """Start the ranks, show what the first one tells, and return its answer; whatever happens, none outlives this."""
    told: queue.Queue[str] = queue.Queue()
    ranks: list[Child] = []
    try:
        for index in range(count):
            ranks.append(start(folder, index, _environment(folder, index, count)))
            threading.Thread(target=_listen, args=(ranks[index].stdout, told), daemon=True).start()
        while (ended := [rank.poll() for rank in ranks]) != [0] * count:
            if any(ended):
                _raise(folder, ranks)
            try:
                _show(told.get(timeout=0.1), progress)
            except queue.Empty:
                continue
        while not told.empty():
            _show(told.get(), progress)
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.wait()
    answer: dict[str, object] = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
    return answer


def _environment(folder: Path, index: int, count: int) -> dict[str, str]:
    """Where a rank meets the others: a file of the folder, and the loopback interface alone."""
    environment = dict(os.environ)
    environment |= {RANK: str(index), "LOCAL_RANK": str(index), WORLD: str(count), "LOCAL_WORLD_SIZE": str(count)}
    environment |= {MEETING: (folder / "meeting").as_uri(), "OMP_NUM_THREADS": str(max(1, count_threads() // count))}
    if loopback := _LOOPBACK.get(sys.platform):
        environment |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    return environment


def _listen(lines: IO[str] | None, told: queue.Queue[str]) -> None:
    for line in lines or ():
        told.put(line)


def _show(line: str, progress: Progress) -> None:
    what = json.loads(line)
    if "warning" in what:
        log.warning("%s", what["warning"])
    else:
        progress(*what["progress"])


def _raise(folder: Path, ranks: Sequence[Child]) -> None:
    """Say why a training ended: by an error that it raised, else by the process that something else ended, else by any."""
    until = time.monotonic() + _LAST_WORDS
    while time.monotonic() < until and any(rank.poll() is None for rank in ranks):
        time.sleep(0.05)
    for path in sorted(folder.glob("error-*.json")):
        raise EdgekitError(json.loads(path.read_text(encoding="utf-8")))
    codes = {index: code for index, rank in enumerate(ranks) if (code := rank.poll())}
    index = min(codes, key=lambda one: (codes[one] > 0, one))
    why = f"{name_end(codes[index])}: {last_reason((folder / f'rank-{index}.log').read_bytes())}"
    raise Unfinished(
        f"training: process {index + 1} of {len(ranks)} ended with {why}; the others were stopped; run the command again: it goes"
        " on from the last snapshot"
    )
