"""The assistant's utterances keep the promises of calib_data/assistant/README.md, and so does every other prompt set."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekit.duplicates import near_copies, repeats
from edgekit.prompts import SPLITS
from edgekit.recipe import load_recipe, packaged
from tests.conftest import sharing, unprovable

FOLDERS = sorted(path for path in packaged("calib_data").iterdir() if path.is_dir())
ASSISTANT = packaged("calib_data/assistant")
NAMES = frozenset(
    (Path(__file__).parent / "fixtures" / "assistant_names.txt").read_text(encoding="utf-8").casefold().split()
)
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
TENS = "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million"
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth twentieth thirtieth"
NUMBERS = frozenset(f"{ONES} {TENS} {ORDINALS}".split())
# The limits.
JACCARD = 0.7
OPENING = 0.03


def rows(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ASSISTANT / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def masked(text: str) -> str:
    """Lower case, without punctuation; numbers in digits or words become #, names @, and runs of either one mark."""
    words = []
    for word in re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", text.casefold()):
        bare = word.removesuffix("'s").removesuffix("\u2019s")
        mark = "#" if bare in NUMBERS or re.search(r"\d", bare) else "@" if bare in NAMES else word
        if not (mark in "#@" and words and words[-1] == mark):
            words.append(mark)
    return " ".join(words)


def alike(earlier: Sequence[str], later: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of masked texts that are equal, or whose token sets have a Jaccard similarity of at least JACCARD."""
    sets = [frozenset(text.split()) for text in later]
    pairs = []
    for text in earlier:
        one = frozenset(text.split())
        pairs += [
            (text, later[place]) for place, other in enumerate(sets) if len(one & other) >= JACCARD * len(one | other)
        ]
    return pairs


BY_INTENT: dict[str, dict[str, list[str]]] = defaultdict(lambda: {split: [] for split in SPLITS})
for _split in SPLITS:
    for _row in rows(_split):
        BY_INTENT[_row["label"]][_split].append(masked(_row["text"]))


def test_size() -> None:
    """At least 3,000 utterances, 1,000 of them for verification, at least 24 intents plus out of scope, in every split."""
    counts = {split: len(rows(split)) for split in SPLITS}
    assert sum(counts.values()) >= 3000
    assert counts["verify"] == 1000
    intents = set(BY_INTENT) - {"oos"}
    assert len(intents) >= 24
    assert "oos" in BY_INTENT
    for label, splits in BY_INTENT.items():
        assert all(splits.values()), f"{label}: missing from a split"


def test_readme_counts_are_true() -> None:
    readme = (ASSISTANT / "README.md").read_text(encoding="utf-8")
    for split in SPLITS:
        line = next(line for line in readme.splitlines() if line.startswith(f"| `{split}.jsonl`"))
        _, _, per_intent, rejected, total, *_ = [cell.strip().replace(",", "") for cell in line.split("|")]
        counts = Counter(row["label"] for row in rows(split))
        assert int(total) == sum(counts.values())
        assert int(rejected) == counts.pop("oos")
        assert set(counts.values()) == {int(per_intent)}


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_clean(split: str) -> None:
    seen = set()
    for row in rows(split):
        assert set(row) == {"text", "label"}
        assert row["text"] == row["text"].strip() != ""
        assert row["text"].isprintable()
        assert row["text"] not in seen, f"{split}: {row['text']!r} is there twice"
        seen.add(row["text"])


@pytest.mark.parametrize("label", sorted(BY_INTENT))
def test_splits_of_an_intent_differ(label: str) -> None:
    """After masking, no two texts of one intent in different splits are equal or share 70 % of their words."""
    train, calibrate, verify = (BY_INTENT[label][split] for split in SPLITS)
    found = alike(train, calibrate) + alike(train, verify) + alike(calibrate, verify)
    assert not found, f"{label}: too alike: {found[:5]}"


def test_no_text_is_in_two_splits() -> None:
    """Across intents too, exact and near duplicates, by the rule that every build applies."""
    texts = {split: [(row["text"], row["label"]) for row in rows(split)] for split in SPLITS}
    for earlier, later in (("train", "calibrate"), ("train", "verify"), ("calibrate", "verify")):
        pairs = near_copies(texts[earlier], texts[later])
        assert not pairs, [(texts[earlier][one], texts[later][other]) for one, other in pairs.items()]
    pairs = repeats(texts["verify"])
    assert not pairs, [(texts["verify"][one], texts["verify"][other]) for one, other in pairs.items()]


@pytest.mark.parametrize("label", sorted(BY_INTENT))
def test_openings_vary(label: str) -> None:
    """No opening of three words in more than 3 % of an intent."""
    texts = [text for split in SPLITS for text in BY_INTENT[label][split]]
    openings = Counter(tuple(text.split()[:3]) for text in texts if len(text.split()) >= 3)
    opening, count = openings.most_common(1)[0]
    assert count <= OPENING * len(texts), f"{label}: {' '.join(opening)!r} opens {count} of {len(texts)}"


@pytest.mark.parametrize("label", sorted(set(BY_INTENT) - {"oos"}))
def test_texts_vary(label: str) -> None:
    """Short and long; with and without politeness is a person's choice, but lengths tell whether texts are templates."""
    lengths = [len(text.split()) for split in SPLITS for text in BY_INTENT[label][split]]
    assert min(lengths) <= 4
    assert max(lengths) >= 12
    assert len(set(lengths)) >= 8


def test_set_as_a_whole_varies() -> None:
    """Typed and spoken forms, questions, politeness, numbers in digits and in words, more than templates would have."""
    texts = [row["text"] for split in SPLITS for row in rows(split)]
    share = {
        "capital": sum(text != text.lower() for text in texts),
        "lower case only": sum(text == text.lower() for text in texts),
        "question": sum("?" in text for text in texts),
        "digits": sum(any(letter.isdigit() for letter in text) for text in texts),
        "number words": sum(bool(NUMBERS & set(text.casefold().split())) for text in texts),
        "polite": sum(bool(re.search(r"\b(please|pls|thanks|could you|would you|kindly)\b", text.casefold())) for text in texts),
        "names": sum(bool(NAMES & set(re.findall(r"\w+", text.casefold()))) for text in texts),
    }  # fmt: skip
    for kind, count in share.items():
        assert count >= 0.03 * len(texts), f"{kind}: only {count}"
    words = Counter(word for text in texts for word in masked(text).split())
    assert len(words) >= 2500


def test_masks() -> None:
    assert masked("Call Tina's mum at 7:45pm, or twenty five past!") == "call @ mum at # or # past"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_prompt_set_says_where_it_comes_from(folder: Path) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8").casefold()
    for word in ("origin", "licence", "adding"):
        assert word in readme, f"{folder.name}/README.md: says nothing of {word}"


def test_example_recipe_gathers_it(tmp_path: Path) -> None:
    """The build itself finds nothing wrong with it."""
    from edgekit.prompts import gather

    facts = gather(load_recipe(packaged("examples/assistant")), SPLITS, tmp_path)
    assert facts["rows"] == {"train": 1998, "calibrate": 448, "verify": 1000}
    assert len(facts["labels"]) == 24
    assert facts["dropped"] == {}


CHAT = packaged("calib_data/chat")


def conversations(split: str) -> list[list[dict[str, str]]]:
    lines = (CHAT / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {"messages"} for row in rows)
    return [row["messages"] for row in rows]


def test_chat_readme_counts_are_true() -> None:
    readme = (CHAT / "README.md").read_text(encoding="utf-8")
    for split in ("calibrate", "verify"):
        line = next(line for line in readme.splitlines() if line.startswith(f"| `{split}.jsonl`"))
        told = [int(cell) for cell in line.split("|")[2:5]]
        rows = conversations(split)
        with_system = [turns for turns in rows if turns[0]["role"] == "system"]
        long = [turns for turns in rows if sum(turn["role"] == "user" for turn in turns) > 1]
        assert told == [len(rows), len(with_system), len(long)]


@pytest.mark.parametrize("split", ["calibrate", "verify"])
def test_conversations_end_with_the_user(split: str) -> None:
    for turns in conversations(split):
        roles = [turn["role"] for turn in turns]
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken == [*["user", "assistant"] * (len(spoken) // 2), "user"]
        assert all(turn["content"] == turn["content"].strip() != "" for turn in turns)
        assert all(turn["content"].isprintable() for turn in turns)


def test_no_question_is_asked_twice(tmp_path: Path) -> None:
    from edgekit.prompts import gather

    texts = {
        split: [" ".join(turn["content"] for turn in turns if turn["role"] == "user") for turns in conversations(split)]
        for split in ("calibrate", "verify")
    }
    assert not sharing(texts["calibrate"], texts["verify"], 0.5)
    assert not sharing(texts["verify"], texts["verify"], 0.5)
    recipe = load_recipe(packaged("examples/chat"))
    facts = gather(recipe, ("calibrate", "verify"), tmp_path)
    assert facts["rows"] == {"calibrate": 120, "verify": 120}
    assert not unprovable(recipe, 120)
    assert unprovable(recipe, 60)
