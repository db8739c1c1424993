"""Encoded: prompts of one shape and of unlike sizes are batched, cut and resized by what their inputs say."""

from __future__ import annotations

import numpy as np

from edgekit.modalities.encoded import Encoded, Input, same_reading
from edgekit.modalities.text import of_tokens, token_ids

IDS = [[1] * length for length in (5, 1, 3, 8, 2)]


def images(count: int) -> Encoded:
    """Prompts that all have one shape."""
    pixels = np.arange(count * 12, dtype=np.float32).reshape(count, 3, 2, 2)
    return Encoded(
        inputs={"pixel_values": Input()}, prompts=[{"pixel_values": one} for one in pixels], owners=range(count)
    )


def test_batches_are_of_like_size_and_the_largest_come_first() -> None:
    found = [(indices, inputs["input_ids"].shape) for indices, inputs in of_tokens(IDS, 0).batches(2)]
    assert found == [([3, 0], (2, 8)), ([2, 4], (2, 3)), ([1], (1, 1))]


def test_prompts_of_one_shape_are_stacked() -> None:
    prompts = images(3)
    assert (prompts.free, prompts.sizes) == (None, [1, 1, 1])
    np.testing.assert_array_equal(
        prompts.batch()["pixel_values"], np.stack([p["pixel_values"] for p in prompts.prompts])
    )
    assert [indices for indices, _ in prompts.batches(2)] == [[0, 1], [2]]
    assert same_reading(prompts.cut(1).prompts[1], prompts.prompts[1])
    assert same_reading(prompts.subset([2]).resized(40).prompts[0], prompts.prompts[2])


def test_a_subset_keeps_its_owners() -> None:
    some = of_tokens(IDS, 0, owners=[0, 0, 1, 2, 2]).subset([3, 1])
    assert (some.sizes, list(some.owners), len(some)) == ([8, 1], [2, 0], 2)


def test_sizes_and_what_is_cut_and_resized() -> None:
    texts = of_tokens([[4, 5, 6], [7]], 9)
    assert texts.sizes == [3, 1]
    assert texts.by_size() == [1, 0]
    assert token_ids(texts.cut(2)) == [[4, 5], [7]]
    (resized,) = texts.resized(6).prompts
    assert resized["input_ids"].tolist() == [4, 5, 6, 7, 4, 5]
    assert resized["attention_mask"].tolist() == [1] * 6


def test_a_text_without_tokens_is_one_of_padding() -> None:
    empty = of_tokens([[]], 9).prompts[0]
    assert {name: array.tolist() for name, array in empty.items()} == {"input_ids": [9], "attention_mask": [1]}


def test_the_digest_is_of_the_values_and_of_where_they_stand() -> None:
    assert of_tokens(IDS, 0).digest == of_tokens(IDS, 7).digest, "padding is in no prompt"
    assert len({of_tokens(ids, 0).digest for ids in ([[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[1, 2], [4]])}) == 4


def test_prompts_are_the_same_value_by_value() -> None:
    one, other = of_tokens([[1, 2], [1, 3]], 0).prompts
    assert same_reading(one, dict(one))
    assert not same_reading(one, other)
    assert not same_reading(one, {"input_ids": one["input_ids"]})
