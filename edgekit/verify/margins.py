"""What an artifact may lose: the recipe's `[accuracy]` table of a task that gives one row per text, and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Le

from edgekit.errors import EdgekitError
from edgekit.schema import parse

# Where nothing is lost and one prompt in a hundred flips, 300 prompts prove one point in 29 % of all cases and two in 78 %, 500
# in 51 and 97 %. A small student differs from its teacher on 8 % of prompts: 300 prompts leave 2.7 points possible at no loss.
MANY = 500
STUDENT_MARGIN, TEACHER_MARGIN = 0.01, 0.03

# How many looks at a growing set of prompts are planned as one.
Stages = Annotated[int, Ge(1), Le(20)]


@dataclass(frozen=True, kw_only=True)
class Margins:
    """The `[accuracy]` table of text-classification, as fractions (0.01 is one point).

    student_margin and teacher_margin: how much accuracy may be lost against the float student and the teacher; where they are
    absent, what the prompts can prove decides (`for_prompts`). at_least: the accuracy that the artifact must have, if any.
    stages: how often prompts may be added to those of verify (see `gate.stage_share`).
    """

    student_margin: float | None = None
    teacher_margin: float | None = None
    at_least: float | None = None
    stages: Stages = 1


@dataclass(frozen=True, kw_only=True)
class EmbeddingMargins:
    """The `[accuracy]` table of feature-extraction, as fractions.

    far_share: the share of prompts whose embedding may be far from the float student's, which it is where 1 - cosine exceeds
    far_cosine; 59 prompts without one prove 5 %. neighbour_margin: the share of prompts whose nearest neighbour may change.
    cosine_margin: a limit of the mean 1 - cosine, if any: it needs 598 prompts to prove 0.01 where nothing is lost. stages: as of
    `Margins`.
    """

    far_share: float = 0.05
    far_cosine: float = 0.02
    neighbour_margin: float = 0.10
    cosine_margin: float | None = None
    stages: Stages = 1


Table = TypeVar("Table", Margins, EmbeddingMargins)


def read_margins(accuracy: Mapping[str, Any], where: str = "recipe: accuracy") -> Margins:
    """The `[accuracy]` table of a classifier, checked; EdgekitError for an unknown key and a value outside (0, 1)."""
    return _checked(parse(Margins, dict(accuracy), where), where)


def read_embedding_margins(accuracy: Mapping[str, Any], where: str = "recipe: accuracy") -> EmbeddingMargins:
    """The `[accuracy]` table of embeddings, checked; EdgekitError for an unknown key and a value outside (0, 1)."""
    return _checked(parse(EmbeddingMargins, dict(accuracy), where), where)


def _checked(table: Table, where: str) -> Table:
    for key, value in vars(table).items():
        if key != "stages" and value is not None and not 0.0 < value < 1.0:
            raise EdgekitError(f"{where}.{key}: a fraction between 0 and 1 (0.01 is one point), got {value:g}")
    return table


def for_prompts(margins: Margins, prompts: int) -> Margins:
    """The margins, absent ones by the number of prompts that judge: one point against the float student and three against the
    teacher, and twice as much below MANY prompts, which can prove no less."""
    student, teacher = default_margins(prompts)
    return replace(
        margins,
        student_margin=margins.student_margin or student,
        teacher_margin=margins.teacher_margin or teacher,
    )


def default_margins(prompts: int) -> tuple[float, float]:
    """Against the float student and the teacher, of so many prompts."""
    factor = 1.0 if prompts >= MANY else 2.0
    return factor * STUDENT_MARGIN, factor * TEACHER_MARGIN
