"""libllama, llama.cpp's library, for a device: compiled here with Debian's cross compiler, or there with the device's own.

Its source is in the sdist of the very llama-cpp-python that is installed here: pip fetches it. That package's own Python code
opens whatever library the variable LLAMA_CPP_LIB_PATH names (`llama_cpp/_ctypes_extensions.py`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.progress import Progress, silent

PACKAGE = "llama-cpp-python"
# GGML_CPU_ARM_ARCH of ggml/src/ggml-cpu/CMakeLists.txt -> what such a build is for.
VARIANTS = {
    "armv8-a": "every 64-bit ARM core: Cortex-A53, A72 (Raspberry Pi 3, 4, Zero 2 W) and newer ones",
    "armv8.2-a+dotprod": "cores with dot products: Cortex-A76 (Raspberry Pi 5), Neoverse-N1 and newer ones",
}
LIBRARIES = ("libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu.so")
# What of llama.cpp's source the library is made of; of ggml/src the backends of GPUs are left out.
_SOURCES = ("CMakeLists.txt", "LICENSE", "cmake/", "ggml/", "include/", "licenses/", "src/", "vendor/")
_BACKEND = "ggml/src/ggml-"
# No program, test or download; libraries that find each other beside themselves. Without OpenMP: a board may lack libgomp.
SETTINGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DGGML_OPENMP=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_OPENSSL=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TOOLS", "EXAMPLES", "SERVER", "APP", "TESTS")),
)
CROSS = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_C_COMPILER={c}",
    "-DCMAKE_CXX_COMPILER={cxx}",
    "-DGGML_NATIVE=OFF",
    "-DGGML_CPU_ARM_ARCH={variant}",
)


# Where llama.cpp's own CMakeLists put libraries, in the folder of a build.
BUILT = "bin"


def version() -> str:
    """The version of llama-cpp-python that is installed here. Raises EdgekitError where it is not."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError as absent:
        raise EdgekitError(
            f'{PACKAGE} is not installed here, and a device gets the same version; run: pip install "edgekit[gguf]"'
        ) from absent


def fetch_source(out: Path, *, only: Sequence[str] = _SOURCES) -> None:
    """Unpack llama.cpp's source, as far as the library needs it, from the sdist of the installed version.

    Raises EdgekitError where pip does not find it.
    """
    wanted = f"{PACKAGE}=={version()}"
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = _run([*command, "--no-binary", PACKAGE, "--dest", scratch, wanted])
        archives = list(Path(scratch).glob("*.tar.gz"))
        if done.returncode != 0 or not archives:
            raise EdgekitError(
                f"{wanted}: pip does not fetch its source: {failure(done.stderr, done.stdout)}; look at this machine's network"
            )
        with tarfile.open(archives[0]) as archive:
            for entry in archive:
                inside = entry.name.partition("/vendor/llama.cpp/")[2]
                backend = inside.startswith(_BACKEND) and "/" in inside.removeprefix(_BACKEND)
                if inside.startswith(tuple(only)) and (not backend or inside.startswith(f"{_BACKEND}cpu/")):
                    entry.name = inside
                    archive.extract(entry, out, filter="data")


def cross_build(out: Path, *, variant: str, progress: Progress = silent) -> None:
    """Compile libllama for aarch64 Linux into a new folder: about two minutes of one core.

    variant: a key of VARIANTS. Raises EdgekitError where a tool is missing, or the compiler fails.
    """
    if out.exists():
        raise EdgekitError(f"{out}: exists already; name a new folder, or remove it")
    compilers = {key: _tool(f"aarch64-linux-gnu-{name}") for key, name in {"c": "gcc", "cxx": "g++"}.items()}
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        source, build = Path(scratch, "source"), Path(scratch, "build")
        progress(0, 0, f"fetching the source of {PACKAGE} {version()}")
        fetch_source(source)
        settings = [*SETTINGS, *(line.format(variant=variant, **compilers) for line in CROSS)]
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        progress(0, 0, f"compiling libllama for {variant}")
        for command in (
            [_cmake(), "-S", str(source), "-B", str(build), *generator, *settings],
            [_cmake(), "--build", str(build), "--parallel", str(os.cpu_count() or 1), "--target", "llama"],
        ):
            done = _run(command)
            if done.returncode != 0:
                raise EdgekitError(f"libllama cannot be compiled for {variant}: {failure(done.stderr, done.stdout)}")
        collect(build / BUILT, out)


def collect(made: Path, out: Path) -> None:
    """Copy the libraries of a build into a new folder, each under the two names that others find it by: libggml.so and, with the
    version of its interface, libggml.so.0."""
    out.mkdir(parents=True)
    for path in made.iterdir():
        name, _, version = path.name.partition(".so")
        if f"{name}.so" in LIBRARIES and re.fullmatch(r"(\.\d+)?", version):
            shutil.copyfile(path, out / path.name)


def _tool(name: str) -> str:
    if found := shutil.which(name):
        return found
    raise EdgekitError(
        f"{name}: not installed; on Debian and Ubuntu run: sudo apt install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu"
    )


def _cmake() -> str:
    beside = Path(sys.executable).with_name("cmake")
    found = str(beside) if beside.exists() else shutil.which("cmake")
    if found is None:
        raise EdgekitError("cmake is not installed; run: pip install cmake")
    return found


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )


def failure(*said: str) -> str:
    """What a tool said of its failure: the first line that names an error, else the last one."""
    lines = [line.strip() for line in "\n".join(said).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it does not say why")[
        :300
    ]
