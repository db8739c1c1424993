"""Why an engine does not do its work where it should: known words of engines, what they mean, and what mends it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong, in a few words and in the engine's own, and the remedy, which begins with a verb.

    library: the one that the words are about; "": none.
    """

    what: str
    words: str
    remedy: str
    library: str = ""

    def __str__(self) -> str:
        """As a part of a message."""
        return f"{self.what}{f' ({self.words})' if self.words else ''}: {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Known:
    """A pattern of an engine's words, and what it means; the pattern's groups and given facts fill in {names}."""

    pattern: str
    what: str
    remedy: str


def find(known: Iterable[Known], words: Sequence[str], **facts: str) -> Fault | None:
    """The first of the known faults that one of the lines is about; facts: what fills in their texts."""
    for one in known:
        for line in words:
            if match := re.search(one.pattern, line):
                named = facts | {key: value or "" for key, value in match.groupdict().items()}
                return Fault(
                    what=one.what.format(**named),
                    words=line,
                    remedy=one.remedy.format(**named),
                    library=named.get("library", ""),
                )
    return None
