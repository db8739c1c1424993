"""What an artifact may lose: the recipe's `[accuracy]` table of each task, and the defaults of what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from edgekit.errors import EdgekitError
from edgekit.formats.smallest import EIGHT_BITS
from edgekit.schema import parse

# Where nothing is lost and one prompt in a hundred flips, 300 prompts prove one point in 29 % of all cases and two in 78 %, 500
# in 51 and 97 %. A small student differs from its teacher on 8 % of prompts: 300 prompts leave 2.7 points possible at no loss.
MANY = 500
STUDENT_MARGIN, TEACHER_MARGIN = 0.01, 0.03

# A prompt is far off where its tokens diverge ten times as much as they may on average: at 4 bits by a nat a token, so that
# twenty tokens are e^20 times less likely. A mean cannot show what few prompts suffer: one in a hundred at 50 times the loss of
# the others passed in 38 % of 100 prompts and in 16 % of 300. That at most one in a hundred is far off is proven by 300 of which
# none is.
FAR = 10.0

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


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The recipe's `[accuracy]` table of text-generation. Absent limits follow the artifact's bits (`default_limits`).

    kl: mean KL divergence from the float student in nats per token. far_share: the share of prompts whose own mean exceeds
    far_kl, which is FAR times `kl` where it is absent. top1: share of tokens whose likeliest is the same.
    perplexity: the artifact's by the float student's. answer_length: greedy answers' tokens by the float student's, at least;
    and no more than turned round.
    student_margin, teacher_margin: loss of right answers, where prompts have wanted ones, as fractions; where they are absent,
    by the number of prompts (`default_margins`). at_least: the share of right answers that there must be, if any. stages: how
    often prompts may be added to those of verify (see `gate.stage_share`).
    """

    kl: Annotated[float, Gt(0)] | None = None
    top1: Annotated[float, Gt(0), Le(1)] | None = None
    perplexity: Annotated[float, Gt(1)] | None = None
    answer_length: Annotated[float, Gt(0), Le(1)] = 0.9
    student_margin: Annotated[float, Gt(0), Le(1)] | None = None
    teacher_margin: Annotated[float, Gt(0), Le(1)] | None = None
    at_least: Annotated[float, Gt(0), Lt(1)] | None = None
    far_kl: Annotated[float, Gt(0)] | None = None
    far_share: Annotated[float, Gt(0), Lt(1)] = 0.01
    stages: Stages = 1


Table = TypeVar("Table", Margins, EmbeddingMargins)


def read_margins(accuracy: Mapping[str, object], where: str = "recipe: accuracy") -> Margins:
    """The `[accuracy]` table of a classifier, checked; EdgekitError for an unknown key and a value outside (0, 1)."""
    return _checked(parse(Margins, dict(accuracy), where), where)


def read_embedding_margins(accuracy: Mapping[str, object], where: str = "recipe: accuracy") -> EmbeddingMargins:
    """The `[accuracy]` table of embeddings, checked; EdgekitError for an unknown key and a value outside (0, 1)."""
    return _checked(parse(EmbeddingMargins, dict(accuracy), where), where)


def read_limits(accuracy: Mapping[str, object], where: str = "recipe: accuracy") -> Limits:
    """The recipe's `[accuracy]` table, checked; EdgekitError for an unknown key and a value out of its bounds."""
    return parse(Limits, dict(accuracy), where)


def default_limits(bits: float) -> dict[str, float]:
    """What an artifact may lose by default, by the bits of a weight in the type that most of its weights have.

    Published 4- and 8-bit files of good schemes keep well within (llama.cpp's tools/perplexity/README.md: 0.03 nat and 92 % for
    q4_K_M of an 8B model, 0.0014 nat and 97.7 % for q8_0); small models lose more.
    """
    if bits < EIGHT_BITS:
        return {"kl": 0.10, "top1": 0.88, "perplexity": 1.05}
    return {"kl": 0.01, "top1": 0.96, "perplexity": 1.01}


def limits_at(limits: Limits, bits: float) -> dict[str, float]:
    """The limits with those that are absent filled in by the artifact's bits; far_kl, which follows kl, always is there."""
    filled = default_limits(bits) | {key: value for key, value in vars(limits).items() if value is not None}
    return {"far_kl": FAR * filled["kl"]} | filled


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
