"""Measurements: the artifact answers the verify prompts on its device, in a process that holds nothing but its runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekit.evidence import Rates, RuntimeVersion, Shape
from edgekit.probes import DEFAULT, PROBES, Question
from edgekit.progress import Progress
from edgekit.runtimes import RUNTIMES
from edgekit.schema import parse
from edgekit.verify import latency

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.devices import Device
    from edgekit.probes import Event
    from edgekit.prompts import Prompt
    from edgekit.runtimes.placement import Work
    from edgekit.target import Target

    Events = Mapping[str, Event]

# Of 20 calls the largest is the p95 (`latency.level`); 200 narrow it. Seconds are of one process.
TIMING = {"warmup": 10, "repeats": 200, "least": 20, "seconds": 2.0}


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The timed calls of one process, in ms; first: of a decoder, the times to the first token; neighbours: see that module."""

    times: Sequence[float]
    first: Sequence[float] = ()
    neighbours: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a decoder is, and what it took: times to the first token by prompt length, in a warm and in a cold process, tokens
    per second, the times behind the choice of threads, and memory by moment."""

    ttft_ms: Mapping[str, float]
    ttft_cold_ms: Mapping[str, float]
    tokens_per_second: Rates
    threads: Mapping[str, object]
    memory_mb: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What the probe reported. Times in ms, peak_mb in MiB; None where the device does not tell.

    device is what the machine is, speed how fast (bandwidth_gbs, fp32_gflops, int8_gops), work what one call does at the
    budget's shape (see `Runtime.work`). processes have the timed calls at that shape, first of all those of the process
    that gave the outputs; earlier are those of earlier measurements of the same artifact there, `measurement` how many
    measurements that makes. real_times are at the prompts' own lengths. neighbours: what the machine did while its speed was
    measured. Of a decoder a call is one new token, and generation has what the probe says of prompts, threads and memory.
    """

    device: Mapping[str, Any]
    speed: Mapping[str, float]
    work: Work
    runtime: RuntimeVersion
    available: Sequence[str]
    shape: Shape
    load_ms: float
    first_ms: float
    processes: Sequence[Timed]
    real_times: Sequence[float]
    real_lengths: Sequence[int]
    peak_mb: float | None
    outputs: NDArray[np.float32]
    neighbours: Mapping[str, float | None] = field(default_factory=dict)
    earlier: Sequence[Timed] = ()
    measurement: int = 1
    generation: Speed | None = None

    @property
    def times(self) -> list[float]:
        """The timed calls of all of this measurement's processes."""
        return [time for process in self.processes for time in process.times]


def ask_rows(
    file: Path, runtime: str, options: Mapping[str, Any], ids: Sequence[Sequence[int]], pad_id: int, sequence: int
) -> Question:
    """The question for the outputs of encoded texts, timed at `sequence` tokens."""
    import numpy as np

    request = {"runtime": runtime, "options": dict(options), "timing": TIMING | {"sequence": sequence}}
    return Question(file=file, request=request, inputs=flat(ids) | {"pad_id": np.int64(pad_id)})


def measure(
    question: Question, device: Device, is_judged: Callable[[Measurements], bool], progress: Progress, out: Path
) -> Measurements:
    """Run the probe on the device over the texts of `ask_rows`; write measurements.json (all its lines) and outputs.npz to `out`.

    is_judged: whether a process's times will be judged; then others follow, each for its times alone. Raises DeviceFailed
    where the probe does not finish.
    """
    progress(0, 0, f"{len(question.inputs['offsets']) - 1} prompts in {question.request['runtime']}")
    answer = PROBES[DEFAULT].ask(device, question)
    events = answer.events
    load = events["load"]
    found = Measurements(
        device=events["device"],
        speed=events["machine"]["speed"],
        work=read_work(events),
        runtime=RuntimeVersion(name=load["runtime"], version=load["version"]),
        available=load["available"],
        shape=Shape(**events["latency"]["shape"]),
        load_ms=load["ms"],
        first_ms=events["first"]["ms"],
        processes=[_read_timed(events)],
        real_times=events["latency_real"]["ms"],
        real_lengths=events["latency_real"]["lengths"],
        peak_mb=events["memory"]["peak_mb"],
        neighbours=events["machine"]["neighbours"],
        outputs=answer.arrays["outputs"],
    )
    again = time_again(question.only_times(), device, progress) if is_judged(found) else []
    write(out, events, again, answer.arrays)
    return replace(found, processes=[*found.processes, *map(_read_timed, again)])


def read_work(events: Events) -> Work:
    """What one call does, as the probe says it."""
    return cast("Work", events["work"])


def _read_timed(events: Events) -> Timed:
    return Timed(times=events["latency"]["ms"], neighbours=events["latency"]["neighbours"])


def time_again(question: Question, device: Device, progress: Progress) -> list[Events]:
    """The lines of further processes, one after the other: `latency.PROCESSES` with the first one."""
    found: list[Events] = []
    for count in range(1, latency.PROCESSES):
        progress(count, latency.PROCESSES, "processes, each timed for itself")
        found.append(PROBES[DEFAULT].ask(device, question).events)
    return found


def write(out: Path, events: Events, again: Sequence[Events], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write measurements.json, the lines of the first process and under `again` those of the others, and outputs.npz."""
    import numpy as np

    lines = {**events, "again": list(again)}
    (out / "measurements.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    with (out / "outputs.npz").open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def encode(artifact: Path, rows: Sequence[Prompt], settings: Mapping[str, object]) -> list[list[int]]:
    """Token ids by the tokenizer that ships, which truncates by itself, behind the prompt that ships."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    texts = [f"{settings.get('prompt', '')}{row.text}" for row in rows]
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def runtime_options(facts: Mapping[str, Any], target: Target, runtime: str) -> dict[str, Any]:
    """The runtime's options: the target's, with what the artifact needs."""
    where = f"{target.path}: runtime.{runtime}"
    asked = vars(parse(RUNTIMES[runtime].Options, dict(target.runtime.get(runtime, {})), where))
    return RUNTIMES[runtime].joined(asked, facts["runtime_options"])


def flat(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Rows of token ids as the probe reads them: all behind each other, and where each begins."""
    import numpy as np

    return {
        "ids": np.array([token for row in rows for token in row], dtype=np.int64),
        "offsets": np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
    }
