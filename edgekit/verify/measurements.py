"""Measurements: the artifact answers the verify prompts on its device, in a process that holds nothing but its runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit.evidence import Rates, RuntimeVersion, Shape
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Calls, Energy, First, Lines, Load, MachineSpeed, Neighbours, Peak, Reading, RealCalls
from edgekit.progress import Progress
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.conditions import State
from edgekit.runtimes.machine import Machine
from edgekit.runtimes.placement import Work
from edgekit.runtimes.request import pack
from edgekit.runtimes.timing import Spell
from edgekit.schema import dump_json, parse, read_json
from edgekit.typed_json import MAY_BE_ABSENT, read_table, to_table
from edgekit.verify import latency

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from edgekit.devices import Device
    from edgekit.modalities.encoded import Encoded
    from edgekit.runtimes.request import Request, Settings, Timing
    from edgekit.target import Budget

    Arrays = Mapping[str, NDArray[np.generic]]

FILE = "measurements.json"
# Of 20 calls the largest is the p95 (`latency.level`); 200 narrow it. Seconds are of one process.
TIMING: Timing = {"warmup": 10, "repeats": 200, "least": 20, "seconds": 2.0}


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The timed calls of one process, in ms; first: of a decoder, the times to the first token; neighbours: see that module.

    warmup: the calls before; spell: how the timed ones went; before, after: what the machine was like; sha256: of the file that
    ran, as computed there. None where the probe does not tell.
    """

    times: tuple[float, ...]
    first: tuple[float, ...] = ()
    neighbours: Neighbours = field(default_factory=dict)
    warmup: tuple[float, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    spell: Spell | None = field(default=None, metadata=MAY_BE_ABSENT)
    before: State | None = field(default=None, metadata=MAY_BE_ABSENT)
    after: State | None = field(default=None, metadata=MAY_BE_ABSENT)
    sha256: str | None = field(default=None, metadata=MAY_BE_ABSENT)


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
    measured. planned: how many processes were to time it at most. cold_ms: from the start of the first one to its first answer.
    Of a decoder a call is one new token, and generation has what the probe says of prompts, threads and memory.
    reading: how the device's own tokenizer reads the prompts, where its apps use another than this machine's.
    """

    device: Machine
    speed: Mapping[str, float]
    work: Work
    runtime: RuntimeVersion
    available: tuple[str, ...]
    shape: Shape
    load_ms: float
    first_ms: float
    processes: tuple[Timed, ...]
    real_times: tuple[float, ...]
    real_lengths: tuple[int, ...]
    peak_mb: float | None
    neighbours: Neighbours = field(default_factory=dict)
    earlier: tuple[Timed, ...] = ()
    measurement: int = 1
    planned: int = latency.PROCESSES
    cold_ms: float | None = None
    generation: Speed | None = None
    energy: Energy | None = None
    reading: Reading | None = field(default=None, metadata=MAY_BE_ABSENT)

    @property
    def times(self) -> list[float]:
        """The timed calls of all of this measurement's processes."""
        return [time for process in self.processes for time in process.times]


def read_measurements(folder: Path) -> Measurements:
    """The measurements of a verify step's folder; EdgekitError where they are none, or those of another version."""
    return read_table(Measurements, read_json(folder / FILE), str(folder / FILE))


def ask_rows(file: Path, runtime: str, options: Mapping[str, object], encoded: Encoded, sequence: int) -> Question:
    """The question for the outputs of prompts, timed at `sequence` tokens where they are texts."""
    timed = encoded.resized(sequence)
    timing: Timing = {**TIMING, "sequence": timed.sizes[0]}
    return Question(file=file, request=request(runtime, options, timing), inputs=pack_rows(encoded, timed))


def pack_rows(encoded: Encoded, timed: Encoded) -> dict[str, NDArray[np.generic]]:
    """Prompts, and the prompt that is timed, as arrays of the probe's request."""
    import numpy as np

    return pack(encoded.prompts) | pack(timed.prompts, "timed.") | {"sizes": np.array(encoded.sizes, np.int64)}


def certifying(question: Question, budget: Budget, most: int, sha256: str) -> Question:
    """The same with as many calls of each process as bounds of the limited quantiles need. most: processes; sha256: of the
    artifact's file."""
    needed = [latency.calls_needed(q, most) for q in budget.quantiles.values()]
    asked = question.request["timing"]
    timing: Timing = {**asked, "least": max([asked["least"], *needed]), "repeats": max([asked["repeats"], *needed])}
    return replace(question, sha256=sha256, request={**question.request, "timing": timing})


def request(runtime: str, options: Mapping[str, object], timing: Timing, kind: str = "rows") -> Request:
    """A request of the protocol, less the paths, which its probe knows."""
    return {"kind": kind, "runtime": runtime, "options": cast("Settings", dict(options)), "timing": timing}


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How many processes time an artifact: one where its times are not judged; else up to `most`, fewer where they are settled at
    one of the looks before (`latency.looks`)."""

    most: int
    is_judged: Callable[[Measurements], bool]
    is_settled: Callable[[Measurements], bool]


def measure(
    question: Question, device: Device, processes: Processes, progress: Progress, out: Path
) -> tuple[Measurements, NDArray[np.float32]]:
    """Run the probe on the device over the texts of `ask_rows`; write measurements.json and outputs.npz to `out`.

    Returns the measurements and the outputs [texts, width]. Where a process's times will be judged, others follow, each for
    its times alone. Raises DeviceFailed where the probe does not finish.
    """
    import numpy as np

    progress(0, 0, f"{len(np.asarray(question.inputs['sizes']))} prompts in {question.request['runtime']}")
    answer = PROBES[device.PROBE].ask(device, question)
    result = time_again(_read(answer.lines), question.only_times(), device, processes, read_timed, progress)
    write(out, result, answer.arrays)
    return result, answer.arrays["outputs"].astype(np.float32, copy=False)


def _read(lines: Lines) -> Measurements:
    load, first, real, machine = (
        lines.read("load", Load),
        lines.read("first", First),
        lines.read("latency_real", RealCalls),
        lines.read("machine", MachineSpeed),
    )
    return Measurements(
        device=lines.device,
        speed=machine.speed,
        work=lines.work,
        runtime=RuntimeVersion(name=load.runtime, version=load.version),
        available=load.available,
        shape=lines.read("latency", Calls).shape,
        load_ms=load.ms,
        first_ms=first.ms,
        cold_ms=first.alive_ms,
        processes=(read_timed(lines),),
        real_times=real.ms,
        real_lengths=real.lengths,
        peak_mb=lines.read("memory", Peak).peak_mb,
        energy=lines.energy,
        neighbours=machine.neighbours,
        reading=lines.read("tokenizer", Reading) if "tokenizer" in lines.events else None,
    )


def read_timed(lines: Lines) -> Timed:
    """The timed calls that one process says it made."""
    calls = lines.read("latency", Calls)
    return Timed(
        times=calls.ms,
        neighbours=calls.neighbours,
        warmup=calls.warmup,
        spell=calls.spell,
        before=calls.before,
        after=calls.after,
        sha256=lines.sha256,
    )


def time_again(
    first: Measurements,
    question: Question,
    device: Device,
    processes: Processes,
    read: Callable[[Lines], Timed],
    progress: Progress,
) -> Measurements:
    """The measurements with further processes, one after the other, where the first one's times are judged."""
    result = replace(first, planned=processes.most)
    if not processes.is_judged(result):
        return replace(result, planned=1)
    *looks, most = latency.looks(processes.most)
    for count in range(1, most):
        progress(count, most, "processes, each timed for itself")
        lines = PROBES[device.PROBE].ask(device, question).lines
        result = replace(result, processes=(*result.processes, read(lines)))
        if count + 1 in looks and processes.is_settled(result):
            break
    return result


def write(out: Path, measured: Measurements, arrays: Arrays) -> None:
    """Write measurements.json and outputs.npz."""
    import numpy as np

    (out / FILE).write_text(dump_json(to_table(measured)), encoding="utf-8")
    with (out / "outputs.npz").open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def runtime_options(
    needed: Mapping[str, object], tables: Mapping[str, Mapping[str, object]], runtime: str, target: str
) -> dict[str, object]:
    """A runtime's options: those of the target's own table, with those that the artifact needs."""
    asked = vars(parse(RUNTIMES[runtime].Options, dict(tables.get(runtime, {})), f"{target}: runtime.{runtime}"))
    return RUNTIMES[runtime].joined(asked, needed)


def flat(rows: Sequence[Sequence[int]]) -> dict[str, ArrayLike]:
    """Rows of token ids as the probe reads them: all behind each other, and where each begins."""
    import numpy as np

    return {
        "ids": np.array([token for row in rows for token in row], dtype=np.int64),
        "offsets": np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
    }
