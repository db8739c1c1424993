"""A tokenizer.json as a compact file that the tokenizer in C reads (loaders/c/tokenizer.c), without JSON or tables of Unicode.

What Unicode says of a character (its class, its decomposition, its lower case) is asked of the library `tokenizers`, for every
code point, and written into the file: the C program answers by what the library knows, not by another version of Unicode.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgekit.bundle import characters
from edgekit.bundle.characters import Characters
from edgekit.errors import EdgekitError

# A table of tokenizer.json.
_Table = Mapping[str, Any]

MAGIC = b"EKTOKEN1"
NONE = 0xFFFFFFFF

# What tokenizer.c knows, by the numbers that it knows it by.
WORDPIECE, BPE = 1, 2
BERT_SPLIT, GPT2_SPLIT, LLAMA3_SPLIT = 1, 2, 3
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The patterns of Split that tokenizer.c splits by: the splitter, and how many digits stay together (0: all).
_PATTERNS = {
    _GPT2: (GPT2_SPLIT, 0),
    _LLAMA3 % "{1,3}": (LLAMA3_SPLIT, 3),
    _LLAMA3 % "": (LLAMA3_SPLIT, 1),
}
_LSTRIP, _RSTRIP, _NORMALIZED = 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class _Split:
    """How a text is split into words: tokenizer.c's splitter and its settings."""

    splitter: int
    digits: int = 0
    prefix_space: bool = False
    digits_alone: bool = False


def compact_tokenizer(path: Path, table: _Table | None = None) -> bytes:
    """The compact file of a tokenizer.json. table: what is read in the place of that file's content.

    Raises EdgekitError, which names what it is, for a tokenizer that the C program does not know.
    """
    table = table or json.loads(path.read_bytes())
    refuse = _Refusal(path)
    model, tokenizer = table["model"], Tokenizer.from_str(json.dumps(table))
    steps = _steps(table["normalizer"], refuse)
    split = _split(table["pre_tokenizer"], refuse)
    kinds = {"WordPiece": (WORDPIECE, {BERT_SPLIT}), "BPE": (BPE, {GPT2_SPLIT, LLAMA3_SPLIT})}
    kind, splitters = kinds.get(model["type"], (0, set()))
    refuse.unless(split.splitter in splitters, f"a model of the kind {model['type']} behind this pre-tokenizer")
    before, behind = _around(tokenizer, refuse)
    limit, left = _truncation(table["truncation"], len(before) + len(behind), refuse)
    refuse.unless(
        (table["padding"] or {}).get("strategy", "BatchLongest") == "BatchLongest", "padding to a fixed length"
    )
    vocabulary: dict[bytes, int] = {}
    merges: list[tuple[int, ...]] = []
    singles: list[int] = []
    unknown = model["vocab"].get(model.get("unk_token"), NONE)
    if kind == WORDPIECE:
        refuse.unless(unknown != NONE, f"an unknown token ({model['unk_token']}) that its vocabulary lacks")
        vocabulary = {token.encode(): index for token, index in model["vocab"].items()}
    else:
        vocabulary, merges, singles = _byte_level(model, refuse)
    settings = [kind, split.splitter, split.digits, split.prefix_space, split.digits_alone, limit, left, unknown]
    settings += [model.get("max_input_chars_per_word", 0), bool(model.get("ignore_merges"))]
    known = characters.ask(tuple(steps), byte_level=kind == BPE)
    spelled, shape = _added(table["added_tokens"], tokenizer, refuse)
    prefix = model.get("continuing_subword_prefix") or ""
    return _written([
        *map(_words, (settings, steps, before, behind)), prefix.encode(), *_characters(known), *_strings(vocabulary.items()),
        _words(value for merge in sorted(merges) for value in merge), _words(singles), *_strings(spelled), _words(shape),
    ])  # fmt: skip


def token_pieces(path: Path) -> bytes:
    """What each token of a byte-level tokenizer.json is as text: how many, where each begins and the last ends, and the bytes.

    Special tokens have none. Raises EdgekitError for a tokenizer that spells its tokens otherwise.
    """
    table, refuse = json.loads(path.read_bytes()), _Refusal(path)
    refuse.unless((table["decoder"] or {}).get("type") == "ByteLevel", "tokens that are not spelled by bytes")
    byte_of, added = characters.byte_alphabet(), {token["id"]: token for token in table["added_tokens"]}
    spelled = {index: token for token, index in table["model"]["vocab"].items()}
    pieces = []
    for index in range(max([*spelled, *added]) + 1):
        token = added[index]["content"] if index in added else spelled.get(index, "")
        known = index not in added and all(character in byte_of for character in token)
        piece = bytes(map(byte_of.__getitem__, token)) if known else token.encode()
        pieces.append(b"" if index in added and added[index]["special"] else piece)
    ends = itertools.accumulate(map(len, pieces), initial=0)
    return _words([len(pieces), *ends]) + b"".join(pieces)


@dataclass(frozen=True)
class _Refusal:
    path: Path

    def unless(self, known: bool, what: str) -> None:
        if not known:
            raise EdgekitError(
                f"{self.path}: the tokenizer in C does not know {what}: it reads WordPiece of BERT, and byte-level BPE as of"
                " GPT-2, RoBERTa, Llama 3 and Qwen 2; use a loader with the library tokenizers (--for python or node)"
            )


def _steps(normalizer: _Table | None, refuse: _Refusal) -> list[int]:
    """What is done to a text before it is split, in tokenizer.c's numbers."""
    if normalizer is None:
        return []
    kind = normalizer["type"]
    if kind == "Sequence":
        found = [step for one in normalizer["normalizers"] for step in _steps(one, refuse)]
        refuse.unless(len(set(found)) == len(found), "a normalizer that does the same twice")
        marks = {characters.STRIP_NONSPACING, characters.STRIP_MARKS} & set(found)
        refuse.unless(len(marks) < 2, "a normalizer that strips accents in two ways")
        return found
    if kind == "BertNormalizer":
        strips = normalizer["strip_accents"]
        strips = normalizer["lowercase"] if strips is None else strips
        chosen = {
            characters.CLEAN: normalizer["clean_text"],
            characters.SPACE_CHINESE: normalizer["handle_chinese_chars"],
            characters.DECOMPOSE: strips,
            characters.STRIP_NONSPACING: strips,
            characters.LOWERCASE: normalizer["lowercase"],
        }
        return [step for step, wanted in chosen.items() if wanted]
    plain = {
        "NFD": [characters.DECOMPOSE],
        "NFC": [characters.DECOMPOSE, characters.COMPOSE],
        "Lowercase": [characters.LOWERCASE],
        "StripAccents": [characters.STRIP_MARKS],
    }
    refuse.unless(kind in plain, f"the normalizer {kind}")
    return plain[kind]


def _split(table: _Table | None, refuse: _Refusal) -> _Split:
    refuse.unless(table is not None, "a tokenizer without a pre-tokenizer")
    parts: list[_Table] = table["pretokenizers"] if table and table["type"] == "Sequence" else [table or {}]
    kinds = [part["type"] for part in parts]
    if kinds == ["BertPreTokenizer"]:
        return _Split(splitter=BERT_SPLIT)
    what = "the pre-tokenizer " + " and ".join(kinds)
    refuse.unless(kinds in (["ByteLevel"], ["Split", "ByteLevel"], ["Digits", "ByteLevel"]), what)
    last, first = parts[-1], parts[0]
    spaced, matched = bool(last["add_prefix_space"]), bool(last.get("use_regex", True))
    if len(parts) == 1:
        refuse.unless(matched, what + " that does not split")
        return _Split(splitter=GPT2_SPLIT, prefix_space=spaced)
    refuse.unless(not spaced, what + " with a space in front of each word")
    if first["type"] == "Digits":
        refuse.unless(matched and first["individual_digits"], what + " with digits that stay together")
        return _Split(splitter=GPT2_SPLIT, digits_alone=True)
    pattern = first["pattern"].get("Regex", "")
    refuse.unless(pattern in _PATTERNS and not matched, f"the pattern {pattern or first['pattern']}")
    refuse.unless(first["behavior"] == "Isolated" and not first["invert"], "a pattern between words")
    splitter, digits = _PATTERNS[pattern]
    return _Split(splitter=splitter, digits=digits)


def _around(tokenizer: Tokenizer, refuse: _Refusal) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind those of one text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    shown = tokenizer.encode("a")
    added = list(shown.special_tokens_mask)
    refuse.unless(0 in added, "a tokenizer without the letter a")
    first, last = added.index(0), len(added) - added[::-1].index(0)
    return list(shown.ids[:first]), list(shown.ids[last:])


def _truncation(table: _Table | None, around: int, refuse: _Refusal) -> tuple[int, bool]:
    """How many of a text's own tokens are kept, and whether they are the last; NONE where all are."""
    if table is None:
        return NONE, False
    refuse.unless(table["max_length"] >= around, f"a limit of {table['max_length']} tokens")
    refuse.unless(table["strategy"] == "LongestFirst", f"the truncation {table['strategy']}")
    return table["max_length"] - around, table["direction"] == "Left"


def _byte_level(model: _Table, refuse: _Refusal) -> tuple[dict[bytes, int], list[tuple[int, ...]], list[int]]:
    """What BPE merges: words that are tokens as they are (where merges are ignored for them), merges, and each byte's token."""
    refuse.unless(not model["dropout"], "BPE with dropout")
    refuse.unless(not model["continuing_subword_prefix"] and not model["end_of_word_suffix"], "BPE with marks of words")
    vocabulary, byte_of = model["vocab"], characters.byte_alphabet()
    singles = [NONE] * 256
    for character, byte in byte_of.items():
        singles[byte] = vocabulary.get(character, NONE)
    whole = NONE not in singles
    refuse.unless(whole or not (model["fuse_unk"] or model["byte_fallback"]), "BPE that lacks bytes and falls back")
    ranks: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        ranks[vocabulary[left], vocabulary[right]] = (rank, vocabulary[left + right])
    words = {
        bytes(map(byte_of.__getitem__, token)): index
        for token, index in vocabulary.items()
        if model.get("ignore_merges") and all(character in byte_of for character in token)
    }
    return words, [(*pair, *ranked) for pair, ranked in ranks.items()], singles


def _added(
    tokens: Sequence[_Table], tokenizer: Tokenizer, refuse: _Refusal
) -> tuple[list[tuple[bytes, int]], list[int]]:
    """Tokens that are found in a text before it is split, and by the order of their spelling what is to be done with each."""
    spelled: list[tuple[bytes, int, int]] = []
    for token in tokens:
        text, flags = token["content"], _LSTRIP * token["lstrip"] + _RSTRIP * token["rstrip"]
        refuse.unless(not token["single_word"], f"the added token {text} that must be a word of its own")
        if token["normalized"]:
            flags += _NORMALIZED
            text = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        if text:
            spelled.append((text.encode(), token["id"], flags))
    distinct = {(text, flags & _NORMALIZED) for text, _, flags in spelled}
    refuse.unless(len(distinct) == len(spelled), "two added tokens that are spelled alike")
    spelled.sort()
    return [(text, index) for text, index, _ in spelled], [flags for _, _, flags in spelled]


def _characters(known: Characters) -> list[bytes]:
    """Classes by ranges, decompositions, lower cases, and pairs that compose."""
    return [
        _words(value for start, flags in known.classes for value in (start, flags)),
        *_mapping(known.decompositions),
        *_mapping(known.lower),
        _words(value for (first, second), whole in sorted(known.compositions.items()) for value in (first, second, whole)),
    ]  # fmt: skip


def _mapping(mapped: Mapping[int, Sequence[int]]) -> list[bytes]:
    """Code points with where what they become begins; then all that they become. A last row says where that ends."""
    rows, all_points = list[int](), list[int]()
    for point, points in sorted(mapped.items()):
        rows += [point, len(all_points)]
        all_points += points
    return [_words([*rows, NONE, len(all_points)]), _words(all_points)]


def _strings(entries: Iterable[tuple[bytes, int]]) -> list[bytes]:
    """Strings in their order with the token's id and where they begin, a last row that says where they end; then their bytes."""
    ordered, begin, rows = sorted(entries), 0, list[int]()
    for text, index in ordered:
        rows += [index, begin]
        begin += len(text)
    return [_words([*rows, NONE, begin]), b"".join(text for text, _ in ordered)]


def _words(values: Iterable[int]) -> bytes:
    numbers = [int(value) for value in values]
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _written(sections: Sequence[bytes]) -> bytes:
    """Magic, size, then for each section where it begins and its bytes, then the sections, each from a multiple of 4."""
    begin, head, body = len(MAGIC) + 4 * (2 + 2 * len(sections)), list[int](), b""
    for section in sections:
        head += [begin + len(body), len(section)]
        body += section + bytes(-len(section) % 4)
    return MAGIC + _words([begin + len(body), len(sections), *head]) + body
