"""The same numbers again: seeds, kernels and threads of a training, and the state of its random generators."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from edgekit.runtimes.machine import count_threads


@contextmanager
def reproducible(seed: int, device: str = "cpu") -> Iterator[None]:
    """Fixed seeds, deterministic kernels and a fixed number of threads (the physical cores, or OMP_NUM_THREADS).

    On an accelerator an operation without a deterministic kernel is warned of and runs; on the CPU it is an error.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    switch: Any = torch.utils.deterministic
    fill = switch.fill_uninitialized_memory
    random = None if device == "cpu" else get_device_random(device)
    if device == "cuda":
        # https://docs.nvidia.com/cuda/cublas/#results-reproducibility: read when cuBLAS is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(count_threads())
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # Filling fresh memory costs time and changes nothing: no kernel reads it before it writes it.
    switch.fill_uninitialized_memory = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=lenient)
            switch.fill_uninitialized_memory = fill
            if random is not None:
                set_device_random(device, random)


def get_random(device: str) -> dict[str, Tensor]:
    """The states of this process's random generators, uint8: `cpu`, and `device` of an accelerator."""
    states = {"cpu": torch.get_rng_state()}
    return states if device == "cpu" else states | {"device": get_device_random(device)}


def set_random(device: str, states: Mapping[str, Tensor]) -> None:
    """Put the random generators into states that `get_random` gave."""
    torch.set_rng_state(states["cpu"])
    if device != "cpu":
        set_device_random(device, states["device"])


def get_device_random(device: str) -> Tensor:
    """The state of an accelerator's random generator, uint8."""
    state: Tensor = torch_of(device).get_rng_state()
    return state


def set_device_random(device: str, state: Tensor) -> None:
    """Put an accelerator's random generator into a state that `get_device_random` gave."""
    torch_of(device).set_rng_state(state)


def torch_of(device: str) -> Any:
    """What torch offers for one kind of accelerator: torch.cuda, torch.mps."""
    return torch.get_device_module(device)
