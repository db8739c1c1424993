"""Where a training runs: the device that is asked for or found, and what its fingerprint says of it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.distill import machine, read_training
from edgekit.distill.determinism import reproducible
from edgekit.distill.machine import choose_device, choose_precision, conditions
from edgekit.distill.options import TrainingOptions
from edgekit.errors import EdgekitError
from edgekit.recipe import Data, Recipe, Student, Teacher


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False) -> None:
    """A torch that finds these accelerators, on a machine that may have one."""
    monkeypatch.setattr(machine, "_may_accelerate", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("there", "found", "named", "precision"),
    [({"cuda": True}, "cuda", "cuda: H100", "bf16"), ({"mps": True}, "mps", "mps", "fp32"), ({}, "cpu", "cpu", None)],
    ids=["cuda", "mps", "cpu"],
)
def test_auto_is_the_accelerator_that_torch_finds(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, bool], found: str, named: str, precision: str | None
) -> None:
    pretend(monkeypatch, **there)
    assert choose_device("auto") == found
    assert choose_device("cpu") == "cpu"
    assert conditions(TrainingOptions())["device"] == named
    assert conditions(TrainingOptions(device="cpu"))["device"] == "cpu"
    assert precision in {None, choose_precision("auto", found)}
    for other in {"cuda", "mps"} - {found}:
        with pytest.raises(EdgekitError, match=f"^distill.device: {other}: torch .* finds none here .{found} is what"):
            choose_device(other, "distill.device")


def test_a_device_that_is_not_there_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    recipe: dict[str, Any] = {"task": "text-classification", "data": Data(), "student": Student(layers=1)}
    for teacher, distill, where in (
        (Teacher(source="."), {"device": "cuda"}, "distill"),
        (Teacher(source=".", finetune={"device": "mps"}), {}, "teacher.finetune"),
    ):
        with pytest.raises(EdgekitError, match=rf"^recipe.toml: {where}.device: "):
            read_training(Recipe(teacher=teacher, distill=distill, **recipe), "recipe.toml")
    with pytest.raises(EdgekitError, match=r"distill.device: "):
        read_training(Recipe(teacher=Teacher(source="."), distill={"device": "tpu"}, **recipe), "recipe.toml")


@pytest.mark.parametrize(
    ("version", "driver", "wanted"), [("2.13.0+cpu", True, False), ("2.13.0", False, False), ("2.13.0", True, True)]
)
def test_torch_is_asked_only_where_there_may_be_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, driver: bool, wanted: bool
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(metadata, "version", lambda _name: version)
    monkeypatch.setattr(machine, "_DRIVERS", (str(tmp_path / ("" if driver else "nothing")),))
    assert machine._may_accelerate() is wanted


def test_on_a_mac_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for arch, wanted in (("arm64", True), ("x86_64", False)):
        monkeypatch.setattr(machine.platform, "machine", lambda arch=arch: arch)
        assert machine._may_accelerate() is wanted


def test_conditions_of_the_cpu_need_no_torch() -> None:
    code = "import sys; from edgekit.distill.machine import conditions; from edgekit.distill.options import TrainingOptions; conditions(TrainingOptions(device='cpu')); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


class Accelerator:
    """What torch offers for an accelerator's random numbers, here drawn by the CPU."""

    def __init__(self) -> None:
        self.generator = torch.Generator()

    def get_rng_state(self) -> torch.Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.generator.set_state(state)


def test_what_training_changes_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random states of both devices, threads and strictness; on an accelerator a kernel that is not deterministic may run."""
    there = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda _device: there)
    for device in ("cpu", "mps"):
        before = torch.get_rng_state(), there.get_rng_state(), torch.get_num_threads()
        with reproducible(5, device):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled() == (device == "mps")
            first = torch.rand(3)
            torch.rand(3, generator=there.generator)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(there.get_rng_state(), before[1]) == (device == "mps")
        assert torch.get_num_threads() == before[2]
        assert not torch.are_deterministic_algorithms_enabled()
        torch.manual_seed(5)
        assert torch.equal(torch.rand(3), first)
