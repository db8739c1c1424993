"""What the library `tokenizers` knows of each character, found out by asking it about every code point of Unicode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from tokenizers import Regex, normalizers, pre_tokenizers

# What tokenizer.c does to a text before it is split.
CLEAN, SPACE_CHINESE, DECOMPOSE, STRIP_NONSPACING, STRIP_MARKS, LOWERCASE, COMPOSE = range(1, 8)

# Classes of characters, as bits; a combining class (its rank among those there are, from 1) lies above them.
DROPPED, BLANK, CHINESE, MARK, SPACE, PUNCTUATION, LETTER, NUMBER, REGEX_SPACE, NUMERIC, SAYS = (
    1 << bit for bit in range(11)
)
COMBINING_SHIFT = 16

_HANGUL = range(0xAC00, 0xD7A4)  # by arithmetic: The Unicode Standard, section 3.12
_CHUNK = 1 << 12


@dataclass(frozen=True)
class Characters:
    """classes: (first code point, bits) of ranges that follow each other. The rest by code point, where there is something."""

    classes: list[tuple[int, int]]
    decompositions: Mapping[int, Sequence[int]]
    lower: Mapping[int, Sequence[int]]
    compositions: Mapping[tuple[int, int], int]


@cache
def ask(steps: tuple[int, ...], *, byte_level: bool) -> Characters:
    """What these steps, and the splitters of byte-level BPE or else of BERT, must know of characters."""
    flags = [0] * 0x110000
    decompositions: dict[int, list[int]] = {}
    lower: dict[int, list[int]] = {}
    compositions: dict[tuple[int, int], int] = {}
    if CLEAN in steps:
        for point, text in _changes(_bert(clean_text=True)):
            flags[point] |= BLANK if text else DROPPED
    if SPACE_CHINESE in steps:
        for point, text in _changes(_bert(handle_chinese_chars=True)):
            flags[point] |= CHINESE if len(text) == 3 else 0
    if STRIP_NONSPACING in steps or STRIP_MARKS in steps:
        strip = _bert(strip_accents=True) if STRIP_NONSPACING in steps else normalizers.StripAccents()
        for point, text in _changes(strip):
            flags[point] |= MARK if text == "" else 0
    if DECOMPOSE in steps:
        decompositions = _mapped(normalizers.NFD())
        for point, rank in _combining(decompositions).items():
            flags[point] |= rank << COMBINING_SHIFT
    if COMPOSE in steps:
        compositions = _compositions(decompositions)
    if LOWERCASE in steps:
        lower = _mapped(normalizers.Lowercase())
    _split_classes(flags, byte_level)
    for _, part in _parts("01"):
        for one in filter(str.isalnum, part):
            flags[ord(one)] |= SAYS
    ranges = [(0, flags[0])]
    ranges += [(point, flags[point]) for point in range(1, 0x110000) if flags[point] != flags[point - 1]]
    return Characters(ranges, decompositions, lower, compositions)


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as (GPT-2's bytes_to_unicode), each with its byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def _bert(**wanted: bool) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(
        **({"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False} | wanted)
    )


def _changes(normalizer: normalizers.Normalizer, marks: str = "01") -> Iterator[tuple[int, str]]:
    """What a normalizer makes of each character that it changes: many in one call, with marks between them, which it leaves."""
    for mark, part in _parts(marks):
        text = mark + mark.join(part) + mark
        if (found := normalizer.normalize_str(text)) != text:
            pairs = zip(part, found.split(mark)[1:-1], strict=True)
            yield from ((ord(one), made) for one, made in pairs if made != one)


def _mapped(normalizer: normalizers.Normalizer) -> dict[int, list[int]]:
    """What characters become that do not stay what they are; Hangul syllables apart."""
    return {point: [*map(ord, text)] for point, text in _changes(normalizer) if point not in _HANGUL}


def _combining(decompositions: Mapping[int, object]) -> dict[int, int]:
    """The rank of each combining character's class, told by which of two comes first in NFD."""
    nfd = normalizers.NFD().normalize_str
    low, high = "\u0334", "\u0345"  # of the lowest class and the highest

    def moves(before: str, behind: str) -> set[str]:
        found = set()
        for mark, part in _parts("01"):
            text = mark + mark.join(before + one + behind for one in part) + mark
            if (shown := nfd(text)) != text:
                pairs = zip(part, shown.split(mark)[1:-1], strict=True)
                found |= {one for one, made in pairs if made != before + one + behind}
        return {one for one in found if ord(one) not in decompositions and ord(one) not in _HANGUL}

    ranked: list[list[str]] = []  # characters by class, in their order
    for character in sorted(moves("", low) | moves(high, "")):
        place = sum(nfd(character + others[0]) != character + others[0] for others in ranked)
        if place < len(ranked) and nfd(ranked[place][0] + character) == ranked[place][0] + character:
            ranked[place].append(character)
        else:
            ranked.insert(place, [character])
    return {ord(character): rank for rank, others in enumerate(ranked, 1) for character in others}


def _compositions(decompositions: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], int]:
    nfc = normalizers.NFC().normalize_str
    found = {}
    for point, parts in decompositions.items():
        first = nfc("".join(map(chr, parts[:-1])))
        if nfc(chr(point)) == chr(point) and len(first) == 1:
            found[ord(first), parts[-1]] = point
    return found


def _split_classes(flags: list[int], byte_level: bool) -> None:
    """What splitters ask: of BERT's, and of the patterns of byte-level BPE."""
    for point, word in _parted(pre_tokenizers.BertPreTokenizer(), "01"):
        flags[point] |= PUNCTUATION if word else SPACE
    if not byte_level:
        return
    for bit, pattern in {LETTER: r"\p{L}", NUMBER: r"\p{N}", REGEX_SPACE: r"\s"}.items():
        for point, _ in _changes(normalizers.Replace(Regex(pattern), ""), "!?"):
            flags[point] |= bit
    for point, _ in _parted(pre_tokenizers.Digits(individual_digits=True), "ab"):
        flags[point] |= NUMERIC


def _parted(splitter: pre_tokenizers.PreTokenizer, marks: str) -> Iterator[tuple[int, str]]:
    """Characters that a splitter parts from marks beside them, with what it leaves of them; marks are not parted themselves."""
    for mark, part in _parts(marks):
        text, begin = mark + mark.join(part) + mark, 0
        for word, (start, end) in splitter.pre_tokenize_str(text):
            yield from ((ord(text[place]), "") for place in range(begin, start))
            if word != mark and len(word) == 1:
                yield ord(word), word
            begin = end


@cache
def _parts(marks: str) -> list[tuple[str, str]]:
    """Every character in texts of many, each with a mark to set between them: one of two, since a mark is a character too."""
    first, second = marks[0], marks[1]
    asked = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000)))).replace(first, "")
    return [(second, first), *((first, asked[begin : begin + _CHUNK]) for begin in range(0, len(asked), _CHUNK))]
