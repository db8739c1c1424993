"""FAULTS: why an execution provider does not take the work, by what onnxruntime says, and the line that mends it.

Its words are recorded from real failures (benchmarks/gpu_environments.py makes them again); the numbers are those of cudaError_t
(docs.nvidia.com, "CUDA Runtime API", error types).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgekit.runtimes.fault import Fault, Known, find
from edgekit.runtimes.onnxruntime.library import CPU, CUDA, DIRECTML, PACKAGE, TENSORRT, WEBGPU

# The oldest Linux drivers that run CUDA's major versions (docs.nvidia.com, "CUDA Compatibility", minor version compatibility).
_DRIVERS = {"11": "450", "12": "525", "13": "580"}


_LIBRARIES = 'run: pip install --upgrade "onnxruntime-gpu[cuda,cudnn]"'
_DRIVER = (
    "install NVIDIA's driver, {driver} or newer, and start again; in a container, run it with the GPU (docker run --gpus all,"
    " NVIDIA Container Toolkit on the host)"
)
# The first that matches, of the provider.
FAULTS: Mapping[str, Sequence[Known]] = {
    CUDA: (
        Known(
            pattern=r"(libcuda\.so\.1|nvcuda\.dll)\b.*(cannot open|not found|missing)",
            what="this machine shows no NVIDIA driver",
            remedy=_DRIVER,
        ),
        Known(
            pattern=r"(?P<library>[\w.+-]+\.(so|dll)[\w.]*): (file too short|invalid ELF header|.*truncated)",
            what="{library} is damaged",
            remedy='run: pip install --force-reinstall --no-cache-dir "onnxruntime-gpu[cuda,cudnn]"',
        ),
        Known(
            pattern=r"(?P<library>lib\w+\.so\.\d+): .*(undefined symbol|version .* not found)",
            what="{library} does not fit the others: libraries of several CUDA versions are mixed",
            remedy=_LIBRARIES + ", and take older CUDA folders out of LD_LIBRARY_PATH",
        ),
        Known(
            pattern=r"(?P<library>(lib)?cudnn\w*(\.so\.\d+|64_\d+\.dll)).*cannot open",
            what="cuDNN is missing",
            remedy=_LIBRARIES,
        ),
        Known(
            pattern=r"with error: (?P<library>lib\w+\.so\.\d+): cannot open",
            what="{library} is missing, a library of CUDA {cuda}",
            remedy=_LIBRARIES,
        ),
        Known(
            pattern=r"Failed to load (library )?(?P<library>\w+\.dll)|(?P<other>\w+\.dll).* (is|which is) missing",
            what="a library of CUDA {cuda} is missing",
            remedy=_LIBRARIES,
        ),
        Known(
            pattern=r"CUDA failure (35|36|222):",
            what="the NVIDIA driver is too old for CUDA {cuda}",
            remedy="update NVIDIA's driver to {driver} or newer (nvidia-smi shows which one is there), and start again",
        ),
        Known(
            pattern=r"CUDA failure (100|101):",
            what="the driver is there and finds no GPU",
            remedy=(
                "look whether nvidia-smi lists it and CUDA_VISIBLE_DEVICES does not hide it; in a container, run it with the GPU"
                " (docker run --gpus all)"
            ),
        ),
        Known(
            pattern=r"CUDA failure 34:",
            what="a stub stands where NVIDIA's driver should be",
            remedy="take CUDA's folder `stubs` out of LD_LIBRARY_PATH, and install the driver, {driver} or newer",
        ),
        Known(
            pattern=r"CUDA failure (803|804):",
            what="driver and library do not fit: after an update the old driver still runs, or this GPU takes no newer CUDA",
            remedy="restart the machine; should it stay, install the driver {driver} or newer",
        ),
        Known(
            pattern=r"CUDA failure 2:|out of memory",
            what="the GPU's memory is full",
            remedy="end what else runs there (nvidia-smi lists it), or take a smaller student or scheme",
        ),
        Known(
            pattern=r"CUDA failure (209|98|8):",
            what="this build has no code for this GPU",
            remedy='take another runtime: format = "gguf" on llama.cpp, or provider = "WebGpuExecutionProvider"',
        ),
        Known(
            pattern=r"CUDA failure \d+:",
            what="CUDA does not start",
            remedy="restart the machine and look at nvidia-smi; the number is one of NVIDIA's cudaError_t",
        ),
    ),
    WEBGPU: (
        Known(
            pattern=r"below the minimum required version",
            what="onnxruntime is too old for the plug-in",
            remedy="run: pip install --upgrade onnxruntime",
        ),
        Known(
            pattern=r"finds no device|WebGPU adapter",
            what="no GPU that Vulkan (Windows: Direct3D 12) shows",
            remedy=(
                "install the GPU's driver and Vulkan's loader (Debian, Ubuntu: apt-get install libvulkan1 mesa-vulkan-drivers;"
                " vulkaninfo --summary then lists the GPU)"
            ),
        ),
    ),
}


def explain(
    provider: str,
    words: Sequence[str],
    *,
    available: Sequence[str] = (),
    built_for: str | None = None,
    other: Sequence[str] = (),
) -> Fault:
    """Why a provider did not take the work of a session.

    words: what onnxruntime said; available: the providers of the installation; built_for: its major version of CUDA; other:
    libraries that are there in another major version.
    """
    if available and provider not in available:
        return _absent(provider, available)
    kind = CUDA if provider == TENSORRT else provider
    driver = _DRIVERS.get(built_for or "13", _DRIVERS["13"])
    if found := find(FAULTS.get(kind, ()), words, cuda=built_for or "its own", driver=driver):
        stem = found.library.partition(".so.")[0]
        near = [name for name in other if stem and name.partition(".so.")[0] == stem]
        if not near:
            return found
        return replace(
            found,
            what=f"{found.what}; {', '.join(near)} is here, of another CUDA",
            remedy=f"{found.remedy} (CUDA {built_for}, which wants the driver {driver} or newer)",
        )
    first = next(iter(words), "")
    return Fault(
        what=f"{provider} takes none of the work",
        words=first,
        remedy=(
            "what onnxruntime says is all that is known; look at the provider's page on onnxruntime.ai, or take provider ="
            f' "{CPU}"'
            if first
            else "it starts without a word and lacks the operators or their types: export another scheme (fp16 for GPUs)"
        ),
    )


def install_line(provider: str) -> str | None:
    """What brings a provider; None where no distribution is known to."""
    if plugin := PACKAGE.plugin_for(provider):
        return f"pip install {plugin}"
    build = PACKAGE.build_for(provider)
    if build is None:
        return None
    libraries = "[cuda,cudnn]" if provider in {CUDA, TENSORRT} else ""
    return f'pip uninstall --yes {PACKAGE.name} && pip install "{build}{libraries}"'


def _absent(provider: str, available: Sequence[str]) -> Fault:
    line = install_line(provider)
    there = ", ".join(available)
    if provider == DIRECTML:
        line = f"{line} (Windows only)"
    return Fault(
        what=f"this onnxruntime has no {provider} (it has {there})",
        words="",
        remedy=f"run: {line}"
        if line
        else "no package that edgekit knows has it; `[runtime.onnxruntime]` names the provider",
    )
