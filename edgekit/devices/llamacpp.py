"""llama.cpp on a device: its Python code, a library that runs on the device's CPU, or one that is compiled there."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices import instructions, libllama
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.progress import Progress
from edgekit.runtimes.llamacpp.library import FOLDER

if TYPE_CHECKING:
    from edgekit.devices.ssh import SshDevice

MODULE = "llama_cpp"
# What `import llama_cpp` imports beside NumPy; all but markupsafe are Python alone.
_IMPORTED = ("diskcache", "jinja2", "markupsafe", "typing-extensions")
# A Raspberry Pi Zero 2 W compiles for hours; a job of the compiler takes up to half a gigabyte.
_COMPILE_S = 4 * 3600.0
_JOB_MB = 700
_FIND = "import shutil\nprint(*(shutil.which(name) or '-' for name in ('c++', 'cc', 'cmake')))"


def requirements() -> list[str]:
    """What llama-cpp-python imports, in the versions that are installed here."""
    return [f"{name}=={metadata.version(name)}" for name in _IMPORTED]


def remedy() -> str:
    """What to do where the library does not load."""
    return (
        f"take a library of llama-cpp-python {libllama.version()} for this CPU: edgekit devices cross-build FOLDER, then edgekit"
        " devices setup with --llama-library FOLDER"
    )


def copy_package(out: Path) -> None:
    """Copy the Python code of the llama-cpp-python that is installed here, without its library.

    Raises EdgekitError where it is not installed.
    """
    libllama.version()
    found = importlib.util.find_spec(MODULE)
    assert found is not None and found.origin is not None  # noqa: PT018
    shutil.copytree(
        Path(found.origin).parent, out / MODULE, ignore=shutil.ignore_patterns("lib", "server", "__pycache__")
    )


def libraries(folder: Path) -> list[Path]:
    """Each library in a folder once, by the shortest of its names: builds have libggml.so and, beside it, libggml.so.0."""
    names = sorted((path.name for path in folder.glob("*.so*")), key=len, reverse=True)
    return [folder / name for _, name in sorted({name.partition(".so")[0]: name for name in names}.items())]


def variables(folder: Path, there: str) -> dict[str, str]:
    """What says on the device that this folder, there at that path, is llama.cpp's library."""
    return {FOLDER: there, **backend(folder, there)}


def backend(folder: Path, there: str) -> dict[str, str]:
    """What names the part for the CPU, where a library does not find it by itself.

    Many builds, those of llama.cpp's own releases too, load their part for the CPU when they start, which GGML_BACKEND_PATH names
    (`ggml_backend_load_all` in ggml/src/ggml-backend-reg.cpp); in others libggml is linked to it.
    """
    part, linked = folder / "libggml-cpu.so", b"libggml-cpu.so" in (folder / "libggml.so").read_bytes()
    return {"GGML_BACKEND_PATH": f"{there}/{part.name}"} if part.is_file() and not linked else {}


def check_library(device: SshDevice, folder: Path) -> None:
    """Refuse a folder without libllama (EdgekitError), and one that the device's CPU cannot run (DeviceFailed)."""
    for name in ("libllama.so", "libggml.so"):
        if not (folder / name).is_file():
            raise EdgekitError(f"{folder}: no {name} in it; make such a folder: edgekit devices cross-build {folder}")
    arch = str(device.hello.get("arch"))
    if instructions.is_for_arm(folder / "libllama.so") != (arch == "aarch64"):
        raise EdgekitError(f"{folder}: libllama.so is not for {arch}, which {device.identity} is; {remedy()}")
    facts = device.facts()
    features = facts["features"]
    assert isinstance(features, list)
    lacking = instructions.missing(libraries(folder), [str(name) for name in features])
    if arch == "aarch64" and lacking:
        raise DeviceFailed(
            f"{device.identity}: {facts['cpu']} cannot run {folder} (SIGILL): {'; '.join(lacking)}, which this CPU has not;"
            " take a build for it: edgekit devices cross-build FOLDER --variant armv8-a, then edgekit devices setup"
            f" {device.identity} --llama-library FOLDER"
        )


def compile_there(
    device: SshDevice,
    out: Path,
    fetch: Callable[[Mapping[str, object], Sequence[str], Path], None],
    progress: Progress,
) -> None:
    """Compile libllama with the device's own compiler, for its own CPU, and bring the library here.

    fetch: `setup.fetch_wheels`, for cmake where the device has none. Raises DeviceFailed where it has no compiler, or that fails.
    """
    found = device.run([device.interpreter, "-c", _FIND], timeout_s=60).stdout.split()
    compilers, cmake = found[:2], found[2] if len(found) == 3 else "-"
    if len(found) != 3 or "-" in compilers:
        raise DeviceFailed(
            f"{device.identity}: no C++ compiler there to make llama.cpp's library with; install one there (sudo apt install"
            f" g++), or {remedy()}"
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        source, tools = Path(scratch, "source"), Path(scratch, "tools")
        progress(0, 0, f"fetching the source of llama-cpp-python {libllama.version()}")
        libllama.fetch_source(source)
        if cmake == "-":
            fetch(device.hello, [f"cmake=={metadata.version('cmake')}"], tools)
            cmake = f"{device.push(tools)}/cmake/data/bin/cmake"
        there = device.push(source)
    memory, cores = device.facts()["memory_mb"], device.facts()["cores"]
    assert isinstance(memory, int) and isinstance(cores, int)  # noqa: PT018
    jobs = max(1, min(cores, memory // _JOB_MB))
    build = f"{device.work}/build"
    progress(0, 0, f"compiling libllama there, {jobs} at once: minutes on a Raspberry Pi 5, longer on smaller ones")
    for command in (
        [cmake, "-S", there, "-B", build, *libllama.SETTINGS],
        [cmake, "--build", build, "--parallel", str(jobs), "--target", "llama"],
    ):
        done = device.run(command, timeout_s=_COMPILE_S)
        if done.returncode != 0:
            raise DeviceFailed(
                f"{device.identity}: libllama cannot be compiled there: {libllama.failure(done.stderr, done.stdout)}; {remedy()}"
            )
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        device.fetch(f"{build}/{libllama.BUILT}", Path(scratch, "made"))
        libllama.collect(Path(scratch, "made"), out)
