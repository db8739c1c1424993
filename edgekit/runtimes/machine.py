"""The machine at hand: what it is (`describe`), how fast it is (`measure`), and this process's peak memory.

Nothing here fails where a system does not tell something: it is None, or absent from a list.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
_COPY_BYTES = 128 * _MIB
_SIDE = 512
_SPELL_S = 0.2
_CGROUP = "/sys/fs/cgroup"

# The features that decide which matrix product runs, as Linux names them.
KERNEL_FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def saturates(arch: str, features: Sequence[str]) -> bool | None:
    """Whether INT8 products add up in 16 bits, so that 8-bit weights saturate (x86 with VPMADDUBSW and without VNNI).

    None where an x86 system tells no features (Windows). 255 x 127 x 2 = 64,770 exceeds 32,767; 7-bit weights fit:
    onnxruntime's "Quantize ONNX models", "when to use reduce-range".
    """
    if arch != "x86_64":
        return False
    # macOS spells avx512_vnni without the underscore.
    return not {"avx512vnni", "avxvnni"} & {name.replace("_", "") for name in features} if features else None


def describe() -> dict[str, Any]:
    """What the machine is: arch, cpu, part, cores, features, memory_mb (MiB), clock_ghz, governor, system, python.

    Two calls give the same, so that it can name a device.
    """
    arch = platform.machine().lower()
    facts: dict[str, Any] = {
        "arch": _ARCHES.get(arch, arch),
        "cpu": platform.processor() or arch,
        "part": None,
        "cores": os.cpu_count() or 1,
        "features": [],
        "memory_mb": 0,
        "clock_ghz": None,
        "governor": None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    tell = {"Linux": _describe_linux, "Darwin": _describe_mac, "Windows": _describe_windows}.get(platform.system())
    if tell is not None:
        facts |= {key: value for key, value in tell().items() if value}
    return facts


def _describe_linux() -> dict[str, Any]:
    text = _read("/proc/cpuinfo")
    fields = {
        key: _field(text, key) for key in ("model name", "flags", "Features", "CPU implementer", "CPU part", "Model")
    }
    implementer, part = fields["CPU implementer"], fields["CPU part"]
    arm = ARM_PARTS.get((int(implementer, 16), int(part, 16))) if implementer and part else None
    clock = _read("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    return {
        "cpu": arm or fields["model name"] or fields["Model"],
        "part": f"{implementer}/{part}" if implementer and part else None,
        "cores": _count_cores(text),
        "features": sorted((fields["flags"] or fields["Features"] or "").split()),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB,
        "clock_ghz": int(clock) / 1e6 if clock.isdigit() else None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def available_cores() -> int:
    """The logical cores that this process may use: those of its affinity, and no more than its container's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota() or cores)


def _quota() -> int | None:
    """The cores' worth of time that the control group may take, rounded up; None where it has no limit.

    Version 2 has "quota period" in microseconds ("max": no limit), version 1 a file each (-1: no limit);
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files.
    """
    told = _read(f"{_CGROUP}/cpu.max") or " ".join(
        _read(f"{_CGROUP}/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")
    )
    quota, _, period = told.partition(" ")
    return -(-int(quota) // int(period)) if quota.isdigit() and period.isdigit() and int(period) else None


def _count_cores(cpuinfo: str) -> int:
    """Physical cores that this process may use."""
    mine = available_cores()
    sockets = re.findall(r"^physical id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    # Virtual machines may number every core 0.
    real = len(set(zip(sockets, cores, strict=False)))
    return min(mine, real) if real > 1 else mine


def _describe_mac() -> dict[str, Any]:
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


def _describe_windows() -> dict[str, Any]:
    class Memory(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "free", "page_total", "page_free", "virtual_total", "virtual_free", "extended")
        ]

    memory = Memory(length=ctypes.sizeof(Memory))
    library: Any = getattr(ctypes, "windll", None)
    told = library is not None and library.kernel32.GlobalMemoryStatusEx(ctypes.byref(memory))
    return {
        "cpu": os.environ.get("PROCESSOR_IDENTIFIER"),
        "memory_mb": int(memory.total) // _MIB if told else None,
    }


def peak_memory_mb() -> float | None:
    """The largest resident size of this process so far, in MiB; None where the system does not tell."""
    # ru_maxrss also counts the parent before exec, VmHWM does not (Linux, proc(5)).
    high = re.search(r"^VmHWM:\s*(\d+) kB$", _read("/proc/self/status"), re.MULTILINE)
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
    library: Any = getattr(ctypes, "windll", None)
    if library is None:
        return None
    process = ctypes.c_void_p(library.kernel32.GetCurrentProcess())
    told = library.kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size)
    return int(counters.peak) / _MIB if told else None


def load_average() -> float | None:
    """How many threads wanted a core in the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def measure() -> dict[str, float]:
    """How fast the machine is: bandwidth_gbs, and with onnxruntime fp32_gflops and int8_gops; about a second, at most 256 MiB."""
    return {"bandwidth_gbs": bandwidth_gbs(), **throughput()}


def bandwidth_gbs(threads: int = 1) -> float:
    """Bytes read plus bytes written by copies in so many threads at once, in 10^9 per second; the best of several."""
    import numpy as np

    # Buffers larger than the caches, and small on a board with little memory.
    memory = int(describe()["memory_mb"]) * _MIB or _COPY_BYTES
    source = np.ones(min(_COPY_BYTES, memory // 16) // threads * threads, dtype=np.uint8)
    sink = np.zeros_like(source)
    pairs = list(zip(np.split(sink, threads), np.split(source, threads), strict=True))
    if threads == 1:
        return 2 * len(source) / _fastest(lambda: np.copyto(sink, source)) / 1e9
    with ThreadPoolExecutor(threads) as pool:
        # NumPy lets go of the interpreter's lock while it copies.
        return 2 * len(source) / _fastest(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs))) / 1e9


def throughput() -> dict[str, float]:
    """fp32_gflops and int8_gops of one core: onnxruntime's products of 512 x 512 matrices, a constant one on the right.

    10^9 multiplications and additions per second; int8 is unsigned by signed, as in quantized encoders. Empty where there is no
    onnxruntime: a device that has llama.cpp alone.
    """
    import numpy as np

    try:
        import onnxruntime
    except ModuleNotFoundError:
        return {}

    numbers = np.random.default_rng(0)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    operations = 2.0 * _SIDE**3
    found = {}
    for key, operator, left, right in (
        ("fp32_gflops", "MatMul", np.float32, np.float32),
        ("int8_gops", "MatMulInteger", np.uint8, np.int8),
    ):
        a = numbers.integers(0, 64, (_SIDE, _SIDE)).astype(left)
        b = numbers.integers(-64, 64, (_SIDE, _SIDE)).astype(right)
        model = _product_model(operator, a, b)
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        found[key] = operations / _fastest(lambda session=session, a=a: session.run(None, {"a": a})) / 1e9  # type: ignore[misc]
    return found


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of the calls that fit into a short spell, the first one not counted."""
    call()
    best, end = float("inf"), time.perf_counter() + _SPELL_S
    while True:
        begun = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - begun)
        if now >= end:
            return best


# onnx.proto's numbers for element types.
_ONNX_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}


def _product_model(operator: str, a: Any, b: Any) -> bytes:
    """An ONNX model y = operator(a, b) with a constant b, written without the onnx package (which devices lack).

    Field numbers are those of onnx.proto (github.com/onnx/onnx/blob/main/onnx/onnx.proto).
    """
    result = "int32" if operator == "MatMulInteger" else "float32"

    def value(name: str, kind: str) -> bytes:
        extents = b"".join(_field_bytes(1, _field_number(1, extent)) for extent in (_SIDE, _SIDE))
        tensor = _field_number(1, _ONNX_TYPES[kind]) + _field_bytes(2, extents)
        return _field_bytes(1, name.encode()) + _field_bytes(2, _field_bytes(1, tensor))

    node = _field_bytes(1, b"a") + _field_bytes(1, b"b") + _field_bytes(2, b"y") + _field_bytes(4, operator.encode())
    constant = b"".join(_field_number(1, extent) for extent in b.shape)
    constant += _field_number(2, _ONNX_TYPES[str(b.dtype)]) + _field_bytes(8, b"b") + _field_bytes(9, b.tobytes())
    graph = _field_bytes(1, node) + _field_bytes(2, b"product") + _field_bytes(5, constant)
    graph += _field_bytes(11, value("a", str(a.dtype))) + _field_bytes(12, value("y", result))
    opset = _field_bytes(1, b"") + _field_number(2, 13)
    return _field_number(1, 8) + _field_bytes(7, graph) + _field_bytes(8, opset)


def _varint(number: int) -> bytes:
    """Protocol buffers' variable-length integer: seven bits a byte, low ones first."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return struct.pack(f"{len(parts) + 1}B", *parts, number)


def _field_number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _field_bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


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
