"""The probe for devices without Python: a C++ program on onnxruntime's C API, built by `edgekit devices native`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from edgekit.devices import Feels, there
from edgekit.devices.native import PROGRAM, built_probe, name_machine
from edgekit.errors import DeviceFailed
from edgekit.probes.exchange import Program, exchange
from edgekit.probes.lines import Lines
from edgekit.runtimes.onnxruntime.profile import Event, Kernel, count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.devices import Device
    from edgekit.inputs import Json
    from edgekit.probes.probe import Answer, Question
    from edgekit.runtimes.conditions import State

NAME = "native"


def ask(device: Device, question: Question) -> Answer:
    """Send the artifact, the program and the question to the device; what the program said and made there.

    Raises DeviceFailed where it does not finish, where none is built for the device, and for what it does not run: it answers
    rows by onnxruntime on the CPU.
    """
    if question.request["runtime"] != "onnxruntime" or question.request.get("kind", "rows") != "rows":
        raise DeviceFailed(
            f"{device.identity}: {question.file}: the native probe runs encoders by onnxruntime; take a device with Python for"
            " this one"
        )
    told = there.read_facts(device.run(["sh", "-c", there.FACTS], timeout_s=60).stdout)
    wanted = there.platform_of(told)

    def explain(last: str) -> str | None:
        if not last.startswith("onnxruntime does not load"):
            return None
        return f"{last}; is its libonnxruntime.so made for that system? Run: {wanted.build_command}"

    command = [f"{device.push(built_probe(wanted))}/{PROGRAM}"]
    before = device.condition() if isinstance(device, Feels) else {}
    answer = exchange(device, question, Program(command=command, renew=wanted.build_command, explain=explain))
    events = dict(answer.lines.events)
    after = device.condition() if isinstance(device, Feels) else {}
    if before and after:
        governor = cast("str | None", events["device"].get("governor"))
        states = {"before": _state(before, governor), "after": _state(after, governor)}
        events["latency"] = {**events["latency"], **states, "neighbours": _felt(events["latency"], before, after)}
    events["device"] = name_machine(cast("dict[str, Json]", events["device"]), there.system_of(told))
    if work := events.get("work"):
        ran: list[Event] = [
            {"cat": "Node", "name": "_kernel_time", "ts": 0, "args": kernel}
            for kernel in cast("list[Kernel]", work["kernels"])
        ]
        events["work"] = {**count(ran, str(work["provider"])), "asked": work["asked"]}
    return replace(answer, lines=Lines(events=events))


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
