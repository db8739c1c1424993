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


def test_a_row_is_the_modules() -> None:
    row = Session(Counts()).run({"input_ids": np.array([3, 4, 5])})
    assert row.dtype == np.float32
    assert row.tolist() == [12.0, 5.0]


def test_it_is_timed_as_artifacts_are() -> None:
    counts = Counts()
    prompt = {"input_ids": np.array([1, 2])}
    times = time_calls(Session(counts), prompt, {"warmup": 2, "repeats": 5, "least": 3, "seconds": 60})
    assert (len(times), counts.calls) == (5, [True] * 7)
    assert min(times) > 0


def test_no_target_can_choose_it() -> None:
    assert "torch" not in RUNTIMES
