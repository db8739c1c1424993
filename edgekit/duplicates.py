"""When two texts are one: the same words written otherwise (`normalized`), or nearly the same words (`near_pairs`)."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

# Two short texts with this share of common words are one text for our purpose: a model that saw one knows the other.
NEAR_DUPLICATE = 0.9
# Lower-case Cyrillic and Greek letters that look like Latin ones, in one of their two cases (Unicode UTS #39, confusables.txt).
_LOOK_ALIKES = str.maketrans(
    "авеԁһіјкӏмнорԛѕтухԝ" + "αβγεζηικμνορτυχ",
    "abedhijklmhopqstyxw" + "abyezhikmvoptyx",
)
# Apostrophes, and the letters and marks that are typed for one.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4`\uff07", "'"))
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
    whole = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    shown = "".join(letter for letter in whole if unicodedata.category(letter) != "Cf")
    folded = unicodedata.normalize("NFKC", shown.casefold()).translate(_LOOK_ALIKES)
    letters = (" " if _separates(letter) else letter for letter in _CONTRACTED.sub(_expanded, folded))
    return " ".join("".join(letters).split()) or folded.strip() or text


def text_digest(text: str) -> str:
    """The sha256 of a text as it is compared (`normalized`), in hexadecimal: equal for two texts that are one."""
    return hashlib.sha256(normalized(text).encode("utf-8", "surrogatepass")).hexdigest()


def _separates(letter: str) -> bool:
    """Punctuation, white space, controls, variation selectors and the accents that stand alone."""
    category = unicodedata.category(letter)
    return category[0] in "PZC" or category == "Sk" or "\ufe00" <= letter <= "\ufe0f"


def _expanded(found: re.Match[str]) -> str:
    if found["irregular"]:
        return _IRREGULAR[found["irregular"]]
    if found["whose"]:
        return f"{found['whose']} is"
    return found["word"] + _ENDINGS[found["ending"]]


def words(text: str) -> frozenset[str]:
    """A text's words as they are compared, numbers masked."""
    return frozenset("#" if word.isdigit() else word for word in re.findall(r"\w+", normalized(text)))


def near_pairs(earlier: Sequence[str], later: Sequence[str], share: float = NEAR_DUPLICATE) -> list[tuple[int, int]]:
    """Pairs (i, j) of texts whose word sets have Jaccard similarity >= share.

    Prefix filtering (Chaudhuri et al., "A Primitive Operator for Similarity Joins", ICDE 2006): two sets that similar share
    one of the first |x| - ceil(share |x|) + 1 words of x in any fixed order; rarest first keeps the lists short.
    """
    sets_a, sets_b = [words(text) for text in earlier], [words(text) for text in later]
    counts = Counter(word for group in (*sets_a, *sets_b) for word in group)
    index: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(sets_a):
        for word in _rarest(group, counts, share):
            index[word].append(place)
    pairs = set()
    for place, group in enumerate(sets_b):
        candidates = {other for word in _rarest(group, counts, share) for other in index[word]}
        for other in candidates:
            if len(group & sets_a[other]) >= share * len(group | sets_a[other]):
                pairs.add((other, place))
        if not group:
            pairs |= {(other, place) for other, text in enumerate(earlier) if text.strip() == later[place].strip()}
    return sorted(pairs)


def _rarest(group: frozenset[str], counts: Mapping[str, int], share: float) -> list[str]:
    keep = len(group) - math.ceil(share * len(group)) + 1
    return sorted(group, key=lambda word: (counts[word], word))[:keep]
