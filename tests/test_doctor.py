"""The doctor's findings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit import doctor as doctor_module
from edgekit import target_probe
from edgekit.devices import LocalDevice
from edgekit.doctor import doctor
from edgekit.runtimes.machine import saturates
from edgekit.target import load_target
from edgekit.target_probe import probe_target
from tests.devices.surveys import survey


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A known machine instead of this one; tests change its facts."""
    facts = survey()
    monkeypatch.setattr(doctor_module, "describe", lambda: facts["machine"])
    monkeypatch.setattr(target_probe, "ask_survey", lambda _device, *, speed: facts if speed else None)
    monkeypatch.setattr(doctor_module, "prove_engines", lambda *_: [])  # see tests/probes/test_proof.py
    return facts


def test_doctor_finds_this_environment_fit(machine: dict[str, Any], tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in doctor(tmp_path)}
    for name in (
        "platform",
        "python",
        "torch",
        "transformers",
        "onnx",
        "onnxruntime",
        "optimum",
        "cpu",
        "memory",
        "disk",
    ):
        assert findings[name].status in {"ok", "warning"}, findings[name]
    assert {"extra demo", "extra dev", "cpu features", "cache"} <= set(findings)
    assert findings["cpu features"].found == "avx2, avx512_vnni"
    assert all(finding.remedy for finding in findings.values() if finding.status != "ok")
    assert list(tmp_path.iterdir()) == []


def test_doctor_imports_nothing_heavy() -> None:
    script = (
        "import sys; from edgekit.doctor import doctor; doctor();"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnxruntime', 'datasets') if name in sys.modules])"
    )
    with LocalDevice({}) as device:
        ended = device.run([sys.executable, "-c", script], timeout_s=120)
    assert ended.stdout.strip() == "[]", ended.stderr


@pytest.mark.parametrize(
    ("versions", "said", "remedy"),
    [
        ({"transformers": "5.23.0", "huggingface-hub": "0.36.0"}, "importing transformers fails", "huggingface-hub>=1"),
        ({"transformers": "4.57.6", "huggingface-hub": "2.4.0"}, "importing transformers fails", "transformers>=5.23"),
        ({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}, "both installed", "pip uninstall onnxruntime onnxrun"),
        (
            {"transformers": "5.23.0", "optimum-onnx": "0.1.0"},
            "needs transformers < 4.58",
            "pip uninstall optimum-onnx",
        ),
        ({"torch": "2.13.0+cu130"}, "CUDA build", "whl/cpu"),
        ({"torch": "2.13.0", "nvidia-cuda-runtime-cu13": "13"}, "CUDA build", "whl/cpu"),
    ],
)
def test_doctor_knows_conflicts(
    versions: dict[str, str], said: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "_has_nvidia", lambda: False)
    found = doctor_module.conflicts(versions)
    assert len(found) == 1
    assert found[0].status in {"warning", "problem"}
    assert said in found[0].found
    assert remedy in found[0].remedy


def test_doctor_sees_no_conflict_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_has_nvidia", lambda: True)
    good = {"transformers": "5.23.0", "huggingface-hub": "2.4.0", "onnxruntime": "1.31.1", "torch": "2.13.0+cu130"}
    assert doctor_module.conflicts(good) == doctor_module.conflicts({}) == []


def test_doctor_sees_a_torch_of_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = [Path("torch/_C.cpython-39-x86_64-linux-gnu.so")]
    monkeypatch.setattr(doctor_module.metadata, "files", lambda _: foreign)
    finding = doctor_module._find_foreign_torch({"torch": "2.13.0"})
    assert finding is not None
    assert finding.status == "problem"
    assert "cpython-39" in finding.found


def test_doctor_sees_versions_out_of_range(machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch<2.14,>=2.13", "onnx<1.24,>=1.23.2", 'pytest>=9; extra == "dev"', 'no-such-lib>=1; extra == "gguf"']
    monkeypatch.setattr(doctor_module.metadata, "requires", lambda _: lines)
    monkeypatch.setattr(doctor_module, "_installed", lambda: {"torch": "2.12.0", "pytest": "9.2.0"})
    findings = {finding.name: finding for finding in doctor()}
    assert (findings["torch"].status, findings["torch"].found) == ("problem", "2.12.0, needs <2.14,>=2.13")
    assert findings["torch"].remedy == 'pip install "torch<2.14,>=2.13"'
    assert findings["onnx"].found.startswith("not installed")
    assert findings["extra dev"].found == "installed"
    assert findings["extra gguf"].remedy.endswith('pip install "edgekit[gguf]"')


@pytest.mark.parametrize(
    ("facts", "name", "status"),
    [
        ({"features": ["avx2", "fma"]}, "cpu features", "warning"),
        ({"features": ["sse2"]}, "cpu features", "warning"),
        ({"arch": "aarch64", "features": ["asimd"]}, "cpu features", "warning"),
        ({"arch": "aarch64", "features": ["asimd", "asimddp"]}, "cpu features", "ok"),
        ({"features": ["avx2", "avx_vnni"]}, "cpu features", "ok"),
        ({"features": []}, "cpu features", "ok"),
        ({"memory_mb": 900}, "memory", "warning"),
    ],
)
def test_doctor_judges_the_machine(machine: dict[str, Any], facts: dict[str, Any], name: str, status: str) -> None:
    machine["machine"] |= facts
    findings = {finding.name: finding for finding in doctor()}
    assert findings[name].status == status
    assert (findings[name].remedy != "") is (status != "ok")


def test_doctor_sees_a_read_only_cache(machine: dict[str, Any], tmp_path: Path, plain_rights: None) -> None:
    tmp_path.chmod(0o500)
    findings = {finding.name: finding for finding in doctor(tmp_path / "cache")}
    tmp_path.chmod(0o700)
    assert findings["cache"].status == "problem"


def test_doctor_sees_a_cache_that_is_a_file(machine: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("", encoding="utf-8")
    findings = {finding.name: finding for finding in doctor(tmp_path / "cache")}
    assert findings["cache"].status == "problem"
    assert "EDGEKIT_CACHE" in findings["cache"].remedy


def test_saturation_follows_the_isa() -> None:
    assert saturates("x86_64", ["avx2", "fma"])
    assert saturates("x86_64", ["avx2", "avx_vnni"]) is False
    assert saturates("x86_64", ["avx2", "avx512_vnni"]) is False
    assert saturates("x86_64", ["avx2", "avx512vnni"]) is False
    assert saturates("aarch64", ["asimd"]) is False
    assert saturates("aarch64", []) is False


def test_a_cpu_that_tells_no_features_may_saturate(
    machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows tells none: nobody knows whether it has VNNI, and a target of it is exported for the worse case."""
    monkeypatch.chdir(tmp_path)
    machine["machine"]["features"] = []
    machine["speed"]["saturates"] = {}
    assert saturates("x86_64", []) is None
    target = load_target(str(probe_target("my-board")))
    onnx = [table for table in target.export.values() if table["format"] == "onnx"]
    assert onnx
    assert all(table["reduce_range"] is True for table in onnx)
    assert {finding.name: finding.status for finding in doctor()}["cpu features"] == "ok"
