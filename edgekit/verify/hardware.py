"""May this machine vouch for the target's speed? And are the times possible at all?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.runtimes.emulation import emulation

if TYPE_CHECKING:
    from edgekit.runtimes.machine import Machine
    from edgekit.target import Hardware
    from edgekit.verify.measurements import Measurements

SPEEDS = {
    "bandwidth_gbs": "copy bandwidth, GB/s",
    "int8_gops": "INT8 throughput, Gop/s",
    "fp32_gflops": "fp32 throughput, GFLOP/s",
}
# What is compared of the part that does the work, where that is no CPU.
GPU_SPEEDS = {
    "gpu_copy_gbs": "the accelerator's copy bandwidth, GB/s",
    "gpu_fp16_gflops": "the accelerator's fp16 throughput, GFLOP/s",
}
# House rule 8: the same part measures within a factor of two under load and other clocks; a floor leaves a fifth.
_LIKE = 2.0
_FLOOR = 1.2
# A core's best speed in a short run may be above its measured one, by a turbo clock and by caches; not by this factor.
_IMPOSSIBLE = 2.0
# Weights below this may stay in a server's last-level cache between calls, where the copy bandwidth does not bound them.
_CACHE_BYTES = 256 << 20


def mismatches(
    hardware: Hardware, device: Machine, speed: Mapping[str, float], threads: int | None, *, on_cpu: bool = True
) -> list[str]:
    """Why the machine that measured may not vouch for the target's latency and memory; empty where it may.

    Facts are compared, of the part that did the work: the CPU's where `on_cpu`, else the accelerator's. A target for one machine
    wants its arch, cores and features, and the speeds that it states within a factor of two; the CPU's name stands in for
    speeds that it does not state. A generic target wants a machine of its arch that is at most 1.2 times as fast as the floor
    that it states. Within these tolerances `scales` says by how much the times' bounds are moved.
    """
    if device["arch"] != hardware.arch:
        return [f"arch {device['arch']}, not {hardware.arch}"]
    if not on_cpu:
        return _unlike_accelerator(hardware, speed)
    if unreal := emulation(device, speed, hardware.clock_ghz):
        return unreal
    stated = _stated(hardware, on_cpu=True)
    if hardware.generic:
        return _above_floor(hardware, stated, device, speed, threads)
    reasons = []
    if not _same_cpu(hardware.cpu, device["cpu"]) and (unstated := sorted(SPEEDS.keys() - stated)):
        reasons.append(
            f"cpu {device['cpu']}, not {hardware.cpu}, and the target does not state {', '.join(unstated)} to compare them by"
        )
    if device["cores"] != hardware.cores:
        reasons.append(f"{device['cores']} cores, not {hardware.cores}")
    if lacking := sorted(set(hardware.features) - set(device["features"])):
        reasons.append(f"without {', '.join(lacking)}")
    if not stated:
        reasons.append("the target states no measured speed (bandwidth_gbs, int8_gops, fp32_gflops)")
    return reasons + _unlike(stated, speed)


def _stated(hardware: Hardware, *, on_cpu: bool) -> dict[str, float]:
    """The speeds that a target states of the part that does the work, by the names that they are measured by."""
    if on_cpu:
        known = {key: getattr(hardware, key) for key in SPEEDS}
    elif hardware.gpu is not None:
        known = {"gpu_copy_gbs": hardware.gpu.copy_gbs, "gpu_fp16_gflops": hardware.gpu.fp16_gflops}
    else:
        known = {}
    return {key: value for key, value in known.items() if value is not None}


def _unlike(stated: Mapping[str, float], speed: Mapping[str, float]) -> list[str]:
    """The stated speeds that were not measured, or not within a factor of two."""
    words, reasons = SPEEDS | GPU_SPEEDS, []
    for key, value in stated.items():
        if key not in speed:
            reasons.append(_unmeasured(key))
        elif not value / _LIKE <= speed[key] <= value * _LIKE:
            reasons.append(f"{words[key]}: {speed[key]:.3g}, not within a factor of two of {value:.3g}")
    return reasons


def _above(stated: Mapping[str, float], speed: Mapping[str, float]) -> list[str]:
    """The speeds of a floor that were not measured, or above it."""
    words, reasons = SPEEDS | GPU_SPEEDS, []
    for key, value in stated.items():
        if key not in speed:
            reasons.append(_unmeasured(key))
        elif speed[key] > _FLOOR * value:
            reasons.append(f"{words[key]}: {speed[key]:.3g}, above {_FLOOR} x the floor of {value:.3g}")
    return reasons


def _unmeasured(key: str) -> str:
    lacking = "onnxruntime" if key in SPEEDS else "an onnxruntime with a provider for it"
    return f"{(SPEEDS | GPU_SPEEDS)[key]}: not measured there ({lacking} is not installed)"


def _unlike_accelerator(hardware: Hardware, speed: Mapping[str, float]) -> list[str]:
    """Why the accelerator that did the work may not vouch for the target's."""
    stated = _stated(hardware, on_cpu=False)
    if lacking := sorted(GPU_SPEEDS.keys() - stated):
        names = " and ".join(key.removeprefix("gpu_") for key in lacking)
        return [
            f"the target does not state {names} of its accelerator in [hardware.gpu]; edgekit targets probe measures both"
        ]
    return _above(stated, speed) if hardware.generic else _unlike(stated, speed)


def _above_floor(
    hardware: Hardware,
    stated: Mapping[str, float],
    device: Machine,
    speed: Mapping[str, float],
    threads: int | None,
) -> list[str]:
    reasons = [f"the target's floor does not state {key}" for key in SPEEDS if key not in stated]
    used = threads or device["cores"]
    if used > _FLOOR * hardware.cores:
        reasons.append(f"{used} threads, above the floor of {hardware.cores} cores")
    if hardware.accelerator:
        reasons.append(f"the work ran on its CPU, and the target's is for its accelerator ({hardware.accelerator})")
    return reasons + _above(stated, speed)


def scales(hardware: Hardware, speed: Mapping[str, float], *, on_cpu: bool = True) -> tuple[float, float]:
    """What the lower and the upper bound of a time are multiplied with, so that they hold for the target: (<= 1, >= 1).

    The largest of measured / stated speed above, so that a faster machine does not vouch for a slower target; the smallest
    below, so that a slower one does not fail what the target runs in time. A speed that is the same but for noise moves both a
    little away.
    """
    stated = _stated(hardware, on_cpu=on_cpu)
    ratios = [speed[key] / value for key, value in stated.items() if key in speed]
    return min([1.0, *ratios]), max([1.0, *ratios])


def tolerances(hardware: Hardware) -> str:
    """In words, what a machine must be to vouch for the target."""
    if hardware.generic:
        fast = f"{_FLOOR:g} x as fast as the target's floor"
        whose = "machine whose accelerator is at most" if hardware.gpu else "machine that is at most"
        return f"any {hardware.arch} {whose} {fast} may vouch for it; times are multiplied by how much faster it is"
    same = "an accelerator of" if hardware.gpu else "the same CPU, cores and features, and"
    return (
        f"a machine with {same} speeds within a factor of {_LIKE:g} of the target's{'' if hardware.gpu else ','} may vouch"
        " for it; times are multiplied by how much faster it is"
    )


# What a CPU's name may say or leave out: marks, its maker, its generation, clock, count of cores and graphics.
_SPELLING = re.compile(
    r"\((r|tm|c)\)|@.*$|\bw(ith|/) .*$|\b\d+(st|nd|rd|th) gen\b|\b\d+-core\b|\b(cpu|processor|intel|amd|apple|arm)\b"
)


def _same_cpu(stated: str, measured: str) -> bool:
    """Whether two spellings mean one CPU, word by word: "Intel N100" and "Intel(R) N100 @ 3.40GHz", not "M1" and "M1 Max".

    A chip of several kinds of cores ("Cortex-A76 + Cortex-A55") is named by one of them.
    """

    def plain(text: str) -> list[str]:
        return _SPELLING.sub(" ", text.lower()).split() or text.lower().split()

    return plain(measured) in [plain(stated), *map(plain, stated.split("+"))]


def impossibilities(measured: Measurements, p50_ms: float) -> list[str]:
    """What the median time of work on the CPU claims beyond what cores and memory were measured to do; empty where nothing is.

    Where a speed was not measured, or nobody counted the work, nothing is claimed.
    """
    if "matmul_ops" not in measured.work or not SPEEDS.keys() <= measured.speed.keys() or p50_ms <= 0:
        return []
    cores = min(measured.shape.threads or measured.device["cores"], measured.device["cores"])
    speed, seconds = measured.speed, p50_ms / 1000
    found = []
    operations = sum(measured.work["matmul_ops"].values()) / seconds / 1e9
    peak = _IMPOSSIBLE * cores * max(speed["int8_gops"], speed["fp32_gflops"])
    if operations > peak:
        found.append(f"{operations:.3g} Gop/s of matrix products, where {cores} core(s) reach {peak / _IMPOSSIBLE:.3g}")
    # A copy reads one byte for each that it writes, and weights that fit a cache are read from there: allow for both.
    weights = measured.work["weight_bytes"]
    read, most = weights / seconds / 1e9, _IMPOSSIBLE * cores * speed["bandwidth_gbs"]
    if weights > _CACHE_BYTES and read > most:
        found.append(f"{read:.3g} GB/s of weights read, where a copy reaches {most / _IMPOSSIBLE:.3g}")
    return found


def roofline_share(measured: Measurements, bytes_per_token: float) -> float:
    """The share of the memory bandwidth that decoding uses.

    A token reads every weight once, so tokens per second are at most bandwidth / bytes (Williams et al., "Roofline", CACM 52,
    2009). The bandwidth is that of copies by the threads that decode, a byte counted once read and once written.
    """
    read = bytes_per_token * measured.generation.tokens_per_second.decode / 1e9 if measured.generation else 0.0
    return read / measured.speed["copy_gbs"]


def above_roofline(measured: Measurements, bytes_per_token: float | None) -> list[str]:
    """What decoding on the CPU claims to read beyond what the memory gives; weights that a cache may hold are not judged."""
    if measured.generation is None or not bytes_per_token or bytes_per_token <= _CACHE_BYTES:
        return []
    share = roofline_share(measured, bytes_per_token)
    if share > _IMPOSSIBLE:
        return [f"{share:.1f} x the memory's bandwidth read per second"]
    return []
