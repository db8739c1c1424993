"""The float model as a session: what the module answers, timed by the probe's own function."""

from __future__ import annotations

import numpy as np
import torch

from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.probe import time_calls
from edgekit.runtimes.torch import Session


class Counts:
    """A module that remembers how often it was called, and whether gradients were kept."""

    def __init__(self) -> None:
        self.calls: list[bool] = []

    def __call__(self, *, input_ids: torch.Tensor) -> torch.Tensor:
        self.calls.append(torch.is_inference_mode_enabled())
        return torch.stack([input_ids.sum(dim=1).double(), input_ids.amax(dim=1).double()], dim=1)


def collate(rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {"input_ids": np.array([list(row) for row in rows], dtype=np.int64)}


def test_a_row_is_the_modules() -> None:
    row = Session(Counts(), collate).run([3, 4, 5])
    assert row.dtype == np.float32
    assert row.tolist() == [12.0, 5.0]


def test_it_is_timed_as_artifacts_are() -> None:
    counts = Counts()
    times = time_calls(
        Session(counts, collate), np.array([1, 2]), {"warmup": 2, "repeats": 5, "least": 3, "seconds": 60}
    )
    assert (len(times), counts.calls) == (5, [True] * 7)
    assert min(times) > 0


def test_no_target_can_choose_it() -> None:
    assert "torch" not in RUNTIMES
