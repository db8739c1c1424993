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
from tests.devices.sshd import install

if TYPE_CHECKING:
    from edgekit.devices import SshDevice

A72 = ["fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid"]
A76 = [*A72, "atomics", "fphp", "asimdhp", "asimddp"]
# A library that is laid out as llama.cpp's, of one function each: the real one takes minutes to compile, which
# benchmarks/instruction_sets.py does.
PROJECT = """
cmake_minimum_required(VERSION 3.14)
project(small C)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
foreach(name ggml-base ggml-cpu ggml llama)
  string(MAKE_C_IDENTIFIER ${name} function)
  add_library(${name} SHARED small.c)
  target_compile_definitions(${name} PRIVATE FUNCTION=${function})
  set_target_properties(${name} PROPERTIES VERSION 0.5.0 SOVERSION 0)
endforeach()
target_compile_options(ggml-cpu PRIVATE -march=${GGML_CPU_ARM_ARCH})
target_link_options(ggml PRIVATE -Wl,--no-as-needed)
target_link_libraries(ggml PUBLIC ggml-base ggml-cpu)
target_link_libraries(llama PUBLIC ggml)
"""
CODE = """
#include <arm_neon.h>
int32x4_t FUNCTION(int32x4_t sum, int8x16_t a, int8x16_t b) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(sum, a, b);
#else
  return vaddq_s32(sum, vreinterpretq_s32_s8(vaddq_s8(a, b)));
#endif
}
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


def need_compiler() -> None:
    """Have Debian's cross compiler; skips where it cannot be had."""
    if shutil.which("aarch64-linux-gnu-g++") is None:
        install("gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu")
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("no cross compiler for 64-bit ARM, and it cannot be installed here")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The source that is compiled instead of llama.cpp's; a test may change it."""
    need_compiler()
    files = {"CMakeLists.txt": PROJECT, "small.c": CODE}

    def write(out: Path) -> None:
        out.mkdir()
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")

    monkeypatch.setattr(libllama, "fetch_source", write)
    return files


def test_a_build_for_any_core_has_no_newer_instruction() -> None:
    folder = arm_library()
    found = llamacpp.libraries(folder)
    assert {path.name for path in found} >= set(libllama.LIBRARIES)
    assert len(found) < len(list(folder.iterdir())), "each is looked at once, whatever its names"
    assert instructions.missing(found, []) == []
    check(folder, A72)


@pytest.mark.usefixtures("source")
def test_a_build_for_a_newer_core_is_refused_with_the_instruction_and_the_remedy(tmp_path: Path) -> None:
    libllama.cross_build(tmp_path / "any", variant="armv8-a")
    check(tmp_path / "any", A72)
    dotted = tmp_path / "dotted"
    libllama.cross_build(dotted, variant="armv8.2-a+dotprod")
    assert {path.name for path in dotted.iterdir()} == {
        f"{name}{end}" for name in libllama.LIBRARIES for end in ("", ".0")
    }
    listed = subprocess.run(
        ["readelf", "-d", dotted / "libllama.so"], capture_output=True, text=True, check=True
    ).stdout
    assert "[$ORIGIN]" in listed
    check(dotted, A76)
    with pytest.raises(
        DeviceFailed, match=r"Cortex-A72 cannot run .* \(SIGILL\): libggml-cpu.so has SDOT/UDOT"
    ) as raised:
        check(dotted, A72)
    assert "edgekit devices cross-build FOLDER --variant armv8-a" in raised.value.message
    assert raised.value.exit_code == 4
    # It is linked to its part for the CPU, and finds that beside itself.
    assert llamacpp.variables(dotted, "/there") == {"LLAMA_CPP_LIB_PATH": "/there"}


def test_a_failure_of_the_compiler_is_told(source: dict[str, str], tmp_path: Path) -> None:
    source["small.c"] = "#error this is no source\n"
    with pytest.raises(EdgekitError, match=r"cannot be compiled for armv8-a: .*error: #error this is no source"):
        libllama.cross_build(tmp_path / "made", variant="armv8-a")
    assert not (tmp_path / "made").exists()


def test_another_machines_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="is not for x86_64"):
        check(arm_library(), [], arch="x86_64")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            EdgekitError, match=r"no libllama\.so in it; make such a folder: edgekit devices cross-build"
        ):
            check(folder, A76)


def test_a_part_that_is_loaded_at_the_start_is_named() -> None:
    assert llamacpp.variables(arm_library(), "/there") == {
        "LLAMA_CPP_LIB_PATH": "/there",
        "GGML_BACKEND_PATH": "/there/libggml-cpu.so",
    }


def test_nothing_is_compiled_into_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="exists already"):
        libllama.cross_build(tmp_path, variant="armv8-a")


def test_without_a_cross_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgekitError, match="sudo apt install gcc-aarch64-linux-gnu"):
        libllama.cross_build(tmp_path / "new", variant="armv8-a")


def test_the_commands_variants_are_those_of_the_table() -> None:
    assert tuple(libllama.VARIANTS) == VARIANTS
