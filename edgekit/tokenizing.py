"""The tokenizers library with errors that a user can act on: it raises no class of its own, and panics where Rust does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, first_line
from edgekit.typed_json import as_list, as_table

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_SHOWN = 60
# Of a text's beginning that is tried first, for each token of the length: words of natural language have fewer.
_CHARACTERS = 16


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that is looked for in a text before anything else, by tokenizer.json's words.

    single_word: not inside of a word. lstrip, rstrip: with the spaces before it, behind it. special: not where special tokens are
    read as text.
    """

    id: int
    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool


def read_added_tokens(content: Mapping[str, object], where: object) -> list[AddedToken]:
    """The added tokens of a tokenizer.json; EdgekitError where one has no id or no text."""
    tokens = []
    for index, entry in enumerate(map(as_table, as_list(content.get("added_tokens")))):
        number, text = entry.get("id"), entry.get("content")
        if type(number) is not int or not isinstance(text, str):
            raise EdgekitError(f"{where}: added_tokens.{index}: expected an id and a content; save the tokenizer again")
        flags = {flag: bool(entry.get(flag)) for flag in ("special", "single_word", "lstrip", "rstrip")}
        tokens.append(AddedToken(id=number, content=text, **flags))
    return tokens


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


def readable_part(tokenizer: Tokenizer, text: str, before: str = "") -> str:
    """The beginning of a long text that gives the same token ids as the whole, or the whole.

    tokenizer: one that truncates. before: what is put before the text. Of a tokenizer with BERT's normalizer and pre-tokenizer
    the tokens of a beginning that ends before a space are the first tokens of the whole: the normalizer changes no character
    by what is beyond a space, and no token has a space in it. Where these fill the length, nothing behind them is read. Every
    other tokenizer gets the whole. The part has a letter or a digit, so that it says something where the text does.
    """
    room = int((tokenizer.truncation or {}).get("max_length", 0))
    size = _CHARACTERS * room
    if not 0 < size < len(text) or not _ends_words_at_spaces(tokenizer):
        return text
    while size < len(text):
        end = text.find(" ", size)
        part = text[:end]
        if end < 0:
            break
        if any(map(str.isalnum, part)) and len(tokenizer.encode(before + part).ids) == room:
            return part
        size = 4 * max(size, end)
    return text


def _ends_words_at_spaces(tokenizer: Tokenizer) -> bool:
    rules = json.loads(tokenizer.to_str())
    kinds = [(rules[key] or {}).get("type") for key in ("normalizer", "pre_tokenizer", "model")]
    return (
        kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
        and rules["truncation"]["direction"] == "Right"
        and not any(any(map(str.isspace, token["content"])) for token in rules["added_tokens"])
    )


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
