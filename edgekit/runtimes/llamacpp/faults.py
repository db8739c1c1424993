"""FAULTS: why llama.cpp does not load, or computes on the CPU what should be on a GPU, by what it says; and what mends it."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.runtimes.fault import Fault, Known, find
from edgekit.runtimes.llamacpp.library import GPU, PACKAGE

# Compiled here: PyPI has llama-cpp-python as source only. -DGGML_VULKAN=on runs on GPUs of every maker.
REBUILD = (
    f"CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir {PACKAGE.requirement} (it wants NVIDIA's CUDA"
    " toolkit; with the Vulkan SDK: -DGGML_VULKAN=on)"
)
FAULTS: Sequence[Known] = (
    Known(
        pattern=r"(libcuda\.so\.1|nvcuda\.dll)",
        what="this llama.cpp was built for CUDA, and this machine shows no NVIDIA driver",
        remedy="install NVIDIA's driver and start again; in a container, run it with the GPU (docker run --gpus all)",
    ),
    Known(
        pattern=r"(?P<library>lib(cudart|cublas|cublasLt)\.so\.(?P<cuda>\d+)): cannot open",
        what="this llama.cpp was built for CUDA {cuda}, and {library} is not here",
        remedy=f"install that CUDA toolkit and put its lib64 on LD_LIBRARY_PATH, or build it anew: {REBUILD}",
    ),
    Known(
        pattern=r"libvulkan\.so\.1",
        what="this llama.cpp was built for Vulkan, whose loader is not here",
        remedy="run: apt-get install libvulkan1 (and the GPU's driver)",
    ),
    Known(
        pattern=r"SIGILL",
        what="this llama.cpp was built for a newer CPU",
        remedy=f"build it here: pip install --force-reinstall --no-cache-dir --no-binary {PACKAGE.name} {PACKAGE.requirement}",
    ),
    Known(
        pattern=r"undefined symbol|Shared library with base name",
        what="llama_cpp and the library in it are of different versions",
        remedy=f"run: pip install --force-reinstall --no-cache-dir {PACKAGE.requirement}",
    ),
    Known(
        pattern=r"(?P<library>lib[\w.+-]+\.so[\w.]*): cannot open",
        what="llama.cpp does not load: {library} is not here",
        remedy=f"run: pip install --force-reinstall --no-cache-dir {PACKAGE.requirement}",
    ),
    Known(
        pattern=r"ggml_cuda_init: failed to initialize CUDA: .*(insufficient|driver version)",
        what="the NVIDIA driver is too old for the CUDA that this llama.cpp was built for",
        remedy="update NVIDIA's driver (nvidia-smi shows the CUDA that it knows), and start again",
    ),
    Known(
        pattern=r"failed to initialize CUDA|no CUDA-capable device|ggml_vulkan: No devices found",
        what="llama.cpp's backend finds no GPU",
        remedy=(
            "look whether nvidia-smi (vulkaninfo --summary) lists it and CUDA_VISIBLE_DEVICES does not hide it; in a container,"
            " run it with the GPU (docker run --gpus all)"
        ),
    ),
)


def explain(
    *, failed: str | None = None, words: Sequence[str] = (), backends: Sequence[str] = (), available: Sequence[str] = ()
) -> Fault:
    """Why llama.cpp does not compute on a GPU. failed: why it does not load at all; backends: those that it was built with."""
    said = [failed] if failed else list(words)
    if found := find(FAULTS, said):
        return found
    if failed:
        remedy = f"run: pip install --force-reinstall --no-cache-dir {PACKAGE.requirement}"
        return Fault(what="llama_cpp is installed and does not load", words=failed, remedy=remedy)
    built = [name for name in backends if name not in {"CPU", "BLAS"}]
    if built and GPU not in available:
        remedy = "install its driver, and look whether it lists the GPU (nvidia-smi, vulkaninfo --summary)"
        return Fault(what=f"llama.cpp's backend ({', '.join(built)}) finds no GPU", words="", remedy=remedy)
    if GPU not in available:
        remedy = f"build it with one: {REBUILD}"
        return Fault(what="this llama.cpp was built without a backend for GPUs", words="", remedy=remedy)
    remedy = "free the GPU's memory (nvidia-smi lists what is in it), or set fewer gpu_layers"
    return Fault(what="the GPU did not compute", words=next(iter(said), ""), remedy=remedy)
