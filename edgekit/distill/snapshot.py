"""A training run's state on disk: tensors in a safetensors file, the rest in JSON, never pickle.

The JSON names its tensor file and is renamed into place last; a run killed at any moment finds the last whole pair.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from edgekit.workspace import disk_error, write_atomically

FILE = "snapshot.json"
_TENSORS = "snapshot-*.safetensors"
# safetensors writes into a file of such a name and renames it: a kill in between leaves it.
_BEING_SAVED = ".tmp??????"


class State(TypedDict):
    """Where a run stands: its fingerprint, the next step, the held-out score of each epoch, which epoch was the best,
    and what the lesson remembers."""

    run: str
    step: int
    scores: list[float]
    best_epoch: int
    start: float | None
    memory: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """`state` is what JSON can say (step, scores); `tensors` are weights, moments and random states by name."""

    state: State
    tensors: Mapping[str, Tensor]


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Replace the folder's snapshot; EdgekitError where the disk refuses."""
    from safetensors.torch import save_file

    name = f"snapshot-{snapshot.state['step']:09d}.safetensors"
    partial = folder / f".{name}.partial"
    try:
        save_file({key: tensor.contiguous() for key, tensor in snapshot.tensors.items()}, partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(folder / name)
        write_atomically(folder / FILE, json.dumps({"tensors": name, **snapshot.state}, sort_keys=True))
        for old in folder.glob(_TENSORS):
            if old.name != name:
                old.unlink()
    except OSError as failed:
        partial.unlink(missing_ok=True)
        raise disk_error(folder / name, failed) from failed


def read_snapshot(folder: Path, run: str) -> Snapshot | None:
    """The folder's snapshot, if it has one and it belongs to the run of this fingerprint."""
    from safetensors.torch import load_file

    if not (folder / FILE).is_file():
        return None
    state = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if state["run"] != run:
        return None
    return Snapshot(state=state, tensors=load_file(folder / state["tensors"]))


def drop_snapshot(folder: Path) -> None:
    """Remove everything that `write_snapshot` left, whole or partial, and what a killed save left."""
    for pattern in (FILE, f".{FILE}.partial", _TENSORS, f".{_TENSORS}.partial", _BEING_SAVED):
        for path in folder.glob(pattern):
            path.unlink()


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """What a module's state holds, a tensor that has two names (a tied head) under its first one."""
    first: dict[int, str] = {}
    state = module.state_dict()
    for key, weight in state.items():
        first.setdefault(weight.data_ptr(), key)
    return {key: state[key].detach() for key in first.values()}


def copy_weights(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights as they are now, on the CPU."""
    return {key: weight.to("cpu", copy=True) for key, weight in weights_of(module).items()}


def put_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what `weights_of` gave into the module; a tied tensor gets its values through its first name."""
    state = module.state_dict()
    with torch.no_grad():
        for key, weight in weights.items():
            state[key].copy_(weight)


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
