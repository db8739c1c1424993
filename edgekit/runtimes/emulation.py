"""Whether a machine's cores are real: what an emulator runs answers as the board would, at a speed that is nothing of it.

Nobody has to say so: the kernel's own name gives some emulators away, the speed of matrix products gives all of them away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.runtimes.machine import Machine

# The share of its clock times the numbers in one of its vectors that no real core stays below, multiplications and additions
# counted as two. A core of a Pi 5 does 3.3 of these in fp32, one of a Pi 4 1.6 (HPL, see targets/); under qemu, Cortex-A76 and
# Cortex-A72 do 0.02 at their boards' clock, and the slowest clock that is sold makes 0.05 of that.
REAL = 1 / 5
# GHz, where neither the machine nor the target tells: slower than any that is on sale.
SLOWEST_GHZ = 1.0
_VECTOR_BITS = {"avx512f": 512, "avx2": 256}
# What adds products of bytes up in 32 bits, four at a time. Without it one takes 16 bits of a vector: half as many.
_DOTS = frozenset({"asimddp", "avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni"})
_WORDS = {"fp32_gflops": "fp32 throughput, GFLOP/s", "int8_gops": "INT8 throughput, Gop/s"}


def floors(device: Machine, clock_ghz: float | None = None) -> dict[str, float]:
    """What all of its cores reach together at the least, if they are real: fp32_gflops and int8_gops, by cores x clock x lanes.

    clock_ghz: the target's, where the machine does not tell its own.
    """
    features = frozenset(device["features"])
    vector = next((bits for feature, bits in _VECTOR_BITS.items() if feature in features), 128)
    lanes = {"fp32_gflops": vector / 32, "int8_gops": vector / (8 if features & _DOTS else 16)}
    clock = device["clock_ghz"] or clock_ghz or SLOWEST_GHZ
    return {key: REAL * device["cores"] * clock * count for key, count in lanes.items()}


def emulation(device: Machine, speed: Mapping[str, float], clock_ghz: float | None = None) -> list[str]:
    """What shows that a machine is emulated; empty where it may be real.

    speed: of one core, by the processor time that the work took (`throughput`), so that other load on a real machine does not
    look like an emulator. A speed that was not measured shows nothing, nor one that a page measured: it knows no processor time.
    """
    if device["arch"] == "wasm32":
        return []
    found = [f"{device['emulator']}: emulated"] if "emulator" in device else []
    clock, cores = device["clock_ghz"] or clock_ghz or SLOWEST_GHZ, device["cores"]
    return found + [
        f"{_WORDS[key]}: {cores * speed[key]:.3g}, where {cores} core(s) of {clock:g} GHz reach {floor:.3g} and more: emulated"
        for key, floor in floors(device, clock_ghz).items()
        if cores * speed.get(key, floor) < floor
    ]
