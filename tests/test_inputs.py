"""Inputs: what a step is given is what its fingerprint covers, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from edgekit.inputs import LATER, Content, identity


@dataclass(frozen=True, kw_only=True)
class Options:
    epochs: int
    losses: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Given:
    STEP: ClassVar[str] = "distill"
    model: Content
    prompts: Content
    options: Options | None
    kept: tuple[int, ...]


def given(folder: str, digest: str = "a") -> Given:
    splits = Content(path=Path(folder) / "prompts", digest={"train": "b"})
    options = Options(epochs=3, losses={"logits": 1.0})
    return Given(model=Content(path=Path(folder), digest=digest), prompts=splits, options=options, kept=(0, 2))


def test_a_content_counts_by_what_is_in_it() -> None:
    wanted = {
        "model": "a",
        "prompts": {"train": "b"},
        "options": {"epochs": 3, "losses": {"logits": 1.0}},
        "kept": [0, 2],
    }
    assert identity(given("here")) == identity(given("there")) == wanted
    assert identity(given("here", "other")) != wanted


@pytest.mark.parametrize("value", [Path("here"), len, {1, 2}, object()])
def test_what_no_fingerprint_can_cover_is_refused(value: object) -> None:
    @dataclass(frozen=True)
    class Bad:
        field: object

    with pytest.raises(TypeError, match="no fingerprint can cover it"):
        identity(Bad(value))
    with pytest.raises(TypeError, match="inputs are a dataclass"):
        identity(value)


def test_a_field_that_came_later_counts_where_it_is_used() -> None:
    @dataclass(frozen=True)
    class Now:
        epochs: int
        taid: float | None = field(default=None, metadata=LATER)

    assert identity(Now(3)) == {"epochs": 3}
    assert identity(Now(3, 0.4)) == {"epochs": 3, "taid": 0.4}
