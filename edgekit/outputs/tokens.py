"""A sequence of tokens that the model writes one by one: a text is continued, a conversation answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A kind of answer that is written token by token."""

    name: str
    generates: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    pools: ClassVar[bool] = False

    def plain(self, answer: object) -> object:
        """The text itself."""
        return answer


TOKENS = Tokens(name="tokens")
