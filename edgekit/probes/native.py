"""The probe for devices without Python: a C++ program on onnxruntime and llama.cpp, built by `edgekit devices native`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from edgekit.devices import Feels, there
from edgekit.devices.llamacpp import backend
from edgekit.devices.native import PROGRAM, built_probe, name_machine
from edgekit.errors import DeviceFailed
from edgekit.probes.exchange import Program, exchange
from edgekit.probes.lines import Lines
from edgekit.runtimes import llamacpp, onnxruntime
from edgekit.runtimes.llamacpp.library import Line
from edgekit.runtimes.llamacpp.loaded import Told, work_of
from edgekit.runtimes.onnxruntime.profile import Event, Kernel, count
from edgekit.typed_json import read_table

if TYPE_CHECKING:
    from edgekit.devices import Device
    from edgekit.inputs import Json
    from edgekit.probes.probe import Answer, Question
    from edgekit.runtimes.conditions import State

NAME = "native"
SUSTAINS = False


@dataclass(frozen=True, kw_only=True)
class _Told:
    """The line `work` of a decoder: `llamacpp.loaded.Told` with lines of a log as [level, text]; kv: the cache's types."""

    loading: tuple[tuple[int, str], ...]
    reserving: tuple[tuple[int, str], ...]
    layers: int
    bytes: int
    parameters: int
    attention: str
    threads: tuple[int, int]
    system: str
    kv: tuple[str, str]
    asked: str


def ask(device: Device, question: Question) -> Answer:
    """Send the artifact, the program and the question to the device; what the program said and made there.

    Raises DeviceFailed where it does not finish, where none is built for the device, and for what it does not run: it answers
    rows by onnxruntime and tokens by llama.cpp.
    """
    kind = _KINDS[question.request.get("kind", "rows")]
    if question.request["runtime"] != kind.runtime:
        raise DeviceFailed(
            f"{device.identity}: {question.file}: the native probe runs encoders by onnxruntime and decoders by llama.cpp (a GGUF"
            " file); take a device with Python for this one"
        )
    told = there.read_facts(device.run(["sh", "-c", there.FACTS], timeout_s=60).stdout)
    wanted = there.platform_of(told)

    def explain(last: str) -> str | None:
        library = next(
            (name for name in ("onnxruntime", "llama.cpp") if last.startswith(f"{name} does not load")), None
        )
        if library is None:
            return None
        return f"{last}; is its library made for that system? Run: {wanted.build_command}"

    folder = built_probe(wanted, decoders=kind.decoders)
    pushed = device.push(folder)
    before = device.condition() if isinstance(device, Feels) else {}
    program = Program(
        command=[f"{pushed}/{PROGRAM}"],
        renew=wanted.build_command,
        env=backend(folder, pushed) if kind.decoders else {},
        explain=explain,
    )
    answer = exchange(device, question, program)
    events, timed = dict(answer.lines.events), kind.timed
    after = device.condition() if isinstance(device, Feels) else {}
    if before and after:
        governor = cast("str | None", events["device"].get("governor"))
        states = {"before": _state(before, governor), "after": _state(after, governor)}
        events[timed] = {**events[timed], **states, "neighbours": _felt(events[timed], before, after)}
    events["device"] = name_machine(cast("dict[str, Json]", events["device"]), there.system_of(told))
    if work := events.get("work"):
        events["work"] = kind.work(work)
    return replace(answer, lines=Lines(events=events))


def _kernels(work: Mapping[str, object]) -> dict[str, object]:
    """What a call of an encoder does, by the kernels of onnxruntime's profile."""
    ran: list[Event] = [
        {"cat": "Node", "name": "_kernel_time", "ts": 0, "args": kernel}
        for kernel in cast("list[Kernel]", work["kernels"])
    ]
    return {**count(ran, str(work["provider"])), "asked": work["asked"]}


def _layers(work: Mapping[str, object]) -> dict[str, object]:
    """What a decoder does, by llama.cpp's log."""
    said = read_table(_Told, dict(work), "the probe's line work")
    loading, reserving = (
        [Line(level=level, text=text) for level, text in lines] for lines in (said.loading, said.reserving)
    )
    facts = {key: value for key, value in vars(said).items() if key not in {"loading", "reserving", "kv", "asked"}}
    return {**work_of(Told(loading=loading, reserving=reserving, **facts)), "kv": [*said.kv], "asked": said.asked}


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How a kind of request is answered. decoders: whether by llama.cpp; timed: the line with the timed calls; work: what
    becomes of the line `work`."""

    runtime: str
    decoders: bool
    timed: str
    work: Callable[[Mapping[str, object]], dict[str, object]]


_KINDS: Mapping[str, _Kind] = {
    "rows": _Kind(runtime=onnxruntime.NAME, decoders=False, timed="latency", work=_kernels),
    "tokens": _Kind(runtime=llamacpp.NAME, decoders=True, timed="decode", work=_layers),
}


def _felt(latency: Mapping[str, object], before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, object]:
    """What disturbed the timed calls, with the worst of how the device was before and after.

    Any thermal status but 0 lowers the clock, and so does a phone that saves power.
    """
    found: dict[str, object] = {**cast("Mapping[str, float | None]", latency["neighbours"])}
    for key, worst in (("thermal_status", max), ("battery_percent", min), ("low_power", max)):
        if known := [told[key] for told in (before, after) if key in told]:
            found[key] = worst(known)
    if found.get("thermal_status") or found.get("low_power"):
        found["slowed"] = cast("float", found.get("slowed") or 0) + 1
    return found


def _state(condition: Mapping[str, float], governor: str | None) -> State:
    """What a device's condition tells of what `conditions` looks at."""
    plugged = condition.get("plugged")
    return {
        "temperature_c": condition.get("temperature_c"),
        "clock_mhz": None,
        "governor": governor,
        "driver": None,
        "power": None if plugged is None else "mains" if plugged else "battery",
        "limit_cores": None,
    }
