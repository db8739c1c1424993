"""PROBES: one conformance test for all; each runs an artifact on a device and gives back what was measured there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices import Finished, LocalDevice
from edgekit.errors import DeviceFailed
from edgekit.probes import PROBES, Question
from tests.verify.verify_folders import make_graph

TEXTS = [[4, 7, 5], [9, 10], [8]]
TIMING = {"warmup": 1, "repeats": 20, "least": 20, "seconds": 1.0, "sequence": 8}


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    """Three texts for a tiny classifier."""
    artifact = tmp_path_factory.mktemp("probe") / "an artifact"
    artifact.mkdir()
    make_graph(artifact / "model.onnx")
    offsets = np.cumsum([0, *map(len, TEXTS)])
    ids = np.concatenate(TEXTS).astype(np.int64)
    return Question(
        file=artifact / "model.onnx",
        request={"runtime": "onnxruntime", "options": {"threads": 1}, "timing": TIMING},
        inputs={"ids": ids, "offsets": offsets, "pad_id": np.int64(0)},
        timeout_s=120,
    )


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_conforms(name: str, question: Question) -> None:
    with LocalDevice({}) as device:
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
        LocalDevice({}) as device,
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
