"""One row of numbers per prompt: the scores of the labels, or an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast


def _scores(answer: object) -> object:
    """[(label, score), ...], the answer first, with both named."""
    pairs = cast("Sequence[tuple[str, float]]", answer)
    return {"label": pairs[0][0], "score": pairs[0][1], "scores": dict(pairs)}


def _numbers(answer: object) -> object:
    return [float(value) for value in cast("Sequence[float]", answer)]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A kind of answer that is one row of numbers per prompt."""

    name: str
    has_classes: bool
    pools: bool
    plain: Callable[[object], object]
    generates: ClassVar[bool] = False


LOGITS = Rows(name="logits", has_classes=True, pools=False, plain=_scores)
EMBEDDING = Rows(name="embedding", has_classes=False, pools=True, plain=_numbers)
