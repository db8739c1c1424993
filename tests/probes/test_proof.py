"""Broken environments for GPUs: each is told apart, with the line that mends it; what they say is recorded from real ones
(benchmarks/gpu_environments.py makes all of them again), and those that need no download are planted here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import gpu_environments as planted
import pytest

from edgekit import doctor as doctor_module
from edgekit.devices import LocalDevice
from edgekit.doctor import prove_engines
from edgekit.errors import EdgekitError
from edgekit.probes import proof as probe
from edgekit.runtimes.proof import PROOFS, Proof, fault, prove
from edgekit.target import load_target

resolve = importlib.import_module("edgekit.pipeline.resolve")

RECORD: dict[str, Proof] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "gpu_environments.json").read_text(encoding="utf-8")
)
BY_NAME = {environment.name: environment for environment in planted.ENVIRONMENTS}
CUDA = "CUDAExecutionProvider"
# What each ends in: words of its own, and of its remedy.
WANTED = {
    "CPU-only onnxruntime": (
        "this onnxruntime has no CUDAExecutionProvider",
        'pip install "onnxruntime-gpu[cuda,cudnn]"',
    ),
    "both builds of onnxruntime": (
        "are both installed",
        "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install",
    ),
    "no CUDA library": (
        "libcublasLt.so.13 is missing, a library of CUDA 13",
        'pip install --upgrade "onnxruntime-gpu[cuda',
    ),
    "cuBLAS missing": ("libcublas.so.13 is missing", 'pip install --upgrade "onnxruntime-gpu[cuda,cudnn]"'),
    "cuRAND missing": ("libcurand.so.10 is missing", 'pip install --upgrade "onnxruntime-gpu[cuda,cudnn]"'),
    "CUDA 12 under a build for 13": ("libcublasLt.so.12 is here, of another CUDA", "the driver 580 or newer"),
    "a damaged library": ("libcublasLt.so.13 is damaged", "pip install --force-reinstall"),
    "no driver": ("shows no NVIDIA driver", "docker run --gpus all"),
    "no device": ("the driver is there and finds no GPU", "CUDA_VISIBLE_DEVICES"),
    "driver too old": ("the NVIDIA driver is too old for CUDA 13", "580 or newer"),
    "a stub for a driver": ("a stub stands where", "out of LD_LIBRARY_PATH"),
    "driver of another version": ("driver and library do not fit", "restart the machine"),
    "DirectML outside Windows": ("this onnxruntime has no DmlExecutionProvider", "(Windows only)"),
    "no WebGPU plug-in": ("has no WebGpuExecutionProvider", "pip install onnxruntime-ep-webgpu"),
    "WebGPU without a GPU": ("no GPU that Vulkan", "apt-get install libvulkan1"),
    "llama.cpp for the CPU": ("built without a backend for GPUs", "CMAKE_ARGS=-DGGML_CUDA=on pip install"),
    "llama.cpp without its CUDA": ("built for CUDA 12, and libcudart.so.12 is not here", "LD_LIBRARY_PATH"),
    "llama.cpp without a driver": (
        "built for CUDA, and this machine shows no NVIDIA driver",
        "install NVIDIA's driver",
    ),
    "llama.cpp without Vulkan": ("built for Vulkan, whose loader is not here", "apt-get install libvulkan1"),
    "llama.cpp of no use": ("of different versions", "pip install --force-reinstall"),
    "llama.cpp for another CPU": ("built for a newer CPU", "--no-binary llama-cpp-python"),
}


def test_every_environment_is_recorded_and_expected() -> None:
    assert set(RECORD) == set(BY_NAME) == set(WANTED)
    assert len(RECORD) >= 12


@pytest.mark.parametrize("name", sorted(RECORD))
def test_a_broken_environment_has_a_message_and_a_remedy(name: str) -> None:
    found, (what, remedy) = fault(BY_NAME[name].runtime, RECORD[name]), WANTED[name]
    assert found is not None
    assert what in found.what
    assert remedy in found.remedy
    said = [*RECORD[name].get("words", []), RECORD[name].get("failed", "")]
    assert found.words in said
    assert "Traceback" not in str(found)


def test_no_two_environments_have_one_message() -> None:
    told = [str(fault(BY_NAME[name].runtime, said)) for name, said in RECORD.items()]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize(
    "name",
    [
        "CPU-only onnxruntime",
        "llama.cpp for the CPU",
        "llama.cpp without its CUDA",
        "llama.cpp for another CPU",
    ],
)
def test_a_planted_environment_says_what_was_recorded(name: str, tmp_path: Path) -> None:
    found = fault(BY_NAME[name].runtime, planted.prove(BY_NAME[name], tmp_path))
    assert found is not None
    assert WANTED[name][0] in found.what
    assert WANTED[name][1] in found.remedy


def test_cudnn_that_is_missing_is_told_though_products_are_computed() -> None:
    """onnxruntime-gpu 1.31 opens it when the first operator wants it."""
    said: Proof = {
        **RECORD["no device"],
        "used": CUDA,
        "right": True,
        "words": [
            "Failed to load libcudnn.so.9: libcudnn.so.9: cannot open shared object file: No such file or directory"
        ],
    }
    found = fault("onnxruntime", said)
    assert found is not None
    assert (found.what, "[cuda,cudnn]" in found.remedy) == ("cuDNN is missing", True)
    assert fault("onnxruntime", {**said, "words": []}) is None
    wrong = fault("onnxruntime", {**said, "words": [], "right": False})
    assert wrong is not None
    assert "computes a product of two matrices wrong" in wrong.what


def test_doctor_says_whether_graphs_are_replayed() -> None:
    said: Proof = {**RECORD["no device"], "used": CUDA, "right": True, "words": [], "ms": 0.02, "graphs": ""}
    assert doctor_module._judge_proof("onnxruntime", said, required=True).found.endswith(", and replays CUDA graphs")
    without = doctor_module._judge_proof("onnxruntime", {**said, "graphs": "CUDA failure 900"}, required=True)
    assert (without.status, without.found.endswith("without CUDA graphs: CUDA failure 900")) == ("ok", True)


def test_words_that_nobody_knows_are_still_told() -> None:
    found = fault("onnxruntime", {**RECORD["no device"], "words": ["CUDA failure 719: unspecified launch failure"]})
    assert found is not None
    assert found.words == "CUDA failure 719: unspecified launch failure"
    silent = fault("onnxruntime", {**RECORD["no device"], "words": ["a new sentence"]})
    assert silent is not None
    assert (silent.words, f"{CUDA} takes none" in silent.what) == ("a new sentence", True)


@pytest.mark.parametrize("runtime", sorted(PROOFS))
def test_the_engines_here_compute_on_the_cpu(runtime: str) -> None:
    here = prove(runtime, {})
    assert (here["used"], here["asked"], here["right"], here["ms"] > 0) == (here["asked"], here["used"], True, True)
    assert fault(runtime, here) is None


def test_an_engine_that_is_not_there_or_prints_nothing_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalDevice, "python", "/bin/false")
    with LocalDevice({}) as device:
        assert probe.ask(device, "onnxruntime", {})["failed"] == "it ended the process with exit code 1"
    monkeypatch.setattr(LocalDevice, "python", str(Path(sys.executable).parent / "nothing"))
    with LocalDevice({}) as device:
        assert "cannot be started" in probe.ask(device, "onnxruntime", {})["failed"]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Proof]:
    """What engines answer, by runtime, instead of those here."""
    given: dict[str, Proof] = {}
    monkeypatch.setattr(doctor_module, "ask", lambda _device, runtime, _options: given[runtime])
    monkeypatch.setattr(probe, "ask", lambda _device, runtime, _options: given[runtime])
    return given


INSTALLED = {"onnxruntime": "1.31.1", "llama-cpp-python": "0.3.36"}


@pytest.mark.parametrize(
    ("onnxruntime", "llama", "versions", "statuses"),
    [
        ("CPU-only onnxruntime", "llama.cpp for the CPU", INSTALLED, ["ok", "ok"]),
        ("no driver", "llama.cpp without a driver", INSTALLED | {"onnxruntime-gpu": "1.31.1"}, ["problem", "problem"]),
        (
            "WebGPU without a GPU",
            "llama.cpp of no use",
            INSTALLED | {"onnxruntime-ep-webgpu": "1"},
            ["problem", "problem"],
        ),
    ],
)
def test_doctor_proves_what_is_installed(
    answers: dict[str, Proof],
    onnxruntime: str,
    llama: str,
    versions: dict[str, str],
    statuses: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers |= {"onnxruntime": RECORD[onnxruntime], "llama-cpp": RECORD[llama]}
    monkeypatch.setattr(doctor_module, "_has_nvidia", lambda: False)
    findings = prove_engines(versions)
    assert [finding.status for finding in findings] == statuses
    assert all(finding.remedy for finding in findings if finding.status != "ok")
    # A target that wants the GPU makes a problem of what is only built for the CPU.
    wanted = prove_engines(versions, load_target("laptop-gpu").runtime)
    assert [finding.status for finding in wanted] == ["problem", "problem"]
    monkeypatch.setattr(doctor_module, "_has_nvidia", lambda: True)
    idle = [finding.status for finding in prove_engines(versions)]
    assert idle == ["warning", "warning"] if statuses == ["ok", "ok"] else statuses


def test_another_build_of_an_engine_is_that_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu alone was "onnxruntime: not installed", and with both "both installed"."""
    monkeypatch.setattr(doctor_module.metadata, "requires", lambda _: ["onnxruntime<1.32,>=1.31.1"])
    found = {one.name: one for one in doctor_module._check_requirements({"onnxruntime-gpu": "1.31.1"})}
    assert (found["onnxruntime"].status, found["onnxruntime"].found) == ("ok", "1.31.1")
    assert doctor_module.conflicts({"onnxruntime-gpu": "1.31.1"}) == []


class _Plan:
    """What `_check_engines` reads of a plan and a session."""

    def __init__(self) -> None:
        self.target, self.runtimes, self.listener, self.told = (
            load_target("laptop-gpu"),
            ("onnxruntime",),
            self,
            list[str](),
        )

    def say(self, line: str) -> None:
        self.told.append(line)


@pytest.mark.parametrize("name", ["no CUDA library", "no driver", "driver too old", "cuBLAS missing"])
def test_preflight_stops_where_the_build_for_the_gpu_cannot_use_it(name: str, answers: dict[str, Proof]) -> None:
    answers["onnxruntime"] = RECORD[name]
    plan: Any = _Plan()
    with pytest.raises(EdgekitError, match=r"laptop-gpu\.toml: runtime\.onnxruntime: ") as stopped:
        resolve._check_engines(plan, plan)
    assert WANTED[name][0] in stopped.value.message
    assert WANTED[name][1] in stopped.value.message


def test_preflight_notes_a_machine_that_is_not_the_target(answers: dict[str, Proof]) -> None:
    """Accuracy can be judged on the CPU: the report then says what that does not prove."""
    answers["onnxruntime"] = RECORD["CPU-only onnxruntime"]
    plan: Any = _Plan()
    resolve._check_engines(plan, plan)
    assert len(plan.told) == 1
    assert plan.told[0].startswith("note: onnxruntime: this onnxruntime has no CUDAExecutionProvider")
    answers["onnxruntime"] = {**RECORD["no device"], "used": CUDA, "words": [], "right": True}
    resolve._check_engines(plan, plan)
    assert "CUDAExecutionProvider takes the work" in plan.told[1]


def test_preflight_asks_no_engine_for_a_target_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ask", lambda *_: pytest.fail("asked"))
    plan: Any = _Plan()
    plan.target = load_target("laptop-cpu")
    plan.runtimes = ("onnxruntime", "llama-cpp", "openvino")
    resolve._check_engines(plan, plan)
    assert plan.told == []
