"""Two texts are one where they differ by how they are written, and nearly one where their words are nearly the same."""

from __future__ import annotations

import random

import pytest

from edgekit.duplicates import near_pairs, normalized, text_digest, words

PLAIN = "what is up, pal"


@pytest.mark.parametrize(
    "written",
    [
        "What is up, pal?",
        "what's up pal",
        "What\u2019s up - pal!",
        "what is up\u200b pal\ufeff",  # zero-width space, byte order mark
        "wh\u00adat is\u200d up pal",  # soft hyphen, joiner
        "\uff57\uff48\uff41\uff54 is up pal",  # full width
        "what_is__up pal",
        "wh\u0430t is u\u0440 p\u0430l",  # Cyrillic a and er
        "WH\u0410T IS UP PAL",  # Cyrillic capital A
        "what is up p\u03b1l",  # Greek alpha
        " what\u00a0is\u2028up\tpal \n",
        "what\u00b4s up pal",
    ],
)
def test_how_a_text_is_written_does_not_count(written: str) -> None:
    assert normalized(written) == normalized(PLAIN) == "what is up pal"
    assert text_digest(written) == text_digest(PLAIN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("what is up", "what is down"),
        ("5 apples", "6 apples"),
        ("C++", "C"),
        ("12 + 3", "12 = 3"),
        ("...", "?!"),
        ("", "..."),
        ("\u200b", ""),
        ("\U0001f600", "\U0001f622"),
        ("on", "off"),
        ("resume", "r\u00e9sum\u00e9"),
    ],
)
def test_texts_that_differ_stay_apart(one: str, other: str) -> None:
    assert normalized(one) != normalized(other)
    assert text_digest(one) != text_digest(other)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("I can't, won't and didn't", "i can not will not and did not"),
        ("They're here; we've won, I'd say it'll do", "they are here we have won i would say it will do"),
        ("Tina's mum", "tina s mum"),
        ("let's go", "let us go"),
        ("\u0412\u043e\u0442 \u043e\u043d", "\u0432\u043e\u0442 \u043e\u043d".translate({0x432: "b", 0x43E: "o", 0x442: "t", 0x43D: "h"})),
        ("\u4f60\u597d\uff0c\u4e16\u754c", "\u4f60\u597d \u4e16\u754c"),
    ],
)  # fmt: skip
def test_normalized(text: str, result: str) -> None:
    assert normalized(text) == result


def test_near_pairs_finds_what_all_pairs_find() -> None:
    """The prefix filter loses nothing: compared with every pair, on texts that differ by a word or two."""
    generator = random.Random(1)
    vocabulary = [f"w{number}" for number in range(40)]
    texts = [" ".join(generator.sample(vocabulary, generator.randint(1, 14))) for _ in range(150)]
    texts += [f"{text} w{generator.randint(0, 39)}" for text in texts[:80]]
    generator.shuffle(texts)
    earlier, later = texts[:120], texts[120:]
    for share in (0.5, 0.7, 0.9, 1.0):
        expected = [
            (place, other)
            for place, one in enumerate(earlier)
            for other, two in enumerate(later)
            if len(words(one) & words(two)) >= share * len(words(one) | words(two))
        ]
        assert near_pairs(earlier, later, share) == expected
    assert near_pairs(["!!", "??"], ["??", "a"]) == [(1, 0)]


def test_words_mask_numbers() -> None:
    assert words("Set 5 timers, at 10!") == {"set", "#", "timers", "at"}
