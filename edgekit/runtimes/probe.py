"""The probe: runs an artifact where it will live and reports as JSON lines on standard output.

`python -m edgekit.runtimes.probe REQUEST.json`. The request: {runtime, file, inputs, outputs, options, timing}. Paths are
relative to the request's folder, `outputs` to the current one. inputs is an .npz with the prompts, with the prompt that is timed
under `timed.` (see `request.pack`), and with `sizes` (int64 [prompts]), which come back as `lengths`; outputs becomes one with
`outputs` (float32 [prompts, width]). timing is {warmup, repeats, least, seconds, sequence, only}: `repeats` timed calls, fewer
when `seconds` are over, but never fewer than `least`; `warmup` calls before them, fewer when a second is over; `sequence` is the
timed prompt's size.

The lines, in this order: device, load, first, latency, latency_real, outputs, memory, energy, work, machine, done; with
timing.only, which asks for times and nothing else, device, load, first, latency, done. Without `done` it failed: the last line
on standard error says why. Each line has its number, `seq`, from 0. done has the version of this `protocol` and the sha256, as
computed here, of the artifact's `file`, of the `request` and, where there are any, of the `outputs`: so no answer that was cut,
mixed with another's, or is to another question, is taken for this one's. latency and machine have what the machine did meanwhile
(`neighbours`, see there); latency has the calls that warmed up, and what the machine was like before and after (`conditions`).
timing.sustained, tune and cold ask for more, behind latency: see `phases`.

A request with `kind` "tokens" has other inputs, timing, outputs and lines: see `edgekit.runtimes.generation`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.runtimes import RUNTIMES, energy, generation, machine, neighbours, phases
from edgekit.runtimes.request import unpack, wants_accelerator

if TYPE_CHECKING:
    from edgekit.runtimes import Runtime, Session
    from edgekit.runtimes.request import Arrays, Request, Settings, Timing
    from edgekit.runtimes.timing import Laps

PROTOCOL = 1


def main(path: Path) -> None:
    """Answer a request; what goes wrong ends the process with its traceback on standard error."""
    request: Request = json.loads(path.read_text(encoding="utf-8"))
    number = itertools.count()

    def say(event: str, **facts: object) -> None:
        sys.stdout.write(json.dumps({"event": event, "seq": next(number), **facts}) + "\n")
        sys.stdout.flush()

    device = machine.describe()
    say("device", **device)
    request["options"] = _fitting(request["options"], device["cores"])
    KINDS[request.get("kind", "rows")](RUNTIMES[request["runtime"]], request, path.parent, say)
    outputs = None if request["timing"].get("only") else _sha256(Path(request["outputs"]))
    # At the end, because reading it all would warm the system's cache before the file is opened.
    file = _sha256(path.parent / request["file"])
    say("done", protocol=PROTOCOL, file=file, request=_sha256(path), outputs=outputs)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for part in iter(lambda: stream.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def _answer(runtime: Runtime, request: Request, folder: Path, say: Callable[..., None]) -> None:
    import numpy as np

    with np.load(folder / request["inputs"], allow_pickle=False) as inputs:
        arrays = dict(inputs)
        sizes = arrays["sizes"].tolist()
    prompts, (timed,) = unpack(arrays), unpack(arrays, "timed.")
    file, timing, options = folder / request["file"], request["timing"], request["options"]
    asked = options.get("provider", "")

    if timing.get("cold"):
        phases.forget(folder / request["file"])
    around = phases.around()
    begun = time.perf_counter()
    session = runtime.load(file, options)
    say("load", ms=_since(begun), runtime=runtime.NAME, version=runtime.version(), available=runtime.providers())
    begun = time.perf_counter()
    session.run(timed)
    say("first", ms=_since(begun), alive_ms=phases.alive_ms())
    _say_times(session, timed, request, around, say)
    if timing.get("tune"):
        say("tuning", **phases.tune(_timed_with(runtime, file, options, timed)))
    if timing.get("only"):
        return

    rows, real = [], []
    for prompt in prompts:
        begun = time.perf_counter()
        rows.append(session.run(prompt))
        real.append(_since(begun))
    say("latency_real", lengths=sizes, ms=real)
    Path(request["outputs"]).parent.mkdir(parents=True, exist_ok=True)
    np.savez(request["outputs"], allow_pickle=False, outputs=np.stack(rows) if rows else np.zeros((0, 0), np.float32))
    say("outputs", file=request["outputs"], rows=len(rows))
    # Before what follows loads the artifact again and measures the machine: neither belongs to the artifact's memory.
    say("memory", peak_mb=machine.peak_memory_mb())
    say("energy", **energy.spent(partial(session.run, timed)))
    del session
    work = runtime.work(file, options, timed)
    say("work", **{**work, "asked": asked})
    told = neighbours.watch()
    speed = machine.measure(accelerated=wants_accelerator(options))
    threads = options.get("threads") or machine.describe()["cores"]
    speed |= machine.measure_roof(runtime.NAME, work.get("weight_bytes", 0), threads)
    say("machine", speed=speed, neighbours=told())


def _fitting(options: Settings, cores: int) -> Settings:
    """The options with at most a thread per core: more would wait for each other, which says nothing of the artifact."""
    fitting: Settings = {**options}
    if threads := options.get("threads"):
        fitting["threads"] = min(threads, cores)
    if threads := options.get("threads_batch"):
        fitting["threads_batch"] = min(threads, cores)
    return fitting


def _say_times(
    session: Session,
    prompt: Arrays,
    request: Request,
    around: Callable[[Laps], dict[str, object]],
    say: Callable[..., None],
) -> None:
    """Say the times of calls on one prompt, steady ones and, where they are asked for, without a pause."""
    timing = request["timing"]
    steady = phases.steady(lambda: session.run(prompt), timing)
    facts = {"batch": 1, "sequence": timing["sequence"], "threads": request["options"].get("threads")}
    say("latency", shape=facts, **steady.facts(), **around(steady.laps))
    if seconds := timing.get("sustained"):
        say("sustained", **phases.sustained(lambda laps: laps.time(lambda: session.run(prompt)), seconds))


def _timed_with(runtime: Runtime, file: Path, options: Settings, prompt: Arrays) -> phases.TimedWith:
    """Milliseconds of calls in a session with so many threads."""

    def timed(threads: int) -> list[float]:
        changed: Settings = {**options, "threads": threads}
        session = runtime.load(file, changed)
        return phases.steady(lambda: session.run(prompt), phases.SHORT).laps.ms

    return timed


def time_calls(session: Session, prompt: Arrays, timing: Timing) -> list[float]:
    """Milliseconds of each timed call on one prompt; timing has repeats, least, seconds and warmup."""
    return phases.steady(lambda: session.run(prompt), timing).laps.ms


def _since(begun: float) -> float:
    return round(1000 * (time.perf_counter() - begun), 6)


KINDS: dict[str, Callable[[Runtime, Request, Path, Callable[..., None]], None]] = {
    "rows": _answer,
    "tokens": generation.answer,
}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
