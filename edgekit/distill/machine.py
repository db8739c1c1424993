"""What of this machine a training's bits depend on: where it runs, how many threads add up, and in which precision."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.runtimes import machine

if TYPE_CHECKING:
    from edgekit.distill.options import TrainingOptions

# As torchrun calls them, in the environment of each process of a training: which one it is, and of how many.
RANK, WORLD = "RANK", "WORLD_SIZE"
# Where those meet that edgekit started; torchrun's meet where it says.
MEETING = "EDGEKIT_RANKS"
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
# What is there where a driver of an accelerator is: NVIDIA's, WSL's, AMD's.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def conditions(options: TrainingOptions) -> dict[str, str | int]:
    """Device, threads and precision of a training with these options, for its fingerprint: other ones give other bytes, and so
    does another number of processes.

    Raises EdgekitError as `choose_device` does.
    """
    device = choose_device(options.device)
    return {
        "device": describe_device(device),
        "threads": machine.count_threads(),
        "precision": choose_precision(options.precision, device),
        **({"processes": ranks} if (ranks := max(count_ranks(), options.processes)) > 1 else {}),
    }


def count_ranks() -> int:
    """How many processes the training is of that this one belongs to, by what its environment says; 1 where nothing does."""
    return int(os.environ[WORLD]) if {RANK, WORLD} <= os.environ.keys() else 1


def check_training(options: TrainingOptions, where: str, *, generates: bool) -> None:
    """Refuse a device that is not there (one that is found is, without asking torch), TensorBoard without its writer, and packing
    where nothing is generated."""
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise EdgekitError(f"{where}.tensorboard: its writer is not installed; run: pip install tensorboard")
    if options.packing and not generates:
        raise EdgekitError(f"{where}.packing: for text-generation alone: other texts are not packed; remove this key")
    if options.device != "auto":
        choose_device(options.device, f"{where}.device")


def choose_device(wanted: str, where: str = "device") -> str:
    """cpu, cuda or mps, by torch's names; "auto" is the accelerator that is there (as Accelerate chooses), else the CPU.

    Raises EdgekitError, beginning with `where`, for an accelerator that torch cannot use here.
    """
    if wanted == "cpu":
        return wanted
    present = find_accelerator()
    if wanted == "auto":
        return present or "cpu"
    if wanted != present:
        raise EdgekitError(
            f"{where}: {wanted}: torch {metadata.version('torch')} finds none here ({present or 'cpu'} is what it finds); give"
            ' "auto", or install the build of torch for it, with its driver'
        )
    return wanted


def find_accelerator() -> str | None:
    """cuda or mps, where torch can use one; torch is imported only where there may be one, for this is asked in every build."""
    if not _may_accelerate():
        return None
    import torch

    if torch.backends.mps.is_available():
        return "mps"
    return "cuda" if torch.cuda.is_available() else None


def describe_device(device: str) -> str:
    """A device's name for a fingerprint: of CUDA with the card's, since another card has other kernels."""
    if device != "cuda":
        return device
    import torch

    return f"{device}: {torch.cuda.get_device_name()}"


def choose_precision(wanted: str, device: str = "cpu") -> str:
    """fp32 or bf16; "auto" takes bf16 only where the device multiplies bf16 matrices itself (elsewhere it is slower)."""
    if wanted != "auto":
        return wanted
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device == "mps":
        return "fp32"
    return "bf16" if _BF16 & set(machine.describe()["features"]) else "fp32"


def _may_accelerate() -> bool:
    """Whether this machine may have an accelerator that the installed torch may know. False is certain."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if metadata.version("torch").endswith("+cpu"):
        return False
    if os.name == "nt":
        return (Path(os.environ.get("SYSTEMROOT", "C:")) / "System32" / "nvcuda.dll").is_file()
    return any(Path(driver).exists() for driver in _DRIVERS)
