"""Goals: each of the broken GPU environments is told apart, in the engine's own words, with the line that mends it: 0 silent,
0 tracebacks, no two with one message.

    python benchmarks/gpu_environments.py [--json] [--record FILE] [--packages FOLDER]

Real ones, on a machine without an NVIDIA GPU: the onnxruntime-gpu wheel with NVIDIA's own libraries (1.6 GB, which pip
downloads to --packages once), each taken away, damaged or of another CUDA; a libcuda.so.1 that answers as a driver without a
GPU, an old one or a stub does, which NVIDIA's runtime then says in its own words; the WebGPU plug-in without a device;
llama.cpp whose library misses CUDA, the driver or Vulkan, or was built for another CPU. --record writes what the engines said:
the tests replay it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.devices import LocalDevice
from edgekit.probes.proof import ask
from edgekit.runtimes.proof import Proof, fault

HOUSE = Path(__file__).resolve().parents[1]
CUDA = {"provider": "CUDAExecutionProvider"}
LIBRARIES = (
    *("nvidia-cublas", "nvidia-cuda-runtime", "nvidia-curand", "nvidia-cufft"),
    *("nvidia-cuda-nvrtc", "nvidia-nvjitlink", "nvidia-cudnn-cu13"),
)
WHEELS = ["onnxruntime-gpu==1.31.1", "onnxruntime-ep-webgpu==0.4.0", *LIBRARIES]
# What NVIDIA's runtime asks a driver first; every other function answers the same.
DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return CODE; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuTensorMapEncodeTiled(void) { return CODE; }
static int other(void) { return CODE; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, int *status) {
    *found = (void *)other;
    if (!strcmp(name, "cuInit")) *found = (void *)cuInit;
    if (!strcmp(name, "cuDriverGetVersion")) *found = (void *)cuDriverGetVersion;
    if (!strcmp(name, "cuGetProcAddress")) *found = (void *)cuGetProcAddress_v2;
    if (status) *status = 0;
    return 0;
}
int cuGetProcAddress(const char *name, void **found, int version, unsigned long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
"""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One machine: what it is, the runtime and options that are asked of it, and how it is made: folders for PYTHONPATH, and
    variables."""

    name: str
    runtime: str
    options: dict[str, object]
    make: Callable[[Path, Path], list[Path]]
    variables: Callable[[Path], dict[str, str]] = field(default=lambda _: {})


def unpack(packages: Path) -> None:
    """Download what is not there yet, each wheel unpacked into a folder of its own."""
    for wheel in WHEELS:
        folder = packages / wheel.partition("==")[0]
        if folder.is_dir():
            continue
        with tempfile.TemporaryDirectory(dir=packages) as scratch:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, wheel]
            subprocess.run(download, check=True)
            made = Path(scratch) / "made"
            shutil.unpack_archive(next(Path(scratch).glob("*.whl")), made, "zip")
            made.rename(folder)


def gpu_build(out: Path, packages: Path, *, libraries: Sequence[str] = ()) -> list[Path]:
    """A folder of packages with onnxruntime-gpu and some of NVIDIA's, as links."""
    for name in ("onnxruntime-gpu", *libraries):
        for path in (packages / name).rglob("*"):
            if path.is_file():
                link = out / path.relative_to(packages / name)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
    return [out]


def with_all(out: Path, packages: Path, *, without: str = "") -> list[Path]:
    return gpu_build(out, packages, libraries=[name for name in LIBRARIES if name != without])


def without_file(out: Path, packages: Path, *, name: str, instead: bytes | None = None) -> list[Path]:
    """All libraries but one file, which is absent, or has other content."""
    found = with_all(out, packages)
    file = next(out.rglob(name))
    file.unlink()
    if instead is not None:
        file.write_bytes(instead)
    return found


def other_cuda(out: Path, packages: Path) -> list[Path]:
    """CUDA 12's libraries beside a build for CUDA 13: where pip puts them, by name."""
    found = gpu_build(out, packages)
    for name in ("cublas/lib/libcublasLt.so.12", "cublas/lib/libcublas.so.12"):
        file = out / "nvidia" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        compile_library(file, "int nothing;")
    return found


def both_builds(out: Path, packages: Path) -> list[Path]:
    """onnxruntime-gpu over which onnxruntime was installed: pip's records of both, and the files of the second."""
    installed = Path(str(importlib.util.find_spec("onnxruntime").origin)).parent  # type: ignore[union-attr]
    (out / "onnxruntime").symlink_to(installed)
    for source in (packages / "onnxruntime-gpu", installed.parent):
        for record in source.glob("onnxruntime*.dist-info"):
            (out / record.name).symlink_to(record)
    return [out]


def compile_library(file: Path, source: str, *options: str) -> None:
    command = ["cc", "-w", "-shared", "-fPIC", "-x", "c", "-", "-o", str(file), *options]
    subprocess.run(command, input=source.encode(), check=True)


def driver(out: Path, *, code: int, version: int = 13000) -> dict[str, str]:
    """The variables of a machine whose driver answers every call with an error of CUDA's."""
    folder = out / "driver"
    folder.mkdir()
    compile_library(folder / "libcuda.so.1", DRIVER, f"-DCODE={code}", f"-DVERSION={version}")
    return {"LD_LIBRARY_PATH": str(folder)}


def llama(out: Path, _packages: Path, *, missing: str = "", source: str = "int nothing;") -> list[Path]:
    """llama_cpp with another libllama.so: one that needs a library that is not there, or whose code this CPU does not run."""
    installed = Path(str(importlib.util.find_spec("llama_cpp").origin)).parent  # type: ignore[union-attr]
    package = out / "llama_cpp"
    shutil.copytree(installed, package, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    (package / "lib").mkdir()
    needs: list[str] = []
    if missing:
        absent = out / "absent"
        absent.mkdir()
        compile_library(absent / missing, "int needed(void) { return 0; }", f"-Wl,-soname,{missing}")
        needs = [f"-L{absent}", f"-l:{missing}"]
        source = "int needed(void); int call(void) { return needed(); }"
    compile_library(package / "lib" / "libllama.so", source, *needs)
    shutil.rmtree(out / "absent", ignore_errors=True)
    return [out]


def nothing(_out: Path, _packages: Path) -> list[Path]:
    return []


def plugin(_out: Path, packages: Path) -> list[Path]:
    return [packages / "onnxruntime-ep-webgpu"]


def _lacks(name: str) -> Callable[[Path, Path], list[Path]]:
    return lambda out, packages: without_file(out, packages, name=name)


def _llama(**how: str) -> Callable[[Path, Path], list[Path]]:
    return lambda out, packages: llama(out, packages, **how)


def _answers(code: int, version: int = 13000) -> Callable[[Path], dict[str, str]]:
    return lambda out: driver(out, code=code, version=version)


_ORT, _LLAMA, _GPU = "onnxruntime", "llama-cpp", {"gpu_layers": -1}
_TRAP = "__attribute__((constructor)) static void start(void) { __builtin_trap(); }"
ENVIRONMENTS: tuple[Environment, ...] = (
    Environment(name="CPU-only onnxruntime", runtime=_ORT, options={**CUDA}, make=nothing),
    Environment(name="both builds of onnxruntime", runtime=_ORT, options={**CUDA}, make=both_builds),
    Environment(name="no CUDA library", runtime=_ORT, options={**CUDA}, make=gpu_build),
    Environment(name="cuBLAS missing", runtime=_ORT, options={**CUDA}, make=_lacks("libcublas.so.13")),
    Environment(name="cuRAND missing", runtime=_ORT, options={**CUDA}, make=_lacks("libcurand.so.10")),
    Environment(name="CUDA 12 under a build for 13", runtime=_ORT, options={**CUDA}, make=other_cuda),
    Environment(
        name="a damaged library",
        runtime=_ORT,
        options={**CUDA},
        make=lambda out, packages: without_file(out, packages, name="libcublasLt.so.13", instead=b"\x7fELF"),
    ),
    Environment(name="no driver", runtime=_ORT, options={**CUDA}, make=with_all),
    Environment(name="no device", runtime=_ORT, options={**CUDA}, make=with_all, variables=_answers(100)),
    Environment(name="driver too old", runtime=_ORT, options={**CUDA}, make=with_all, variables=_answers(100, 12020)),
    Environment(name="a stub for a driver", runtime=_ORT, options={**CUDA}, make=with_all, variables=_answers(34)),
    Environment(
        name="driver of another version", runtime=_ORT, options={**CUDA}, make=with_all, variables=_answers(803)
    ),
    Environment(
        name="DirectML outside Windows", runtime=_ORT, options={"provider": "DmlExecutionProvider"}, make=nothing
    ),
    Environment(name="no WebGPU plug-in", runtime=_ORT, options={"provider": "WebGpuExecutionProvider"}, make=nothing),
    Environment(
        name="WebGPU without a GPU", runtime=_ORT, options={"provider": "WebGpuExecutionProvider"}, make=plugin
    ),
    Environment(name="llama.cpp for the CPU", runtime=_LLAMA, options={**_GPU}, make=nothing),
    Environment(
        name="llama.cpp without its CUDA", runtime=_LLAMA, options={**_GPU}, make=_llama(missing="libcudart.so.12")
    ),
    Environment(
        name="llama.cpp without a driver", runtime=_LLAMA, options={**_GPU}, make=_llama(missing="libcuda.so.1")
    ),
    Environment(
        name="llama.cpp without Vulkan", runtime=_LLAMA, options={**_GPU}, make=_llama(missing="libvulkan.so.1")
    ),
    Environment(name="llama.cpp of no use", runtime=_LLAMA, options={**_GPU}, make=_llama()),
    Environment(name="llama.cpp for another CPU", runtime=_LLAMA, options={**_GPU}, make=_llama(source=_TRAP)),
)


@contextmanager
def planted(environment: Environment, packages: Path) -> Iterator[None]:
    """This process's variables as on that machine, for its children."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        out = Path(scratch)
        folders = environment.make(out, packages)
        path = os.pathsep.join(map(str, [*folders, HOUSE]))
        before = dict(os.environ)
        os.environ.update({"PYTHONPATH": path, **environment.variables(out)})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def prove(environment: Environment, packages: Path) -> Proof:
    """What the engine there says of itself."""
    with planted(environment, packages), LocalDevice({}) as device:
        return ask(device, environment.runtime, environment.options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object instead of the table")
    parser.add_argument("--record", type=Path, help="a file for what the engines said")
    parser.add_argument(
        "--packages", type=Path, default=Path.home() / ".cache/edgekit-tests/gpu", help="where wheels are kept"
    )
    asked = parser.parse_args()
    asked.packages.mkdir(parents=True, exist_ok=True)
    unpack(asked.packages)
    proofs = {environment.name: prove(environment, asked.packages) for environment in ENVIRONMENTS}
    found = {environment.name: fault(environment.runtime, proofs[environment.name]) for environment in ENVIRONMENTS}
    if asked.record:
        text = re.sub(r"/[\w/.-]*/edgekit-\w+", "/site-packages", json.dumps(proofs, indent=1, sort_keys=True))
        asked.record.write_text(text + "\n", encoding="utf-8")
    silent = [name for name, one in found.items() if one is None]
    told = [one.what for one in found.values() if one is not None]
    goals = {
        "environments": len(found) >= 12,
        "silent": not silent,
        "own messages": len(set(told)) == len(told),
        "tracebacks": not any("Traceback" in str(one) for one in found.values()),
    }
    if asked.json:
        print(json.dumps({"goals": goals, "faults": {name: str(one) for name, one in found.items()}}, indent=1))
    else:
        for name, one in found.items():
            print(f"{name:28} {one or 'SILENT'}")
        print("; ".join(f"{name}: {'met' if met else 'MISSED'}" for name, met in goals.items()))
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
