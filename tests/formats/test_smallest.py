"""Which scheme is the smallest that keeps the limits: what is compared, what of a limit a candidate takes, and what is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.formats import smallest
from edgekit.formats.smallest import Candidate, Heard, choose, figures, hear, passages, with_answers
from edgekit.verify.margins import Limits, limits_at


class Speaker:
    """A generator whose logits are given, float32 [vocabulary, vocabulary]: of the next token behind each one."""

    def __init__(self, table: np.ndarray, context: int = 64) -> None:
        self.table, self.vocabulary, self.context = table.astype(np.float32), len(table), context

    def clear(self) -> None:
        pass

    def logits(self, ids: Any, wanted: slice | None = None) -> np.ndarray:
        rows: np.ndarray = self.table[np.asarray(ids)][wanted if wanted is not None else slice(None)]
        return rows

    def work(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def heard(kl: list[float], **more: list[float]) -> Heard:
    """Of passages of ten tokens each; kl is each one's mean."""
    nothing = [0.0] * len(kl)
    columns = {"kl": kl, "changed": nothing, "rise": nothing} | more
    return Heard(tokens=np.full(len(kl), 10.0), **{name: 10 * np.array(one) for name, one in columns.items()})


def limits(bits: float = 4.5, **own: float) -> dict[str, float]:
    return limits_at(Limits(**own), bits)


BOTH = smallest.Limits(fewer_bits=limits(), eight_bits=limits(bits=8.0))


def test_what_is_compared() -> None:
    """Answers, of long texts their beginning, of prompts without an answer room for one; from all over, and no more than fits."""
    ids = [[1, 2, 3, 4], [1, 2], list(range(400))]
    found = sorted(passages(ids, [2, 2, 1]))
    assert [(len(row), start) for row, start in found] == [(1 + smallest.LONGEST, 1), (2, 2), (4, 2)]
    many = passages([[1] * 200] * 500, [1] * 500)
    assert sum(len(row) - start for row, start in many) <= smallest.TOKENS
    assert len(many) == smallest.TOKENS // smallest.LONGEST
    assert len(passages([[1, 2]] * 500, [1] * 500)) == smallest.PASSAGES
    assert many == passages([[1] * 200] * 500, [1] * 500)


def test_prompts_without_an_answer_get_the_float_model_s_own() -> None:
    after = np.eye(5)[[1, 2, 3, 4, 0]]  # the token after t is t + 1
    told = list(with_answers(Speaker(after), [([0, 1], 2), ([0, 3], 2), ([1, 2, 3], 2)], [4]))
    # The second would say nothing but the token that ends an answer.
    assert told == [([0, 1, 2, 3], 2), ([1, 2, 3], 2)]
    assert list(with_answers(Speaker(after, context=3), [([0, 1], 2)], [])) == [([0, 1, 2], 2)]


def test_what_is_heard_is_the_divergence() -> None:
    random = np.random.default_rng(0)
    exact, other = random.normal(size=(2, 7, 7))
    rows = [([1, 2, 3, 4], 2), ([5, 6], 1)]
    reference = [smallest.scored_logits(Speaker(exact), row) for row in rows]
    told = hear(Speaker(other), rows, reference)
    p, q = (np.log(np.exp(table) / np.exp(table).sum(1, keepdims=True)) for table in (exact, other))
    divergence = (np.exp(p) * (p - q)).sum(1)
    assert told.tokens.tolist() == [2, 1]
    assert told.kl == pytest.approx([divergence[2] + divergence[3], divergence[5]], rel=1e-5)
    assert told.rise == pytest.approx([p[2, 3] - q[2, 3] + p[3, 4] - q[3, 4], p[5, 6] - q[5, 6]], rel=1e-5)
    changed = exact.argmax(1) != other.argmax(1)
    assert told.changed.tolist() == [int(changed[2]) + int(changed[3]), int(changed[5])]
    same = hear(Speaker(exact), rows, reference)
    assert (same.kl.max(), same.changed.max(), np.abs(same.rise).max()) == (0, 0, 0)


def test_a_limit_holds_with_room_for_chance() -> None:
    """0.10 at four bits: 0.075 everywhere takes three quarters of it, and passes; the same mean from few prompts does not."""
    even = figures(heard([0.075] * 20), limits())
    assert (even.passes, even.used["kl"], even.kl) == (True, 0.75, 0.075)
    assert not figures(heard([0.085] * 20), limits()).passes
    uneven = figures(heard([0.0] * 15 + [0.3] * 5), limits())
    assert not uneven.passes
    # The standard error of 20 prompts with that spread: .3 sqrt(.25 .75 / 19).
    assert uneven.used["kl"] == pytest.approx((0.075 + 2 * 0.3 * math.sqrt(0.25 * 0.75 / 19)) / 0.10, rel=1e-3)
    assert not figures(heard([0.075] * 20), limits(bits=8.5)).passes, "at 8 bits the limit is 0.01"
    assert figures(heard([0.15] * 20), limits(kl=0.2)).passes


@pytest.mark.parametrize(
    ("more", "own"),
    [({"changed": [0.2] * 20}, {"top1": 0.7}), ({"rise": [0.06] * 20}, {"perplexity": 1.10})],
)
def test_every_limit_counts(more: dict[str, list[float]], own: dict[str, float]) -> None:
    assert not figures(heard([0.01] * 20, **more), limits()).passes
    assert figures(heard([0.01] * 20, **more), limits(**own)).passes


def test_few_far_prompts_and_no_numbers_do_not_pass() -> None:
    few = heard([0.0] * 63 + [1.2])
    assert not figures(few, limits(kl=0.119)).passes, "one of 64 is more than ten times the limit away"
    assert figures(few, limits(kl=0.13)).passes
    assert figures(few, limits(kl=0.119, far_share=0.05)).passes
    broken = figures(heard([0.0] * 9 + [math.nan]), limits())
    assert (broken.passes, broken.kl, broken.used["kl"]) == (False, None, None)


def test_the_first_that_passes_is_taken() -> None:
    losses = {"a": 0.2, "b": 0.05, "c": 0.01}
    asked, told = [], []

    def make(name: str) -> Candidate:
        asked.append(name)
        return Candidate(bytes=1000 * len(asked), bits=4.5, heard=heard([losses[name]] * 9))

    found = choose(list(losses), make, BOTH, lambda *step: told.append(step), "do something")
    assert (found.scheme, found.passes, asked) == ("b", True, ["a", "b"])
    assert [one["bytes"] for one in found.facts["tried"]] == [1000, 2000]
    assert found.note == (
        "auto: b (0.0 MB, KL 0.05) is the smallest that keeps the limits on 9 calibrate prompts (90 tokens); a loses too much"
        " (KL 0.2, with its error 2 of the limit)"
    )
    assert told == [(1, 5, "tries a"), (2, 5, "tries b")]
    losses = {"a": 0.2, "b": 0.11, "c": math.nan}
    worst = choose(list(losses), make, BOTH, lambda *_: None, "do something")
    assert (worst.scheme, worst.passes) == ("b", False)
    assert worst.note.startswith(
        "auto: no scheme keeps the limits on 9 calibrate prompts (90 tokens); b loses least: a loses"
    )
    assert worst.note.endswith("; do something")
    with pytest.raises(EdgekitError, match="'auto' keeps limits, and none are given; name a scheme"):
        choose(["a"], make, None, lambda *_: None, "")
