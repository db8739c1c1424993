"""llama.cpp's library for a device: which instructions it has, and what is refused before it is sent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from edgekit.cli.devices import VARIANTS
from edgekit.devices import instructions, libllama, llamacpp
from edgekit.errors import DeviceFailed, EdgekitError
from tests.devices.arm_llama import arm_library

if TYPE_CHECKING:
    from edgekit.devices import SshDevice

A72 = ["fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid"]
A76 = [*A72, "atomics", "fphp", "asimdhp", "asimddp"]
# Each in a function of its own, as compilers write them.
CODE = """
#include <arm_neon.h>
int32x4_t dot(int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }
"""


class Told:
    """What a device says of itself."""

    identity = "ssh://pi"

    def __init__(self, features: list[str], arch: str = "aarch64") -> None:
        self.hello = {"arch": arch}
        self._features = features

    def facts(self) -> dict[str, object]:
        return {"cpu": "Cortex-A72", "features": self._features}


def check(folder: Path, features: list[str], arch: str = "aarch64") -> None:
    llamacpp.check_library(cast("SshDevice", Told(features, arch)), folder)


@pytest.fixture
def dotted(tmp_path: Path) -> Path:
    """A library folder of which one library has a dot product, compiled for the CPU of a Raspberry Pi 5."""
    folder = Path(shutil.copytree(arm_library(), tmp_path / "dotted"))
    (tmp_path / "dot.c").write_text(CODE, encoding="utf-8")
    compiler = ["aarch64-linux-gnu-gcc", "-O1", "-march=armv8.2-a+dotprod", "-shared", "-fPIC"]
    subprocess.run([*compiler, "-o", folder / "libggml-cpu.so", tmp_path / "dot.c"], check=True)
    return folder


def test_a_build_for_any_core_has_no_newer_instruction() -> None:
    folder = arm_library()
    assert {path.name for path in folder.iterdir()} >= set(libllama.LIBRARIES)
    assert instructions.missing([folder / name for name in libllama.LIBRARIES], []) == []
    check(folder, A72)


def test_a_build_for_a_newer_core_is_refused_with_the_instruction_and_the_remedy(dotted: Path) -> None:
    check(dotted, A76)
    with pytest.raises(
        DeviceFailed, match=r"Cortex-A72 cannot run .* \(SIGILL\): libggml-cpu.so has SDOT/UDOT"
    ) as raised:
        check(dotted, A72)
    assert "edgekit devices cross-build FOLDER --variant armv8-a" in raised.value.message
    assert raised.value.exit_code == 4


def test_another_machines_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="is not for x86_64"):
        check(arm_library(), [], arch="x86_64")
    with pytest.raises(EdgekitError, match=r"no libllama\.so in it"):
        check(tmp_path, A76)


def test_nothing_is_compiled_into_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="exists already"):
        libllama.cross_build(tmp_path, variant="armv8-a")


def test_without_a_cross_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgekitError, match="sudo apt install gcc-aarch64-linux-gnu"):
        libllama.cross_build(tmp_path / "new", variant="armv8-a")


def test_the_commands_variants_are_those_of_the_table() -> None:
    assert tuple(libllama.VARIANTS) == VARIANTS
