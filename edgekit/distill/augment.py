"""Texts as people write them when they are in a hurry: a wrong key, other capitals, a word left out.

Dropped words are EDA's "random deletion" (Wei and Zou, arXiv:1901.11196, section 2), wrong keys the "keyboard typo" of Belinkov
and Bisk (arXiv:1711.02173, section 3.2). Most texts still mean the same to a reader, not all: so a teacher is asked what it says
of the text as it then stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from edgekit.errors import EdgekitError

Share = Annotated[float, Ge(0), Lt(1)]
# The letters of a QWERTY keyboard, each row with how far it is shifted to the right, in keys.
_KEYS = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))
_PLACES = {key: (column + shift, row) for row, (keys, shift) in enumerate(_KEYS) for column, key in enumerate(keys)}
# The squared distance from a key to those that touch it: 1 in its row, 1.0625 to 1.5625 in those beside it.
_TOUCHING = 1.6
NEIGHBOURS = {
    key: "".join(
        other for other, (x, y) in _PLACES.items() if other != key and (x - column) ** 2 + (y - row) ** 2 < _TOUCHING
    )
    for key, (column, row) in _PLACES.items()
}


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The shares of a text's words that are written with a wrong key, in other capitals, or left out; others in each epoch."""

    typo: Share = 0.0
    case: Share = 0.0
    drop: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class TaughtAugment(Augment):
    """The same, beside a teacher. answers: `asked`, what it says of the changed text; `kept`, what it says of the text as it was,
    which is asked once and not in each epoch."""

    answers: Literal["asked", "kept"] = "asked"


def check_augment(asked: Augment | None, where: str) -> None:
    """Refuse (EdgekitError, beginning with `where`) a table that changes nothing."""
    if asked is not None and not (asked.typo or asked.case or asked.drop):
        raise EdgekitError(f"{where}: changes nothing; give a share of words, such as typo = 0.1, case or drop")


def vary(text: str, asked: Augment, seed: int, epoch: int, row: int) -> str:
    """A text as it is read in an epoch: always the same for the same seed, epoch and row. One word stays at least."""
    random = Random(f"augment:{seed}:{epoch}:{row}")
    pieces = re.split(r"(\s+)", text)
    words = [index for index, piece in enumerate(pieces) if piece and not piece.isspace()]
    # All that is drawn, in an order that no share changes.
    drawn = {index: [random.random() for _ in range(6)] for index in words}
    dropped = {index for index in words if drawn[index][0] < asked.drop}
    if len(dropped) == len(words):
        dropped -= {max(words, key=lambda index: drawn[index][0], default=-1)}
    for index in words:
        _, cased, which_case, mistyped, where, which = drawn[index]
        if cased < asked.case:
            pieces[index] = _recase(pieces[index], which_case)
        if mistyped < asked.typo:
            pieces[index] = _mistype(pieces[index], where, which)
    for index in dropped:
        # With the space before it, or behind the first.
        pieces[index] = ""
        pieces[index - 1 if index else min(1, len(pieces) - 1)] = ""
    return "".join(pieces).strip() if dropped else "".join(pieces)


def _recase(word: str, draw: float) -> str:
    """The word in lower case, in capitals or with a first capital, whichever of them it is not."""
    others = [form for form in (word.lower(), word.upper(), word.capitalize()) if form != word]
    return others[int(draw * len(others))] if others else word


def _mistype(word: str, where: float, which: float) -> str:
    """The word with one of its letters a to z replaced by a key beside it; a word without one stays."""
    letters = [index for index, letter in enumerate(word) if letter.lower() in NEIGHBOURS]
    if not letters:
        return word
    index = letters[int(where * len(letters))]
    near = NEIGHBOURS[word[index].lower()]
    key = near[int(which * len(near))]
    return word[:index] + (key.upper() if word[index].isupper() else key) + word[index + 1 :]
