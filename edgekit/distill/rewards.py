"""REWARDS: what a student's own answers are worth, 0 or 1 by a check of their text. A further check is one function.

A recipe names a check and its bounds, or a scorer (`distill.scorer`); it runs no code.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt

from edgekit.errors import EdgekitError
from edgekit.inputs import BESIDE, LATER

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What makes a student's own answer a good one, by a check of its text (REWARDS) or a scorer, and how much that counts.

    least, most: characters (length). pattern: a regular expression that all of an answer matches (format). scorer: the folder of
    a classifier or of a model with one output, which reads prompt and answer; label: of a classifier, whose log-probability is
    the score. What is in the folder counts, and not where it lies.
    """

    check: Literal["exact", "format", "json", "length", "python"] | None = None
    weight: Annotated[float, Gt(0)] = 1.0
    least: Annotated[int, Ge(0)] | None = None
    most: Annotated[int, Ge(0)] | None = None
    pattern: str | None = None
    scorer: str | None = field(default=None, metadata=BESIDE)
    label: str | None = field(default=None, metadata=LATER)


Check = Callable[[str, str, str, Reward], bool]
"""(prompt, answer, the data's own answer, options) -> whether the answer is as it should be."""


def is_of_length(_prompt: str, answer: str, _wanted: str, options: Reward) -> bool:
    """It has from `least` to `most` characters."""
    return (options.least or 0) <= len(answer) and (options.most is None or len(answer) <= options.most)


def has_format(_prompt: str, answer: str, _wanted: str, options: Reward) -> bool:
    """All of it matches `pattern`."""
    return re.fullmatch(options.pattern or "", answer, re.DOTALL) is not None


def is_exact(_prompt: str, answer: str, wanted: str, _options: Reward) -> bool:
    """It is the data's own answer, but for white space around it."""
    return answer.strip() == wanted.strip()


def is_json(_prompt: str, answer: str, _wanted: str, _options: Reward) -> bool:
    """It is an object or a list in JSON."""
    try:
        return isinstance(json.loads(answer), dict | list)
    except (ValueError, RecursionError):
        return False


def is_python(prompt: str, answer: str, _wanted: str, _options: Reward) -> bool:
    """The prompt with it is Python that parses; nothing is run."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(prompt + answer)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


REWARDS: dict[str, Check] = {
    "exact": is_exact,
    "format": has_format,
    "json": is_json,
    "length": is_of_length,
    "python": is_python,
}


def check_reward(reward: Reward, temperature: float, where: str) -> None:
    """Refuse a reward whose bounds are missing, do not fit or have no use, and one of answers that are not drawn."""
    if not temperature:
        raise EdgekitError(f"{where}.temperature: a reward compares answers that are drawn; give a number above 0")
    if (reward.check is None) == (reward.scorer is None):
        told = "missing; give a check, or a scorer" if reward.check is None else "give either check or scorer, not both"
        raise EdgekitError(f"{where}.reward.check: {told}")
    used = {"length": ("least", "most"), "format": ("pattern",), None: ("label",)}.get(reward.check, ())
    given = [key for key in ("least", "most", "pattern", "label") if getattr(reward, key) is not None]
    if wrong := [key for key in given if key not in used]:
        of = "a scorer" if reward.check is None else f"the check {reward.check}"
        raise EdgekitError(f"{where}.reward.{wrong[0]}: has no use for {of}; remove this key")
    if reward.check is None:
        return
    if used and not given:
        raise EdgekitError(f"{where}.reward.{used[-1]}: missing; the check {reward.check} needs {' or '.join(used)}")
    if reward.least is not None and reward.most is not None and reward.least > reward.most:
        raise EdgekitError(f"{where}.reward.least: {reward.least} is above most ({reward.most}); swap them")
    try:
        re.compile(reward.pattern or "")
    except re.error as bad:
        raise EdgekitError(f"{where}.reward.pattern: no regular expression: {bad}; correct it") from bad


def advantages(rewards: Sequence[float]) -> Tensor:
    """How much more each answer of a batch is worth than the others on average, float32 [answers]; of a single one its reward.

    The leave-one-out baseline, which leaves the gradient's mean what it is: Ahmadian et al., "Back to Basics" (RLOO,
    arXiv:2402.14740), equation 8; here the others are answers to other prompts.
    """
    import torch

    found = torch.tensor(rewards, dtype=torch.float32)
    count = len(rewards)
    return found if count == 1 else (found - found.mean()) * (count / (count - 1))
