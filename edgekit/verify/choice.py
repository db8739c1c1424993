"""Which of the runtimes that a target names answers: the one that is clearly faster on its device, else the first that it names.

Only times decide, of texts of the budget's length: the verify prompts' answers steer nothing. What is judged is measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.evidence import RuntimeTime
from edgekit.formats import FORMATS, candidates, domains_of
from edgekit.formats.onnx.ort import SUFFIX
from edgekit.probes import PROBES, Question
from edgekit.probes.lines import Calls, Load
from edgekit.runtimes.onnxruntime.operators import MICROSOFT
from edgekit.schema import pick
from edgekit.verify import latency
from edgekit.verify.measurements import runtime_options
from edgekit.verify.run import Run

if TYPE_CHECKING:
    from edgekit.artifact import Artifact

# Processes of each runtime, one after the other in turns: a slow phase of the machine meets all.
ROUNDS = 5
SECONDS = 0.5
# A runtime that is less than this faster than the first one does not displace it, so that two builds choose alike.
CLEARLY = 0.95


def answering(artifact: Artifact, tables: Mapping[str, object], where: str) -> tuple[str, ...]:
    """The runtimes that may answer, in the order of a target's tables (where: the target).

    Raises EdgekitError where those that it names cannot run the file.
    """
    file = artifact.file
    domains = domains_of(file.onnx.operators if file.onnx else ())
    if file.name.endswith(SUFFIX):  # also where its operators are ONNX's own
        domains |= {MICROSOFT}
    return candidates(pick(FORMATS, file.format, "format"), tables, artifact.output, domains, where)


def with_runtime(run: Run, name: str) -> Run:
    """The same in another runtime of the target's."""
    options = runtime_options(run.artifact.file.runtime_options, run.inputs.runtime, name, run.inputs.target)
    return replace(run, runtime=name, options=options)


def race(run: Run, names: Sequence[str], ask: Callable[[Run], Question]) -> tuple[RuntimeTime, ...]:
    """How long a call takes in each runtime, in their order; () where there is no choice. ask: a run's question.

    Raises DeviceFailed where a probe does not finish.
    """
    if len(names) < 2:
        return ()
    levels: dict[str, list[float]] = {name: [] for name in names}
    versions: dict[str, str] = {}
    for count in range(ROUNDS):
        run.progress(count, ROUNDS, f"which is faster: {', '.join(names)}")
        for name in names:
            lines = (
                PROBES[run.device.PROBE].ask(run.device, ask(with_runtime(run, name)).only_times(seconds=SECONDS)).lines
            )
            levels[name].append(latency.level(lines.read("latency", Calls).ms, 0.5))
            versions[name] = lines.read("load", Load).version
    return tuple(
        RuntimeTime(name=name, version=versions[name], p50_ms=round(latency.centre(levels[name]), 3)) for name in names
    )


def winner(raced: Sequence[RuntimeTime]) -> str:
    """The fastest, where it is clearly faster than the first; else the first."""
    fastest = min(raced, key=lambda one: one.p50_ms)
    return fastest.name if fastest.p50_ms < CLEARLY * raced[0].p50_ms else raced[0].name


def note(raced: Sequence[RuntimeTime], chosen: str, foreign: Sequence[str]) -> list[str]:
    """What was chosen and why, in words; nothing without a choice. foreign: why the machine may not vouch for the target."""
    if not raced:
        return []
    times = ", ".join(f"{one.name} {one.p50_ms:.3g} ms" for one in raced)
    why = f"the median call here: {times}"
    if foreign:
        why += f"; this machine may not vouch for the target ({'; '.join(foreign)}), so the first that the target names is taken"
    elif chosen == raced[0].name:
        why += f"; another must be faster than {CLEARLY:.0%} of the first one's time"
    return [f"runtime: {chosen} of {', '.join(one.name for one in raced)} ({why})"]
