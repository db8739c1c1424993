"""What the probe is asked: prompts of any inputs and sizes pass through one .npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.runtimes.request import feeds, pack, unpack


def test_prompts_come_back_as_they_were(tmp_path: Path) -> None:
    prompts = [
        {"input_ids": np.arange(size, dtype=np.int64), "pixels": np.full((2, size, 3), size, np.float32)}
        for size in (3, 1, 0, 4)
    ]
    other = [{"input_ids": np.array([7], np.int64)}]
    np.savez(tmp_path / "p.npz", **pack(prompts), **pack(other, "timed."), sizes=np.array([1]))
    with np.load(tmp_path / "p.npz", allow_pickle=False) as arrays:
        found, timed = unpack(dict(arrays)), unpack(dict(arrays), "timed.")
    assert len(found) == len(prompts)
    for ours, theirs in zip(prompts, found, strict=True):
        assert [*ours] == [*theirs]
        for name, array in ours.items():
            assert array.dtype == theirs[name].dtype
            np.testing.assert_array_equal(array, theirs[name])
    assert [one["input_ids"].tolist() for one in timed] == [[7]]
    assert unpack(pack([])) == []


def test_a_model_is_fed_what_it_wants() -> None:
    prompt = {"input_ids": np.array([4, 5]), "attention_mask": np.array([1, 1])}
    fed = feeds(prompt, ["token_type_ids", "input_ids"])
    assert {name: array.tolist() for name, array in fed.items()} == {"token_type_ids": [[0, 0]], "input_ids": [[4, 5]]}
    with pytest.raises(ValueError, match="the model wants the input token_type_ids; edgekit gives pixel_values"):
        feeds({"pixel_values": np.zeros((3, 2, 2))}, ["token_type_ids"])
