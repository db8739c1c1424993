"""The tokenizers library with errors that a user can act on: it raises no class of its own, and panics where Rust does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, first_line

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_SHOWN = 60


def read_tokenizer(read: Callable[[], Tokenizer], where: object) -> Tokenizer:
    """What `read` makes of a tokenizer.json; EdgekitError where the installed library cannot read it."""
    try:
        return read()
    except BaseException as bad:
        if type(bad) is Exception or _is_panic(bad):
            raise EdgekitError(
                f"{where}: the installed tokenizers library cannot read it: {first_line(bad).rstrip('.')[:200]}; save it again"
                " with AutoTokenizer.from_pretrained(...).save_pretrained(...), or take the version that wrote it"
            ) from bad
        raise


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], where: object, *, add_special_tokens: bool = True
) -> list[Encoding]:
    """The encodings of all texts.

    Raises EdgekitError that shows the text which is not Unicode, or at which the tokenizer gives up (Oniguruma ends a regular
    expression that tries too often).
    """
    try:
        return list(tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens))
    except BaseException as bad:
        if isinstance(bad, TypeError | UnicodeEncodeError) or type(bad) is Exception or _is_panic(bad):
            guilty = _guilty(tokenizer, texts)
            shown = repr(guilty[:_SHOWN]) + "..." * (len(guilty) > _SHOWN)
            # What the library says of a half character names its own types.
            why = "it is not Unicode" if isinstance(bad, TypeError | UnicodeEncodeError) else first_line(bad)[:200]
            raise EdgekitError(
                f"{where}: it does not take the text {shown}: {why}; take"
                " the text out of the data, or a model with another tokenizer"
            ) from bad
        raise


def _guilty(tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    """The first text that fails by itself."""
    for text in texts:
        try:
            tokenizer.encode_batch_fast([text])
        except BaseException as bad:
            if isinstance(bad, TypeError | UnicodeEncodeError) or type(bad) is Exception or _is_panic(bad):
                return text
            raise
    return texts[0] if texts else ""


def _is_panic(bad: BaseException) -> bool:
    """Whether it is a panic of Rust's, which no module exports a class of."""
    return type(bad).__name__ == "PanicException"
