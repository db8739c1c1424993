"""Two artifacts take turns on one device, each in a process of its own: times in pairs, of which a ratio can be known.

`python -m edgekit.runtimes.turns REQUEST.json` starts a process for each of the request's two sides, {runtime, file, options},
and has them called in turns, in an order that is drawn for each pair (half of the pairs begin with each side). The request:
{sides, prompt, ids, tokens, first, pairs, seed}. prompt: what is read by an artifact that answers with rows, lists of whole
numbers by the names of its inputs; ids: what is read by a decoder (`tokens`), of which a call is one new token behind the ids or,
with `first`, the first one behind them, prompt and all.

A turn is a few calls that count for nothing, since the other side's weights are in the caches, and then a few that are timed: its
time is that of the fastest, which no other program has interrupted. Between two turns nothing runs, so that threads that wait for
work by spinning have given up.

The lines: device, side a, side b, turns, done; each has its number, `seq`, from 0. turns has `ms`, a pair of times for each pair,
the first side's first, and what each side saw of its `neighbours` meanwhile (the other side is one of them, so that nobody says
what others did). done has the sha256, as computed here, of both sides' files and of the request.

Both sides in one process would share its allocator; each alone, one after the other, would put a slow phase of the machine on one
of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from edgekit.runtimes import RUNTIMES, machine, neighbours

if TYPE_CHECKING:
    from edgekit.runtimes import Runtime
    from edgekit.runtimes.request import Settings

    Ask = Callable[[int, str], str]

PROTOCOL = 1
NAMES = ("side a", "side b")
# What warms a side before its first turn; what of a turn counts for nothing, and what is timed; the rest between two turns.
_WARM_S, _AGAIN_S, _TIMED_S, _REST_S = 1.0, 0.001, 0.015, 0.003
_WARM_CALLS, _TIMED_CALLS = 10, 20
# What a side's process is told: take a turn; say what the machine did, it was the last one.
_TURN, _END = "turn\n", "end\n"
# New tokens behind the ids, before they are read again: so both sides are always equally deep.
_DEEP = 64


class Side(TypedDict):
    """One of the two artifacts."""

    runtime: str
    file: str
    options: Settings


class Request(TypedDict):
    """What is asked (see the module)."""

    sides: list[Side]
    prompt: Mapping[str, list[int]]
    ids: list[int]
    tokens: bool
    first: bool
    pairs: int
    seed: int


def main(path: Path, side: str | None = None) -> None:
    """Answer a request or, with a side's number, be that side's process."""
    request: Request = json.loads(path.read_text(encoding="utf-8"))
    if side is not None:
        _be(request, request["sides"][int(side)], path.parent)
        return
    number = itertools.count()

    def say(event: str, **facts: object) -> None:
        sys.stdout.write(json.dumps({"event": event, "seq": next(number), **facts}) + "\n")
        sys.stdout.flush()

    say("device", **machine.describe())
    numbers = random.Random(request["seed"])
    order = orders(request["pairs"], numbers)
    with _opened(path, numbers.random() < 0.5) as (ask, facts):
        for name, told in zip(NAMES, facts, strict=True):
            say(name, **told)
        times = [[float(ms) for ms in _pair(ask, turns)] for turns in order]
        say("turns", ms=times, neighbours=[{**json.loads(ask(side, _END)), "others": None} for side in (0, 1)])
    files = [_sha256(path.parent / one["file"]) for one in request["sides"]]
    say("done", protocol=PROTOCOL, files=files, request=_sha256(path))


def orders(pairs: int, numbers: random.Random) -> list[tuple[int, int]]:
    """Which side's turn is first, pair by pair: half of them each, shuffled, so that no rhythm of the machine favours one."""
    drawn = [(0, 1), (1, 0)] * -(-pairs // 2)
    numbers.shuffle(drawn)
    return drawn[:pairs]


def _pair(ask: Ask, turns: tuple[int, int]) -> list[str]:
    times = ["", ""]
    for side in turns:
        time.sleep(_REST_S)
        times[side] = ask(side, _TURN)
    return times


@contextmanager
def _opened(path: Path, swapped: bool) -> Iterator[tuple[Ask, list[dict[str, object]]]]:
    """Both sides' processes: what asks one for a turn, and what they say of themselves. swapped: the second is started first."""
    command = [sys.executable, "-m", "edgekit.runtimes.turns", str(path.resolve())]
    started: dict[int, subprocess.Popen[str]] = {}
    try:
        facts: dict[int, dict[str, object]] = {}
        for side in (1, 0) if swapped else (0, 1):
            started[side] = subprocess.Popen(
                [*command, str(side)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            facts[side] = json.loads(_line(started[side]))

        def ask(side: int, word: str) -> str:
            stream = started[side].stdin
            assert stream is not None
            try:
                stream.write(word)
                stream.flush()
            except BrokenPipeError:
                pass  # it ended: its line, which is not there, says so
            return _line(started[side])

        yield ask, [facts[0], facts[1]]
    finally:
        for child in started.values():
            child.kill()
            child.wait()


def _line(child: subprocess.Popen[str]) -> str:
    """What a side says; where it ended instead, so does this, as it did: why is on standard error."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        code = child.wait()
        raise SystemExit(128 - code if code < 0 else code or 1)
    return line


def _be(request: Request, side: Side, folder: Path) -> None:
    """A side's process: a line when it is ready, then for each line that comes a turn, and its time in ms."""
    # What an engine prints goes to standard error.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    runtime, options = RUNTIMES[side["runtime"]], _fitting(side["options"])
    begun = time.perf_counter()
    call = (_token_calls if request["tokens"] else _row_calls)(runtime, folder / side["file"], options, request)
    load_ms = _ms_since(begun)
    warm = _calls(call, _WARM_CALLS, _WARM_S)
    timed = 1 if request["first"] else max(1, min(_TIMED_CALLS, math.ceil(1000 * _TIMED_S / max(min(warm), 1e-6))))
    facts = {
        "runtime": runtime.NAME,
        "version": runtime.version(),
        "threads": options.get("threads"),
        "load_ms": load_ms,
    }
    out.write(json.dumps(facts) + "\n")
    out.flush()
    told = neighbours.watch()
    for word in sys.stdin:
        if word == _END:
            out.write(json.dumps(told()) + "\n")
        else:
            if not request["first"]:
                _calls(call, timed, _AGAIN_S)
            out.write(f"{min(call() for _ in range(timed)):.6f}\n")
        out.flush()


def _calls(call: Callable[[], float], most: int, seconds: float) -> list[float]:
    """The times of one call at least, of `most` where they take less than so many seconds."""
    times, end = [call()], time.perf_counter() + seconds
    while len(times) < most and time.perf_counter() < end:
        times.append(call())
    return times


def _row_calls(runtime: Runtime, file: Path, options: Settings, request: Request) -> Callable[[], float]:
    """What calls an artifact that answers with rows, and gives the call's ms."""
    import numpy as np

    session = runtime.load(file, options)
    prompt = {name: np.array(values, dtype=np.int64) for name, values in request["prompt"].items()}

    def call() -> float:
        begun = time.perf_counter()
        session.run(prompt)
        return _ms_since(begun)

    return call


def _token_calls(runtime: Runtime, file: Path, options: Settings, request: Request) -> Callable[[], float]:
    """What lets a decoder write its next token, and gives the ms; with `first`, the first one behind the ids each time."""
    from edgekit.runtimes import scores

    ids = request["ids"]
    if options.get("context") == 0:
        options = {**options, "context": len(ids) + _DEEP}
    generator = runtime.generator(file, options)
    ids = ids[: max(generator.context - _DEEP, 1)]
    last, state = slice(-1, None), {"left": 0, "token": 0}

    def feed(tokens: Sequence[int]) -> float:
        begun = time.perf_counter()
        state["token"] = int(scores.top1(generator.logits(tokens, last))[0])
        return _ms_since(begun)

    def call() -> float:
        if request["first"] or not state["left"]:
            generator.clear()
            first, state["left"] = feed(ids), min(_DEEP, generator.context - len(ids))
            if request["first"]:
                return first
        state["left"] -= 1
        return feed([state["token"]])

    return call


def _fitting(options: Settings) -> Settings:
    """The options with at most a thread per core: more would wait for each other, which says nothing of the artifact."""
    cores, fitting = machine.describe()["cores"], options.copy()
    if threads := options.get("threads"):
        fitting["threads"] = min(threads, cores)
    if threads := options.get("threads_batch"):
        fitting["threads_batch"] = min(threads, cores)
    return fitting


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ms_since(begun: float) -> float:
    return 1000 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
