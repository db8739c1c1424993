"""What of this machine a training's bits depend on: how many threads add up, and in which precision."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgekit.runtimes import machine

if TYPE_CHECKING:
    from edgekit.distill.options import TrainingOptions

_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def conditions(options: TrainingOptions) -> dict[str, str | int]:
    """Threads and precision of a training with these options, for its fingerprint: other ones give other bytes."""
    return {"threads": count_threads(), "precision": choose_precision(options.precision)}


def count_threads() -> int:
    """Physical cores that this process may use, at least 1; OMP_NUM_THREADS where it is set."""
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(asked) > 0:
        return int(asked)
    return max(1, min(int(machine.describe()["cores"]), machine.available_cores()))


def choose_precision(wanted: str) -> str:
    """fp32 or bf16; "auto" takes bf16 only where the CPU multiplies bf16 matrices itself (elsewhere it is slower)."""
    if wanted != "auto":
        return wanted
    return "bf16" if _BF16 & set(machine.describe()["features"]) else "fp32"
