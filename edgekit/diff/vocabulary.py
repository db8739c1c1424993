"""What became of a tokenizer: its tokens and their ids, and which texts it reads otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.diff.sides import Side
from edgekit.schema import read_json
from edgekit.tokenizing import encode, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SHOWN = 5
# Of a GGUF file: all that its tokenizer is made of; templates are no part of it.
_KEYS, _TOKENS, _TEMPLATES = "tokenizer.", "tokenizer.ggml.tokens", "tokenizer.chat_template"

Reads = Mapping[str, Sequence[int]]
"""Token ids by text."""


@dataclass(frozen=True, kw_only=True)
class TokenizerChange:
    """How many tokens B has and A has not, the reverse, and how many have another id. same: every token and rule is equal.

    texts: how many both read, None where neither was asked; otherwise: how many of them to other tokens, the first as examples.
    """

    same: bool
    added: int
    removed: int
    moved: int
    texts: int | None
    otherwise: int | None
    examples: tuple[str, ...]


def compare_tokenizers(
    a: Side, b: Side, texts: Sequence[str], read: tuple[Reads, Reads] | None
) -> TokenizerChange | None:
    """What became of A's tokenizer; None where a side has none that can be looked into, or the two are of other kinds.

    texts: that both tokenizer.json read. read: how the engines of both read texts, where the tokenizer lies in the model's file.
    Raises EdgekitError for a tokenizer that the installed library does not read.
    """
    files = _tokenizer_file(a), _tokenizer_file(b)
    if files[0] is not None and files[1] is not None:
        mine, theirs = _open(files[0]), _open(files[1])
        same = read_json(files[0]) == read_json(files[1])
        read = _read(mine, texts, files[0]), _read(theirs, texts, files[1])
        return _change(mine.get_vocab(), theirs.get_vocab(), same, read)
    if not a.file.suffix == b.file.suffix == ".gguf":
        return None
    rules = _rules(a.file), _rules(b.file)
    before, after = ({token: place for place, token in enumerate(_tokens(one))} for one in rules)
    return _change(before, after, rules[0] == rules[1], read)


def _tokenizer_file(side: Side) -> Path | None:
    manifest, bundle = side.manifest, side.bundle
    return bundle.folder / manifest.tokenizer if bundle and manifest and manifest.tokenizer else None


def _open(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return read_tokenizer(lambda: Tokenizer.from_file(str(path)), path)


def _read(tokenizer: Tokenizer, texts: Sequence[str], path: Path) -> Reads:
    return {text: list(found.ids) for text, found in zip(texts, encode(tokenizer, texts, path), strict=True)}


def _rules(path: Path) -> Mapping[str, object]:
    """What a GGUF file says of its tokenizer, as values that can be compared."""
    from edgekit.formats.gguf.file import read_gguf

    said = read_gguf(path).metadata
    own = {key: value for key, value in said.items() if key.startswith(_KEYS) and not key.startswith(_TEMPLATES)}
    return {
        key: value if isinstance(value, str | bool | int | float | list) else value.tolist()
        for key, value in own.items()
    }


def _tokens(rules: Mapping[str, object]) -> list[str]:
    found = rules.get(_TOKENS)
    return [str(token) for token in found] if isinstance(found, list) else []


def _change(
    before: Mapping[str, int], after: Mapping[str, int], same: bool, read: tuple[Reads, Reads] | None
) -> TokenizerChange:
    mine, theirs = read or ({}, {})
    both = [text for text in mine if text in theirs]
    unlike = [text for text in both if list(mine[text]) != list(theirs[text])]
    return TokenizerChange(
        same=same,
        added=len(after.keys() - before.keys()),
        removed=len(before.keys() - after.keys()),
        moved=sum(after[token] != place for token, place in before.items() if token in after),
        texts=len(both) or None,
        otherwise=len(unlike) if both else None,
        examples=tuple(text[:80] for text in unlike[:_SHOWN]),
    )
