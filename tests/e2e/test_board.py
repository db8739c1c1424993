"""Builds for Raspberry Pis, judged by an emulated one behind SSH: accuracy from ARM, speed not proven."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from instruction_sets import DATA, decoder
from instruction_sets import stories as texts

from edgekit.devices import SshDevice
from edgekit.runtimes.emulation import emulation
from edgekit.target import load_target
from edgekit.verify import generation
from tests.conftest import Answer
from tests.devices.arm_llama import arm_library
from tests.devices.sshd import Reachable
from tests.e2e.conftest import SLOWEST

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """A recipe of a storyteller of 260,000 weights, as it is."""
    pytest.importorskip("llama_cpp")
    if not (DATA / "stories260K").is_dir():
        pytest.skip("needs ../shared/data/stories260K")
    return decoder(tmp_path / "stories", DATA / "stories260K" / "hf", texts())


def test_from_a_bare_board_to_a_verdict(
    arm_board: Reachable,
    project: Path,
    stories: Path,
    command: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The commands of README: without an engine there it says what to run; then it judges; then nothing is left there."""
    monkeypatch.setenv("PATH", f"{arm_board.commands}{os.pathsep}{os.environ['PATH']}")
    build = ("build", "--recipe", project, "--target", "raspberrypi", "--device", arm_board.url, "--json")
    bare = command(*build)
    assert bare.code == 4, bare.err
    assert f"run: edgekit devices setup {arm_board.url}" in bare.out
    made = command("devices", "setup", arm_board.url, "--llama-library", arm_library(), "--json")
    assert made.code == 0, made.out + made.err
    assert set(json.loads(made.out)["versions"]) == {"numpy", "onnxruntime", "llama_cpp"}

    done = command(*build)
    assert done.code == 0, done.err
    report = json.loads(done.out)["bundles"][0]["report"]
    said = json.loads(Path(report).read_text(encoding="utf-8")) if isinstance(report, str) else report
    assert (said["device"]["arch"], said["device"]["cpu"]) == ("aarch64", "Cortex-A76")
    verdicts = {check["name"]: check for check in said["checks"]}
    for name in ("p95_ms", "memory_mb"):
        assert verdicts[name]["verdict"] == "not proven"
        assert "emulated" in json.dumps(verdicts[name])
    assert said["emulated"] is True
    accuracy = [entry for entry in said["comparisons"] if entry["verdict"] is not None]
    assert accuracy
    assert said["host"]["prompts"] == said["prompts"]
    assert verdicts["as_on_host"]["verdict"] != "fail", verdicts["as_on_host"]
    check_facts(arm_board, command, said["device"])
    for cpu in ("cortex-a76", "cortex-a72"):
        check_probed(arm_board, command, cpu, monkeypatch)
        assert command("build", "--recipe", project, "--target", cpu, "--dry-run").code == 0
    with monkeypatch.context() as patch:
        # One board, one address: what it said as a Cortex-A76 is not true of it as a Cortex-A72.
        patch.setenv("EDGEKIT_STATE", str(tmp_path / "older"))
        check_decoder(arm_board, command, stories, patch)
    cleaned = command("devices", "clean", arm_board.url, "--json")
    assert json.loads(cleaned.out)["bytes"] > 10**8


def check_facts(device: Reachable, command: Callable[..., Answer], facts: dict[str, Any]) -> None:
    """What `doctor` says of the board; and its speed alone gives it away, whatever clock it may have."""
    asked = command("doctor", "--device", device.url, "--json")
    found = {one["name"]: one for one in json.loads(asked.out)["findings"]}
    assert (asked.code, json.loads(asked.out)["emulated"]) == (0, True)
    assert found["onnxruntime"]["status"] == "ok"
    assert found["emulated"]["found"] == "programs for aarch64 on a kernel for x86_64: emulated"
    assert found["emulated"]["remedy"].endswith("measure on the board itself")
    unnamed = {key: value for key, value in facts.items() if key != "emulator"}
    assert "fp32 throughput" in emulation(unnamed, facts)[0]  # type: ignore[arg-type]


def play(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the board's programs run with another CPU."""
    run = SshDevice.run
    monkeypatch.setattr(
        SshDevice, "run", lambda *given, **more: run(*given, **{**more, "env": {**more["env"], "QEMU_CPU": cpu}})
    )


def check_decoder(device: Reachable, command: Callable[..., Answer], recipe: Path, patch: pytest.MonkeyPatch) -> None:
    """A Cortex-A72's answers in GGUF are as close to the float model as this machine's."""
    play("cortex-a72", patch)
    # Emulated times prove nothing: each kind of call once.
    few = {**generation.TIMING, "prompts": (16,), "new": 4, "repeats": 1, "seconds": 0.0, "sweep": False}
    patch.setattr(generation, "TIMING", few)
    build = ("build", "--recipe", recipe, "--target", "raspberrypi", "--format", "gguf", "--scheme", "q8_0", "--json")
    done = command(*build, "--device", device.url)
    assert done.code in {0, 3}, done.err
    (entry,) = json.loads(done.out)["bundles"]
    report: dict[str, Any] = json.loads(Path(entry["report"]).read_text(encoding="utf-8"))
    assert (report["device"]["arch"], report["device"]["cpu"]) == ("aarch64", "Cortex-A72")
    assert re.fullmatch(r"0\.3\.\d+ \(ggml [\d.]+\)", report["runtime"]["version"])
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["ttft_ms"] == verdicts["tokens_per_second"] == "not proven"
    assert verdicts["as_on_host"] != "fail"
    assert verdicts["kl_vs_student"] != "fail"
    assert report["kl"]["mean"] < 0.05
    assert 0.8 < report["host"]["ratio"] < 1.25, report["host"]


def check_probed(device: Reachable, command: Callable[..., Answer], cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`targets probe` of the board, played with another CPU where that is asked for: what it writes can be built for."""
    with monkeypatch.context() as patch:
        play(cpu, patch)
        asked = command("targets", "probe", "--name", cpu, "--device", device.url, "--json")
    assert (asked.code, json.loads(asked.out)["emulated"]) == (0, True), asked.err
    target = load_target(cpu)
    assert target.hardware.cpu.lower() == cpu
    assert ("asimddp" in target.hardware.features) is (cpu == "cortex-a76")
    assert target.hardware.fp32_gflops is target.hardware.int8_gops is target.hardware.bandwidth_gbs is None
    assert target.probed["saturates"] == {"u8s8": False, "s8s8": False, "u8u8": False}
    # Its speed alone gives it away, whatever clock it may have.
    facts: Any = {**vars(target.hardware), "clock_ghz": None}
    assert "fp32 throughput" in emulation(facts, target.probed["measured"])[0]  # type: ignore[arg-type]
    assert command("targets", "check", cpu).code == 0
