"""When two texts are one: the same words written otherwise (`normalized`), or nearly the same words with the same label."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

# A text and its label.
Labelled = tuple[str, str | None]
# Two texts with this share of common words are one text for our purpose: a model that saw one knows the other.
NEAR_DUPLICATE = 0.9
# Texts of so many words are one where a single word differs: of shorter ones it may be what the text is about ("lights on",
# "lights off"), and of longer ones the share of common words tells.
ONE_WORD = range(5, 31)
# Shorter texts are one where a single letter differs, if they have at least so many.
ONE_LETTER = 8
# Lower-case Cyrillic and Greek letters that look like Latin ones, in one of their two cases (Unicode UTS #39, confusables.txt).
_LOOK_ALIKES = str.maketrans(
    "авеԁһіјкӏмнорԛѕтухԝ" + "αβγεζηικμνορτυχ",
    "abedhijklmhopqstyxw" + "abyezhikmvoptyx",
)
# What is typed for an apostrophe, and for a space.
_TYPED = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4`\uff07", "'") | {"_": " "})
_IRREGULAR = {"can't": "can not", "cannot": "can not", "won't": "will not", "shan't": "shall not", "let's": "let us"}
_ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "'m": " am"}
# Behind other words 's is mostly a genitive.
_WITH_IS = "what who where when how why it that this there here he she everything something nothing"
_CONTRACTED = re.compile(
    rf"\b(?:(?P<irregular>{'|'.join(_IRREGULAR)})|(?P<word>[^\W\d_]+?)(?P<ending>{'|'.join(_ENDINGS)})"
    rf"|(?P<whose>{'|'.join(_WITH_IS.split())})'s)\b"
)


def normalized(text: str) -> str:
    """A text as it is compared: how it is written (case, width, punctuation, contractions, look-alike letters) does not count.

    NFKC and case folding (Unicode standard annex 15 and chapter 3.13), no format characters (category Cf), `_` as a space,
    Cyrillic and Greek look-alikes as Latin letters, "what's" as "what is", and runs of punctuation and white space as one
    space. Symbols (C++, 12 + 3, an emoji) stay. A text of nothing else stays as it is, so that "..." and "?!" differ.
    """
    # Before NFKC, which makes a space of the acute accent that stands for an apostrophe.
    whole = unicodedata.normalize("NFKC", text.translate(_TYPED))
    shown = whole if whole.isascii() else "".join(letter for letter in whole if _category(letter) != "Cf")
    folded = unicodedata.normalize("NFKC", shown.casefold()).translate(_LOOK_ALIKES)
    told = _CONTRACTED.sub(_expanded, folded) if "'" in folded or "cannot" in folded else folded
    spaced = told.translate(_SPACED) if told.isascii() else "".join(map(_or_space, told))
    return " ".join(spaced.split()) or folded.strip() or text


def text_digest(text: str) -> str:
    """The sha256 of a text as it is compared (`normalized`), in hexadecimal: equal for two texts that are one."""
    return hashlib.sha256(normalized(text).encode("utf-8", "surrogatepass")).hexdigest()


_category = lru_cache(maxsize=4096)(unicodedata.category)


@lru_cache(maxsize=4096)
def _or_space(letter: str) -> str:
    """A space for punctuation, white space, controls, variation selectors and the accents that stand alone."""
    category = _category(letter)
    separates = category[0] in "PZC" or category == "Sk" or "\ufe00" <= letter <= "\ufe0f"
    return " " if separates else letter


# Of ASCII all at once: long texts are mostly that.
_SPACED = str.maketrans({letter: " " for letter in map(chr, range(128)) if _or_space(letter) == " "})


def _expanded(found: re.Match[str]) -> str:
    if found["irregular"]:
        return _IRREGULAR[found["irregular"]]
    if found["whose"]:
        return f"{found['whose']} is"
    return found["word"] + _ENDINGS[found["ending"]]


def words(text: str) -> frozenset[str]:
    """A text's words as they are compared, numbers masked."""
    return frozenset(_masked(_words(normalized(text))))


def near_copies(
    texts: Sequence[Labelled], among: Sequence[Labelled], *, masks_unlabelled: bool = True
) -> dict[int, int]:
    """The texts that are nearly one of others: their indices, each with that of one such other.

    Two texts are one where they are `normalized` alike, whatever their labels. With the same label they are nearly one where, in
    any order, they share NEAR_DUPLICATE of their words; where, of ONE_WORD words, one was replaced, added, dropped or moved; and,
    of fewer, where one letter was. Numbers count as equal there, and politeness does not count. A text without a label agrees
    with all labels; its numbers count as equal to others' only with masks_unlabelled, and then with texts without a label alone.
    """
    seen = Seen(among, masks_unlabelled=masks_unlabelled, beside=texts)
    for index, (text, label) in enumerate(among):
        seen.add(index, text, label)
    found = ((index, seen.find(text, label)) for index, (text, label) in enumerate(texts))
    return {index: other for index, other in found if other is not None}


def repeats(texts: Sequence[Labelled], *, masks_unlabelled: bool = True) -> dict[int, int]:
    """The texts that are nearly an earlier one that stays (as in `near_copies`): their indices, each with that one's."""
    seen = Seen(texts, masks_unlabelled=masks_unlabelled)
    found = {}
    for index, (text, label) in enumerate(texts):
        other = seen.find(text, label)
        if other is None:
            seen.add(index, text, label)
        else:
            found[index] = other
    return found


# Politeness is no difference between two texts.
_POLITE = frozenset({"please", "pls", "plz", "kindly", "thanks", "thx"})
# A letter of the scripts that write no spaces between words is a word here: Thai, Lao, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _masked(found: Iterable[str]) -> list[str]:
    return ["#" if word.isdigit() else word for word in found]


@dataclass(frozen=True, kw_only=True)
class _View:
    """A text's words as they are compared with texts of one kind (of a label, of any, of none)."""

    kind: tuple[str, ...]
    words: list[str]

    def hashes(self) -> Iterator[int]:
        """Hashes that two texts share where they are nearly one by a word, a letter or a space.

        Texts are one word apart where leaving out one word of either, or of both, makes them the same. Of 64 bits, so that two
        of 10^6 keys that differ are taken for the same with a chance of 10^-7.
        """
        yield hash((self.kind, frozenset(self.words)))
        yield hash((self.kind, "".join(self.words)))
        yield hash((self.kind, *self.words))
        count = len(self.words)
        if count in ONE_WORD:
            for place in range(count):
                yield hash((self.kind, *self.words[:place], *self.words[place + 1 :]))
        elif count < ONE_WORD.start:
            text = " ".join(self.words)
            yield hash((self.kind, "letters", text))
            if len(text) >= ONE_LETTER:
                for place in range(len(text)):
                    yield hash((self.kind, "letters", text[:place] + text[place + 1 :]))


class Seen:
    """Texts with labels, found again by what is nearly one of them (see `near_copies`).

    The share of common words is found by prefix filtering (Chaudhuri et al., "A Primitive Operator for Similarity Joins", ICDE
    2006): two sets that similar share one of the first |x| - ceil(share |x|) + 1 words of x in any fixed order; rarest first
    keeps the lists short.
    """

    def __init__(
        self, texts: Sequence[Labelled], *, masks_unlabelled: bool = True, beside: Iterable[Labelled] = ()
    ) -> None:
        """texts: all that will be added; what is looked for may be `beside` them."""
        self._masks = masks_unlabelled
        self._read = {text: _read(text) for text, _ in texts}
        self._counts = Counter(word for _, found in self._read.values() for word in {*found, *_masked(found)})
        self._mixed = not masks_unlabelled and len({label is None for _, label in chain(texts, beside)}) > 1
        self._whole: dict[str, int] = {}
        self._keys: dict[int, int] = {}
        self._bags: dict[tuple[tuple[str, ...], str], list[tuple[int, frozenset[str]]]] = defaultdict(list)

    def add(self, index: int, text: str, label: str | None) -> None:
        """Keep a text under its index; of texts that are nearly one the first is found."""
        plain, found = self._read[text]
        self._whole.setdefault(plain, index)
        views = [self._view(found, label)]
        if self._mixed:
            views.append(_View(kind=("any",), words=found))
        for view in views if found else []:
            for key in view.hashes():
                self._keys.setdefault(key, index)
            bag = frozenset(view.words)
            for word in self._rarest(bag):
                self._bags[view.kind, word].append((index, bag))

    def find(self, text: str, label: str | None) -> int | None:
        """The index of a text that was added and is nearly this one."""
        plain, found = self._read.get(text) or _read(text)
        if plain in self._whole:
            return self._whole[plain]
        views = [self._view(found, label)]
        if self._mixed:
            views = (
                [views[0], _View(kind=("none",), words=found)]
                if label is not None
                else [_View(kind=("any",), words=found)]
            )
        for view in views if found else []:
            near = next((self._keys[key] for key in view.hashes() if key in self._keys), None)
            near = self._find_bag(view) if near is None else near
            if near is not None:
                return near
        return None

    def _view(self, found: list[str], label: str | None) -> _View:
        if label is None and not self._masks:
            return _View(kind=("none",), words=found)
        return _View(kind=("label", label or ""), words=_masked(found))

    def _find_bag(self, view: _View) -> int | None:
        bag = frozenset(view.words)
        for word in self._rarest(bag):
            for index, other in self._bags.get((view.kind, word), ()):
                if len(bag & other) >= NEAR_DUPLICATE * len(bag | other):
                    return index
        return None

    def _rarest(self, bag: frozenset[str]) -> list[str]:
        keep = len(bag) - math.ceil(NEAR_DUPLICATE * len(bag)) + 1
        return sorted(bag, key=lambda word: (self._counts[word], word))[:keep]


def _read(text: str) -> tuple[str, list[str]]:
    return (plain := normalized(text)), _spoken(plain)


def _spoken(plain: str) -> list[str]:
    found = _words(plain)
    return [word for word in found if word not in _POLITE] or found
