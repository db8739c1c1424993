"""Two texts are one where they differ by how they are written, and nearly one where their words are nearly the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edgekit.duplicates import (
    NEAR_DUPLICATE,
    ONE_LETTER,
    ONE_WORD,
    near_copies,
    normalized,
    repeats,
    text_digest,
    words,
)

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
        ("so_what's_up", "so what is up"),
        ("\u0412\u043e\u0442 \u043e\u043d", "\u0432\u043e\u0442 \u043e\u043d".translate({0x432: "b", 0x43E: "o", 0x442: "t", 0x43D: "h"})),
        ("\u4f60\u597d\uff0c\u4e16\u754c", "\u4f60\u597d \u4e16\u754c"),
    ],
)  # fmt: skip
def test_normalized(text: str, result: str) -> None:
    assert normalized(text) == result


def one_apart(one: str, other: str) -> bool:
    """Whether leaving out one word, or in short texts one letter, of either or both makes two texts the same."""

    def shorter(found: list[str], leaves: bool) -> list[list[str]]:
        return [found, *([found[:place] + found[place + 1 :] for place in range(len(found))] if leaves else [])]

    ways = [shorter(text.split(), len(text.split()) in ONE_WORD) for text in (one, other)]
    if all(len(text.split()) < ONE_WORD.start for text in (one, other)):
        ways = [shorter(list(text), len(text) >= ONE_LETTER) for text in (one, other)]
    return any(left == right for left in ways[0] for right in ways[1])


def test_near_copies_are_those_that_all_pairs_give() -> None:
    """Hashes and the prefix filter lose nothing: compared with every pair, on texts that differ by a word or two."""
    generator = random.Random(1)
    vocabulary = [f"w{number}" for number in range(40)]
    texts = [" ".join(generator.sample(vocabulary, generator.randint(1, 33))) for _ in range(150)]
    for text in texts[:90]:
        found = text.split()
        place = generator.randrange(len(found))
        found[place : place + generator.randint(0, 1)] = generator.sample(vocabulary, generator.randint(0, 2))
        texts.append(" ".join(found) or "w0")
    labelled = [(text, generator.choice("aaaab")) for text in texts]
    generator.shuffle(labelled)
    earlier, later = labelled[:120], labelled[120:]

    def near(one: tuple[str, str], other: tuple[str, str]) -> bool:
        if one[0] == other[0]:
            return True
        left, right = set(one[0].split()), set(other[0].split())
        alike = len(left & right) >= NEAR_DUPLICATE * len(left | right)
        return one[1] == other[1] and (alike or one_apart(one[0], other[0]))

    found = near_copies(earlier, later)
    expected = {place for place, one in enumerate(earlier) if any(near(one, other) for other in later)}
    assert found.keys() == expected
    assert 20 < len(expected) < 100
    assert all(near(earlier[one], later[other]) for one, other in found.items())
    again = repeats(labelled)
    kept = [one for place, one in enumerate(labelled) if place not in again]
    assert not [(one, other) for place, one in enumerate(kept) for other in kept[:place] if near(one, other)]
    assert all(near(labelled[one], labelled[other]) and other not in again for one, other in again.items())


LONG = "is there a way to know when my new card will arrive"


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        (LONG, LONG.replace("know", "see"), True),
        (LONG, LONG.replace("new ", ""), True),
        (LONG, f"{LONG} please", True),
        (LONG, f"could there be {LONG}", False),
        (LONG, LONG.replace("arrive", "arive"), True),
        (LONG, LONG.replace("card", "cards"), True),
        (LONG, f"when {LONG.replace('when ', '')}", True),
        (LONG, LONG.replace("new card", "newcard"), True),
        (LONG, LONG.replace("know", "see").replace("arrive", "come"), False),
        ("turn the light on", "turn the light off", False),
        ("kindly turn the light on", "turn the light on", True),
        ("turn the light on", "turn the lihgt on", True),
        ("turn the light on", "turn the lihgts on", False),
        ("turn the light on", "turn the lights on", True),
        ("lights", "light", False),  # too short to tell
        ("set 5 timers", "set 12 timers", True),
        ("\u8bf7\u6253\u5f00\u5ba2\u5385\u7684\u706f", "\u6253\u5f00\u5ba2\u5385\u7684\u706f", True),
        ("\u6253\u5f00\u5ba2\u5385\u7684\u706f", "\u6253\u5f00\u5ba2\u5385\u7684\u7a97", True),
        ("\u6253\u5f00\u5ba2\u5385\u7684\u706f", "\u5173\u6389\u5ba2\u5385\u7684\u706f", False),
    ],
)
def test_nearly_one(one: str, other: str, near: bool) -> None:
    assert near_copies([(one, "a")], [(other, "a")]) == ({0: 0} if near else {})
    assert near_copies([(other, "a")], [(one, "a")]) == ({0: 0} if near else {})
    assert near_copies([(one, "a")], [(other, "b")]) == {}
    assert repeats([(one, "a"), (other, "a"), (one, "b")]) == {2: 0} | ({1: 0} if near else {})


def test_numbers_count_as_equal_where_labels_agree() -> None:
    sums = [("What is 12 + 345?", "357"), ("What is 20 + 30?", "50"), ("What is 25 + 25?", "50")]
    assert repeats(sums) == {2: 1}
    unlabelled = [(text, None) for text, _ in sums]
    assert repeats(unlabelled) == {1: 0, 2: 0}
    assert repeats(unlabelled, masks_unlabelled=False) == {}


def test_a_text_without_a_label_agrees_with_all() -> None:
    texts = [(LONG, "a"), (LONG.replace("know", "see"), None), (LONG.replace("arrive", "arive"), "b")]
    assert repeats(texts, masks_unlabelled=False) == {1: 0}
    assert near_copies(texts[:1], texts[1:], masks_unlabelled=False) == {0: 0}
    assert near_copies(texts[1:], texts[:1], masks_unlabelled=False) == {0: 0}


def test_words_mask_numbers() -> None:
    assert words("Set 5 timers, at 10!") == {"set", "#", "timers", "at"}


BANKING77 = Path(__file__).resolve().parents[2] / "shared" / "data" / "banking77"


@pytest.mark.skipif(not BANKING77.is_dir(), reason="BANKING77 is not beside the repository")
def test_planted_variants_are_found_and_honest_pairs_are_not() -> None:
    """A sample of benchmarks/duplicates.py."""
    from duplicates import FLAGGED, FOUND, honest, planted, read

    train, test = read(BANKING77 / "train.csv"), read(BANKING77 / "test.csv")
    for kind, shares in planted(test, 100).items():
        assert min(shares) >= FOUND, kind
    flagged = honest(train, random.Random(0).sample(test, 60))
    assert 0 < flagged["same label"] <= FLAGGED
    assert flagged["other label"] <= FLAGGED
