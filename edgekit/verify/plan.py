"""What the verify prompts can prove at all: said before anything is measured, by the recipe's `[accuracy]` table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from edgekit import gate
from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.schema import pick
from edgekit.tasks import TASKS
from edgekit.verify import margins

# How a recipe's `[accuracy]` table is read, by the kind of answer.
READERS: dict[str, Callable[[Mapping[str, object], str], object]] = {
    LOGITS.name: margins.read_margins,
    EMBEDDING.name: margins.read_embedding_margins,
    TOKENS.name: margins.read_limits,
}
FLIPS_SHOWN = (0.01, 0.03, 0.10)
FIRST = gate.Look()


def check_accuracy_table(task: str, accuracy: Mapping[str, object], where: str) -> None:
    """Refuse an `[accuracy]` table that the task cannot read."""
    READERS[pick(TASKS, task, "task").OUTPUT](accuracy, where)


def plan_text(task: str, prompts: int, accuracy: Mapping[str, object], *, look: gate.Look = FIRST) -> list[str]:
    """What so many verify prompts can prove at all: said before anything is measured."""
    alpha = look.alpha
    lines = [
        f"verify: {prompts} prompts; a loss that never shows is still at most {_points(gate.floor(prompts, alpha))}"
    ]
    if look.index > 1 or look.stages > 1:
        stage = f", stage {look.stage} of {look.stages}" if look.stages > 1 else ""
        lines.append(
            f"this is look {look.index} at these prompts{stage}: each bound uses alpha {alpha:.2g} instead of"
            f" {gate.FIRST_LOOK:g}"
        )
    return [*lines, *_PLANS[pick(TASKS, task, "task").OUTPUT](prompts, accuracy, alpha)]


def _labels(prompts: int, accuracy: Mapping[str, object], alpha: float) -> list[str]:
    provable = {flips: gate.smallest_margin(prompts, flips, alpha) for flips in FLIPS_SHOWN}
    stated = margins.read_margins(accuracy)
    limits = margins.for_prompts(stated, prompts)
    asked = {"float student": limits.student_margin or 0.0, "teacher": limits.teacher_margin or 0.0}
    by_default = {"float student": stated.student_margin is None, "teacher": stated.teacher_margin is None}
    lines = _provable(provable, asked)
    if any(by_default.values()):
        size = "fewer than" if prompts < margins.MANY else "at least"
        absent = " and the ".join(sorted(name for name, default in by_default.items() if default))
        lines.append(f"by default, for {size} {margins.MANY} prompts: the margin against the {absent}")
    return [*lines, *_too_few(prompts, asked, alpha)]


def _embeddings(prompts: int, accuracy: Mapping[str, object], alpha: float) -> list[str]:
    provable = {flips: gate.proportion_bounds(round(flips * prompts), prompts, alpha)[1] for flips in FLIPS_SHOWN}
    wanted = margins.read_embedding_margins(accuracy)
    asked = {f"1 - cosine above {wanted.far_cosine:g}": wanted.far_share, "neighbours": wanted.neighbour_margin}
    lines = []
    if wanted.cosine_margin is not None:
        least = 2 * gate.floor(prompts, alpha)
        lines.append(f"mean 1 - cosine: at least {least:.4f} stays possible; asked: {wanted.cosine_margin:g}")
    return [*lines, *_provable(provable, asked), *_too_few(prompts, asked, alpha)]


def _provable(provable: Mapping[float, float], asked: Mapping[str, float]) -> list[str]:
    shown = ", ".join(f"{_points(margin)} at {flips:.0%} flips" for flips, margin in provable.items())
    return [
        f"smallest margin that they can prove: {shown}",
        "asked: " + ", ".join(f"{_points(margin)} ({name})" for name, margin in asked.items()),
    ]


def _too_few(prompts: int, asked: Mapping[str, float], alpha: float) -> list[str]:
    return [line for name, margin in asked.items() for line in _missing(name, prompts, margin, alpha)]


def _tokens(prompts: int, accuracy: Mapping[str, object], alpha: float) -> list[str]:
    limits = margins.read_limits(accuracy)
    far = f"{margins.FAR:g} x the limit of kl" if limits.far_kl is None else f"{limits.far_kl:g} nats a token"
    lines = _missing(f"prompts beyond {far} (accuracy.far_share)", prompts, limits.far_share, alpha)
    if prompts < gate.FEWEST_CLUSTERS:
        lines.append(
            f"fewer than {gate.FEWEST_CLUSTERS} independent prompts prove nothing about likelihoods: give more"
        )
    return lines


def _missing(name: str, prompts: int, margin: float, alpha: float) -> list[str]:
    """What to do where so many prompts cannot prove a margin even where nothing is lost."""
    if margin >= gate.floor(prompts, alpha):
        return []
    needed = math.ceil(math.log(alpha) / math.log1p(-margin))
    return [f"{name}: {prompts} prompts cannot prove {_points(margin)}; at least {needed} are needed"]


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f} points"


# What so many prompts can prove of a kind of answer.
_PLANS: dict[str, Callable[[int, Mapping[str, object], float], list[str]]] = {
    LOGITS.name: _labels,
    EMBEDDING.name: _embeddings,
    TOKENS.name: _tokens,
}
