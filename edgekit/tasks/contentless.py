"""Texts that say nothing: what a microphone or a keyboard gives by accident. They belong to no class.

TAUGHT go into the train split of a classifier that rejects texts, ASKED are what its artifact is then asked: none is in both.
Texts without a letter or a digit need no teaching: a rule answers them (`text_classification.has_content`).
"""

from __future__ import annotations

from collections.abc import Iterable

_SOUNDS = (
    "hm",
    "er",
    "ah",
    "eh",
    "uhm",
    "ummm",
    "oh",
    "mm",
    "uhh uhh",
    "um um",
    "er um",
    "ah eh",
    "hmm hmm",
    "la la la",
)
_KEYS = ("a", "x", "qwerty", "lorem ipsum", "jkl", "sdfg sdfg", "blah", "zxcvb", "dsf kjh", "aaaaaa", "hhhhhhhhhh")
TAUGHT: tuple[str, ...] = (
    *_SOUNDS,
    *_KEYS,
    *(letter * count for letter in "aeimnoxz" for count in (3, 12, 60)),
    *(" ".join([sound] * 20) for sound in ("ah", "blah", "na")),
)
ASKED: tuple[str, ...] = ("uh", "um", "hmm", "erm", "x" * 500, "asdf", "ooooooooo", "blah blah")


def untaught(texts: Iterable[str]) -> list[str]:
    """Those of TAUGHT that are not among the texts, whatever their case."""
    left = dict.fromkeys(TAUGHT)
    for text in texts:
        left.pop(text.strip().casefold(), None)
    return [text for text in TAUGHT if text in left]
