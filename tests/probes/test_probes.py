"""PROBES: one conformance test for all; each runs an artifact on a device and gives back what was measured there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import pytest

from edgekit.devices import Device, Finished, LocalDevice, open_device
from edgekit.errors import DeviceFailed
from edgekit.modalities.text import of_tokens
from edgekit.probes import PROBES, Answer, Question
from edgekit.probes.lines import Calls, Load, MachineSpeed, Peak
from edgekit.runtimes import RUNTIMES
from tests.devices.chromium import need_chromium
from tests.devices.native import HERE, ask_graph, lay_probe
from tests.verify.verify_folders import make_graph

TEXTS = [[4, 7, 5], [9, 10], [8]]


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    """Three texts for a tiny classifier."""
    artifact = tmp_path_factory.mktemp("probe") / "an artifact"
    artifact.mkdir()
    make_graph(artifact / "model.onnx")
    return ask_graph(artifact / "model.onnx", TEXTS)


def open_here() -> Device:
    return LocalDevice({})


def open_browser() -> Device:
    need_chromium()
    return open_device({"kind": "browser"}, "device")


# A probe -> a device that it runs on where tests run.
PLACES: Mapping[str, Callable[[], Device]] = {"python": open_here, "native": open_here, "web": open_browser}


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, Device]]:
    """The devices that were opened, by the probe that runs there; a browser takes its time to begin."""
    opened: dict[str, Device] = {}
    yield opened
    for device in opened.values():
        device.close()


@pytest.fixture(params=PROBES)
def name(request: pytest.FixtureRequest, places: dict[str, Device]) -> str:
    """Each probe, which is there and has a device to run on."""
    probe: str = request.param
    if probe == "native":
        lay_probe(HERE)
    if probe not in places:
        places[probe] = PLACES[probe]()
    return probe


def test_a_probe_conforms(name: str, places: dict[str, Device], question: Question) -> None:
    """Every probe says the same lines, and answers the same rows with what onnxruntime answers here."""
    answer = PROBES[name].ask(places[name], question.only_times())
    assert [*answer.lines.events] == ["device", "load", "first", "latency", "done"]
    assert len(answer.lines.read("latency", Calls).ms) == question.request["timing"]["repeats"]
    assert answer.arrays == {}
    whole = PROBES[name].ask(places[name], question)
    events = ["device", "load", "first", "latency", "latency_real", "outputs", "memory", "work", "machine", "done"]
    # Only the probe in Python reads meters.
    assert [event for event in whole.lines.events if event != "energy"] == events
    rows = RUNTIMES["onnxruntime"].outputs(question.file, of_tokens(TEXTS, 0).prompts, options={"threads": 1})
    assert np.allclose(whole.arrays["outputs"], rows, atol=1e-5)
    assert list(whole.arrays["outputs"].argmax(axis=1)) == list(rows.argmax(axis=1))
    assert whole.lines.events["latency_real"]["lengths"] == [len(text) for text in TEXTS]
    assert whole.lines.events["latency"]["shape"] == {"batch": 1, "sequence": 8, "threads": 1}
    lines = whole.lines
    assert lines.device["cores"] >= 1
    load, peak, speed = lines.read("load", Load), lines.read("memory", Peak), lines.read("machine", MachineSpeed)
    assert (load.runtime, load.ms > 0, peak.peak_mb is None or peak.peak_mb > 1) == ("onnxruntime", True, True)
    assert all(value > 0 for value in speed.speed.values())
    assert sorted(path.name for path in question.file.parent.iterdir()) == ["model.onnx"], "an artifact is only read"


def test_a_probe_that_fails_says_where_and_what_to_do(name: str, places: dict[str, Device], question: Question) -> None:
    with pytest.raises(DeviceFailed, match=r"none\.onnx: the probe ended with exit code 1: .*; `edgekit inspect`"):
        PROBES[name].ask(places[name], replace(question, file=question.file.with_name("none.onnx")))


class Ends(LocalDevice):
    """This machine, on which whatever is started ends in one way."""

    def __init__(self, ended: Finished) -> None:
        super().__init__({})
        self._ended = ended
        self.command: Sequence[str] = ()

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        assert (timeout_s, Path((env or {})["PYTHONPATH"]).name) == (120, "code")
        self.command = command
        return self._ended


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "message"),
    [
        (-9, "", "", "the system killed the probe, most likely for want of memory"),
        (137, "", "", "the system killed the probe, most likely for want of memory"),
        (
            1,
            "",
            "Traceback\nModuleNotFoundError: No module named 'numpy'\n",
            "run there: python3 -m pip install onnxruntime numpy",
        ),
        (1, "", " \n", "exit code 1: nothing on standard error"),
        (0, '{"event": "device", "cores": 1}\n', "", "exit code 0"),
    ],
)
def test_how_python_may_end(question: Question, code: int, stdout: str, stderr: str, message: str) -> None:
    """A probe that says no `done` has not finished, whatever its exit code."""
    with Ends(Finished(returncode=code, stdout=stdout, stderr=stderr)) as device:
        with pytest.raises(DeviceFailed, match=message):
            PROBES["python"].ask(device, question)
        assert device.command[:3] == [sys.executable, "-m", "edgekit.runtimes.probe"]


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


LIES: dict[str, tuple[Callable[[str], str], str]] = {
    "cut": (lambda text: text[: len(text) // 2], "garbled"),
    "a line is missing": (lambda text: "\n".join(text.splitlines()[:1] + text.splitlines()[2:]), "garbled"),
    "two probes": (lambda text: text + text, "garbled"),
    "damaged": (replaced('{"event": "first"', '{"event": "fir'), "garbled"),
    "another artifact": (lambda text: re.sub(r'"file": "\w{64}"', '"file": "0"', text), "another sha256 than this one"),
    "an earlier question": (lambda text: re.sub(r'"request": "\w+"', '"request": "0"', text), "another question"),
    "another version": (replaced('"protocol": 1', '"protocol": 0'), "version 0 of its protocol, not 1"),
    "other outputs": (
        lambda text: re.sub(r'"outputs": "\w+"}', '"outputs": "0"}', text),
        "another sha256 than the probe",
    ),
}


class Changes:
    """A device on which what a probe says is changed on its way."""

    REMOTE: ClassVar[bool] = True
    # What a browser said, by whether times alone were wanted: it takes seconds to begin, and each lie is told of one answer.
    HEARD: ClassVar[dict[bool, Finished]] = {}

    def __init__(self, device: Device, change: Callable[[str], str], only: bool) -> None:
        self._device, self._change, self._only = device, change, only

    def __getattr__(self, name: str) -> object:
        return getattr(self._device, name)

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        heard = self.HEARD.get(self._only) if self._device.PROBE == "web" else None
        ended = heard or self._device.run(command, timeout_s=timeout_s, env=env)
        if self._device.PROBE == "web":
            self.HEARD[self._only] = ended
        if '"event"' not in ended.stdout:
            return ended
        # Python and JavaScript write the same JSON with other spaces.
        lines = [json.dumps(json.loads(line)) for line in ended.stdout.splitlines() if line.startswith("{")]
        return replace(ended, stdout=self._change("\n".join(lines)))


def ask_through(device: Device, name: str, question: Question, change: Callable[[str], str]) -> Answer:
    """What comes of a probe's answer that is changed on its way from what counts as another machine."""
    return PROBES[name].ask(cast("Device", Changes(device, change, "only" in question.request["timing"])), question)


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_answer_to_this_question_is_none(
    name: str, places: dict[str, Device], question: Question, lie: str
) -> None:
    change, message = LIES[lie]
    with pytest.raises(DeviceFailed, match=message):
        ask_through(places[name], name, question if lie == "other outputs" else question.only_times(), change)


def test_what_a_library_says_between_the_lines_does_not_matter(
    name: str, places: dict[str, Device], question: Question
) -> None:
    def chat(text: str) -> str:
        return "".join(f"warning\n{line}\n" for line in text.splitlines())

    assert ask_through(places[name], name, question.only_times(), chat).arrays == {}


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (Finished(returncode=-4, stdout="", stderr=""), r"does not have \(SIGILL\)"),
        (
            Finished(returncode=1, stdout="", stderr="ModuleNotFoundError: No module named 'numpy'"),
            r"lacks a library .*; run: edgekit devices setup local",
        ),
    ],
    ids=["SIGILL", "no engine"],
)
def test_how_python_may_end_on_another_machine(
    question: Question, monkeypatch: pytest.MonkeyPatch, ended: Finished, message: str
) -> None:
    monkeypatch.setattr(Ends, "REMOTE", True)
    with Ends(ended) as device, pytest.raises(DeviceFailed, match=message):
        PROBES["python"].ask(device, question)


def test_another_version_of_the_engine(name: str, places: dict[str, Device], question: Question) -> None:
    change = replaced('"version": "1.', '"version": "0.')
    with pytest.raises(DeviceFailed, match=r"onnxruntime 0\.\S+ (is installed there, and|answered, not) 1\."):
        ask_through(places[name], name, question.only_times(), change)
