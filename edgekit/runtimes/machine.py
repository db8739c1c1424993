"""The machine at hand: what it is (`describe`), how fast it is (`measure`), and this process's peak memory.

Nothing here fails where a system does not tell something: it is None, or absent from a list.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Protocol, TypedDict

from edgekit.runtimes.control_groups import limit_cores
from edgekit.runtimes.files import read_file
from edgekit.runtimes.onnxruntime.throughput import accelerator_speed, dispatch_us, throughput
from edgekit.runtimes.openvino.throughput import own_speeds
from edgekit.runtimes.timing import fastest, worked

# MIDR implementer and part of the cores that targets name (Linux, arch/arm64/include/asm/cputype.h).
ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
}
_ARCHES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
# What runs programs of the other natively.
_FAMILIES = {"i686": "x86_64", "i386": "x86_64", "armv7l": "aarch64", "armv8l": "aarch64", "armv6l": "aarch64"}
# sysctl's name of a feature -> Linux's, where both have one.
_MAC_FEATURES = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
}
_MIB = 1 << 20
_SYSTEM = Path("/")
_COPY_BYTES = 128 * _MIB
# Less is read in the time that NumPy takes to begin.
_READ_BYTES, _READ_S = _MIB // 4, 0.05

# The features that decide which matrix product runs, as Linux names them.
KERNEL_FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
    *("simd128", "relaxed-simd"),
)


class _Emulated(TypedDict, total=False):
    """emulator: what runs programs in place of a CPU of this arch, where the system gives it away; see `emulation` too."""

    emulator: str


class Machine(_Emulated):
    """What a machine is. memory_mb: MiB, 0 where nobody tells; features: as Linux names them."""

    arch: str
    cpu: str
    part: str | None
    cores: int
    features: list[str]
    memory_mb: int
    clock_ghz: float | None
    governor: str | None
    system: str
    python: str


class _Told(TypedDict, total=False):
    """What a system tells of that; nothing where it is empty."""

    cpu: str | None
    part: str | None
    cores: int | None
    features: list[str]
    memory_mb: int | None
    clock_ghz: float | None
    governor: str


class _Kernel(Protocol):
    """kernel32.dll, of which is asked."""

    def GlobalMemoryStatusEx(self, status: object) -> int: ...  # noqa: N802

    def GetCurrentProcess(self) -> int: ...  # noqa: N802

    def K32GetProcessMemoryInfo(self, process: object, counters: object, size: int) -> int: ...  # noqa: N802


def saturates(arch: str, features: Sequence[str]) -> bool | None:
    """Whether INT8 products add up in 16 bits, so that 8-bit weights saturate (x86 with VPMADDUBSW and without VNNI).

    None where an x86 system tells no features (Windows). 255 x 127 x 2 = 64,770 exceeds 32,767; 7-bit weights fit:
    onnxruntime's "Quantize ONNX models", "when to use reduce-range".
    """
    if arch != "x86_64":
        return False
    # macOS spells avx512_vnni without the underscore.
    return not {"avx512vnni", "avxvnni"} & {name.replace("_", "") for name in features} if features else None


def describe() -> Machine:
    """What the machine is: arch, cpu, part, cores, features, memory_mb (MiB), clock_ghz, governor, system, python.

    Two calls give the same, so that it can name a device.
    """
    arch = platform.machine().lower()
    tell = {"Linux": _describe_linux, "Darwin": _describe_mac, "Windows": _describe_windows}.get(platform.system())
    told: _Told = tell() if tell is not None else {}
    machine: Machine = {
        "arch": _ARCHES.get(arch, arch),
        "cpu": told.get("cpu") or platform.processor() or arch,
        "part": told.get("part") or None,
        "cores": told.get("cores") or os.cpu_count() or 1,
        "features": told.get("features") or [],
        "memory_mb": told.get("memory_mb") or 0,
        "clock_ghz": told.get("clock_ghz") or None,
        "governor": told.get("governor") or None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if emulator := _emulator(machine["arch"]):
        machine["emulator"] = emulator
    return machine


def describe_files(root: Path, *, arch: str, cores: int, memory_mb: int, system: str) -> Machine:
    """The same of a Linux (or an Android) whose files of /proc and /sys were brought to `root`; what those do not tell is given.

    cores: the logical ones that a program gets there.
    """
    told, arch = _describe_files(root), _ARCHES.get(arch, arch)
    machine: Machine = {
        "arch": arch,
        "cpu": told.get("cpu") or arch,
        "part": told.get("part"),
        "cores": _count_cores(read_file(root / "proc/cpuinfo"), cores),
        "features": told.get("features") or [],
        "memory_mb": memory_mb,
        "clock_ghz": told.get("clock_ghz"),
        "governor": told.get("governor") or None,
        "system": system,
        "python": "",
    }
    if emulator := _emulator(arch, root):
        machine["emulator"] = emulator
    return machine


def _emulator(arch: str, root: Path = _SYSTEM) -> str | None:
    """What runs programs of this arch in place of such a CPU; None where the system does not tell of any.

    qemu's user mode hands on the kernel's files: /proc/sys/kernel/arch is the kernel's own (Linux 6.1,
    https://docs.kernel.org/admin-guide/sysctl/kernel.html#arch). Rosetta tells it itself (sysctl.proc_translated).
    """
    kernel = read_file(root / "proc/sys/kernel/arch")
    if kernel and _FAMILIES.get(kernel, kernel) != _FAMILIES.get(arch, arch):
        return f"programs for {arch} on a kernel for {kernel}"
    if root == _SYSTEM and platform.system() == "Darwin" and _sysctl("sysctl.proc_translated") == "1":
        return "programs for x86_64 on Apple silicon (Rosetta)"
    return None


def _describe_linux() -> _Told:
    return {
        **_describe_files(_SYSTEM),
        "cores": _count_cores(read_file("/proc/cpuinfo"), available_cores()),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB,
    }


def _describe_files(root: Path) -> _Told:
    text = read_file(root / "proc/cpuinfo")
    fields = {
        key: _field(text, key) for key in ("model name", "flags", "Features", "CPU implementer", "CPU part", "Model")
    }
    implementer, part = fields["CPU implementer"], fields["CPU part"]
    arm = ARM_PARTS.get((int(implementer, 16), int(part, 16))) if implementer and part else None
    first = root / "sys/devices/system/cpu/cpu0/cpufreq"
    clock = read_file(first / "cpuinfo_max_freq")
    return {
        "cpu": arm or fields["model name"] or fields["Model"],
        "part": f"{implementer}/{part}" if implementer and part else None,
        "features": sorted((fields["flags"] or fields["Features"] or "").split()),
        "clock_ghz": int(clock) / 1e6 if clock.isdigit() else None,
        "governor": read_file(first / "scaling_governor"),
    }


def available_cores() -> int:
    """The logical cores that this process may use: those of its affinity, and no more than its container's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = limit_cores()
    return cores if limit is None else min(cores, max(1, ceil(limit)))


def count_threads() -> int:
    """What bits depend on that are summed up: physical cores that this process may use, at least 1; OMP_NUM_THREADS where it is
    set."""
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(asked) > 0:
        return int(asked)
    return max(1, min(int(describe()["cores"]), available_cores()))


def _count_cores(cpuinfo: str, mine: int) -> int:
    """The physical cores of `mine` logical ones."""
    sockets = re.findall(r"^physical id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    # Virtual machines may number every core 0.
    real = len(set(zip(sockets, cores, strict=False)))
    return min(mine, real) if real > 1 else mine


def _describe_mac() -> _Told:
    memory, clock = _sysctl("hw.memsize"), _sysctl("hw.cpufrequency_max")
    features = [name for key, name in _MAC_FEATURES.items() if _sysctl(key) == "1"]
    features += (_sysctl("machdep.cpu.features") + " " + _sysctl("machdep.cpu.leaf7_features")).lower().split()
    cores = _sysctl("hw.physicalcpu")
    return {
        "cpu": _sysctl("machdep.cpu.brand_string"),
        "cores": int(cores) if cores.isdigit() else None,
        "features": sorted(features),
        "memory_mb": int(memory) // _MIB if memory.isdigit() else None,
        "clock_ghz": int(clock) / 1e9 if clock.isdigit() else None,
    }


def _describe_windows() -> _Told:
    class Memory(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "free", "page_total", "page_free", "virtual_total", "virtual_free", "extended")
        ]

    memory = Memory(length=ctypes.sizeof(Memory))
    kernel = _kernel()
    told = kernel is not None and kernel.GlobalMemoryStatusEx(ctypes.byref(memory))
    return {
        "cpu": os.environ.get("PROCESSOR_IDENTIFIER"),
        "memory_mb": int(memory.total) // _MIB if told else None,
    }


def peak_memory_mb() -> float | None:
    """The largest resident size of this process so far, in MiB; None where the system does not tell."""
    # ru_maxrss also counts the parent before exec, VmHWM does not (Linux, proc(5)).
    high = re.search(r"^VmHWM:\s*(\d+) kB$", read_file("/proc/self/status"), re.MULTILINE)
    if high:
        return int(high.group(1)) / 1024
    if platform.system() == "Windows":
        return _peak_windows()
    try:
        import resource
    except ModuleNotFoundError:
        return None
    # getrusage(2): bytes on macOS, kilobytes elsewhere.
    unit = _MIB if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _peak_windows() -> float | None:
    class Counters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS of the Windows API."""

        _fields_ = [("size", ctypes.c_ulong), ("faults", ctypes.c_ulong)] + [
            (name, ctypes.c_size_t)
            for name in ("peak", "now", "peak_paged", "paged", "peak_nonpaged", "nonpaged", "file", "peak_file")
        ]

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel = _kernel()
    if kernel is None:
        return None
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    told = kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size)
    return int(counters.peak) / _MIB if told else None


def _kernel() -> _Kernel | None:
    """Windows' kernel32, None on other systems."""
    kernel: _Kernel | None = getattr(getattr(ctypes, "windll", None), "kernel32", None)
    return kernel


def load_average() -> float | None:
    """How many threads wanted a core in the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def measure(*, accelerated: bool = False) -> dict[str, float]:
    """How fast the machine is: bandwidth_gbs, and with onnxruntime fp32_gflops and int8_gops; about a second, at most 256 MiB.

    accelerated: also an accelerator's gpu_copy_gbs and gpu_fp16_gflops, where onnxruntime has a provider for it.
    """
    return {"bandwidth_gbs": bandwidth_gbs(), **throughput(), **(accelerator_speed() if accelerated else {})}


def measure_roof(runtime: str, weights: int, threads: int) -> dict[str, float]:
    """What bounds a call beside its products: read_gbs of so many bytes of weights, and dispatch_us of a runtime that tells it.

    Of OpenVINO also its own products', own_fp32_gflops and own_int8_gops.
    """
    found = {"read_gbs": read_gbs(threads, weights)} if weights else {}
    if runtime == "openvino":
        return {**found, **own_speeds()}
    return {**found, "dispatch_us": dispatch_us()} if runtime == "onnxruntime" else found


def read_gbs(threads: int = 1, size: int | None = None) -> float:
    """Bytes that so many threads read at once, in 10^9 per second; the best of several.

    size: bytes of what is read again and again, as the weights of a model are: what fits a cache is read from there. None: more
    than any cache holds. One thread's time is that of its processor, as in `bandwidth_gbs`.
    """
    import numpy as np

    most = _copy_bytes()
    asked = most if size is None else max(min(size, most), _READ_BYTES)
    parts = np.split(np.ones(asked // 8 // threads * threads, dtype=np.uint64), threads)
    total, spell_s = sum(part.nbytes for part in parts), None if size is None else _READ_S
    if threads == 1:
        return total / worked(parts[0].max, spell_s) / 1e9
    with ThreadPoolExecutor(threads) as pool:
        return total / fastest(lambda: list(pool.map(lambda part: part.max(), parts)), spell_s) / 1e9


def _copy_bytes() -> int:
    """Of a buffer that is larger than the caches, and small on a board with little memory."""
    memory = int(describe()["memory_mb"]) * _MIB or _COPY_BYTES
    return min(_COPY_BYTES, memory // 16)


def bandwidth_gbs(threads: int = 1) -> float:
    """Bytes read plus bytes written by copies in so many threads at once, in 10^9 per second; the best of several.

    One thread's are counted by the processor time that it takes, so that other programs' turns do not count.
    """
    import numpy as np

    source = np.ones(_copy_bytes() // threads * threads, dtype=np.uint8)
    sink = np.zeros_like(source)
    pairs = list(zip(np.split(sink, threads), np.split(source, threads), strict=True))
    if threads == 1:
        return 2 * len(source) / worked(lambda: np.copyto(sink, source)) / 1e9
    with ThreadPoolExecutor(threads) as pool:
        # NumPy lets go of the interpreter's lock while it copies.
        return 2 * len(source) / fastest(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs))) / 1e9


def _field(text: str, key: str) -> str | None:
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else None


def _sysctl(name: str) -> str:
    return _output(["/usr/sbin/sysctl", "-n", name])


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
