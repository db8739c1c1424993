"""What pip calls an engine's package."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.package import Package

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GPU = Package(module="engine", name="engine", builds={"engine-gpu": ("Cuda", "Tensor"), "engine-npu": ("Npu",)})


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtimes_package_is_what_edgekit_asks_for(name: str) -> None:
    package = RUNTIMES[name].PACKAGE
    asked = PROJECT["optional-dependencies"][package.extra] if package.extra else PROJECT["dependencies"]
    assert package.name in {Requirement(line).name for line in asked}
    assert importlib.util.find_spec(package.module) is not None
    assert package.distributions[0] == package.name


def test_each_provider_has_its_distribution() -> None:
    assert GPU.distributions == ("engine", "engine-gpu", "engine-npu")
    assert (GPU.build_for("Tensor"), GPU.build_for("Npu"), GPU.build_for("Cpu")) == ("engine-gpu", "engine-npu", None)
    assert (GPU.requirement, Package(module="e", name="e", extra="x").requirement) == ("engine", '"edgekit[x]"')


def test_a_session_says_what_its_device_installs() -> None:
    onnxruntime, llamacpp = RUNTIMES["onnxruntime"], RUNTIMES["llama-cpp"]
    assert onnxruntime.distribution({"provider": "CUDAExecutionProvider"}) == "onnxruntime-gpu"
    assert (
        onnxruntime.distribution({"provider": "CPUExecutionProvider"}) == onnxruntime.distribution({}) == "onnxruntime"
    )
    assert llamacpp.distribution({"gpu_layers": -1}) == "llama-cpp-python"
