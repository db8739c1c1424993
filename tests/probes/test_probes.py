"""PROBES: one conformance test for all; each runs an artifact on a device and gives back what was measured there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.devices import Device, Finished, LocalDevice, open_device
from edgekit.errors import DeviceFailed
from edgekit.modalities.text import of_tokens
from edgekit.probes import PROBES, Question
from edgekit.verify.measurements import pack_rows
from tests.devices.chromium import need_chromium
from tests.verify.verify_folders import make_graph

TEXTS = [[4, 7, 5], [9, 10], [8]]
TIMING = {"warmup": 1, "repeats": 20, "least": 20, "seconds": 1.0, "sequence": 8}


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    """Three texts for a tiny classifier."""
    artifact = tmp_path_factory.mktemp("probe") / "an artifact"
    artifact.mkdir()
    make_graph(artifact / "model.onnx")
    encoded = of_tokens(TEXTS, 0)
    return Question(
        file=artifact / "model.onnx",
        request={"runtime": "onnxruntime", "options": {"threads": 1}, "timing": TIMING},
        inputs=pack_rows(encoded, encoded.resized(8)),
        timeout_s=120,
    )


def open_for(probe: str) -> Device:
    """A device that a probe runs on."""
    if probe == "web":
        need_chromium()
        return open_device({"kind": "browser"}, "device")
    return LocalDevice({})


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_conforms(name: str, question: Question) -> None:
    with closing(open_for(name)) as device:
        answer = PROBES[name].ask(device, question.only_times())
        assert [*answer.lines.events] == ["device", "load", "first", "latency", "done"]
        assert len(answer.lines.events["latency"]["ms"]) == TIMING["repeats"]
        assert answer.arrays == {}
        whole = PROBES[name].ask(device, question)
    assert {*answer.lines.events} < {*whole.lines.events}
    assert list(whole.lines.events)[-1] == "done"
    assert whole.arrays["outputs"].shape == (len(TEXTS), 3)
    assert sorted(path.name for path in question.file.parent.iterdir()) == ["model.onnx"], "an artifact is only read"


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_that_fails_says_where_and_what_to_do(name: str, question: Question) -> None:
    with (
        closing(open_for(name)) as device,
        pytest.raises(DeviceFailed, match=r"none\.onnx: the probe ended with exit code 1: .*; `edgekit inspect`"),
    ):
        PROBES[name].ask(device, replace(question, file=question.file.with_name("none.onnx")))


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


class Lies(LocalDevice):
    """This machine, which changes what a probe says."""

    def __init__(self, change: Callable[[str], str]) -> None:
        super().__init__({})
        self._change = change

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        ended = super().run(command, timeout_s=timeout_s, env=env)
        return replace(ended, stdout=self._change(ended.stdout))


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_answer_to_this_question_is_none(question: Question, lie: str) -> None:
    change, message = LIES[lie]
    with Lies(change) as device, pytest.raises(DeviceFailed, match=message):
        PROBES["python"].ask(device, question)


def test_what_a_library_says_between_the_lines_does_not_matter(question: Question) -> None:
    with Lies(lambda text: "".join(f"warning\n{line}\n" for line in text.splitlines())) as device:
        assert PROBES["python"].ask(device, question.only_times()).arrays == {}


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


def test_another_version_of_the_engine(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lies, "REMOTE", True)
    change = replaced('"version": "1.', '"version": "0.')
    with Lies(change) as device, pytest.raises(DeviceFailed, match=r"onnxruntime 0\.\S+ is installed there, and 1\."):
        PROBES["python"].ask(device, question)
