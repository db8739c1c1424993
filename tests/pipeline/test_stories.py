"""The stories keep the promises of calib_data/stories/README.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgekit.prompts import SPLITS, gather
from edgekit.recipe import load_recipe, packaged
from edgekit.record.tokens import LEAST, MOST_TOKENS
from tests.conftest import sharing, unprovable

STORIES = packaged("calib_data/stories")
# The README's limits.
SHARED_WORDS, RUN, SHARED_RUNS = 0.8, 13, 0.02


def texts(split: str) -> list[str]:
    lines = (STORIES / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {"text"} for row in rows)
    return [row["text"] for row in rows]


TEXTS = {split: texts(split) for split in SPLITS}


def runs(stories: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for story in stories:
        words = re.findall(r"\w+", story.casefold())
        yield from (tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1))


def test_readme_counts_are_true() -> None:
    readme = (STORIES / "README.md").read_text(encoding="utf-8")
    for split in SPLITS:
        line = next(line for line in readme.splitlines() if line.startswith(f"| `{split}.jsonl`"))
        assert int(line.split("|")[2].replace(",", "")) == len(TEXTS[split])
    assert f"{sum(map(len, TEXTS.values())):,} English stories" in readme
    words = {word for stories in TEXTS.values() for story in stories for word in re.findall(r"\w+", story.casefold())}
    assert 1100 <= len(words) <= 1300


@pytest.mark.parametrize("split", SPLITS)
def test_stories_are_clean(split: str) -> None:
    for story in TEXTS[split]:
        assert story == story.strip()
        assert story.isascii()
        assert story.isprintable()
        assert 60 <= len(story.split()) <= 150
        assert story[-1] in '.!?"'
        assert "{" not in story
        assert "  " not in story
        assert story.count('"') % 2 == 0
        assert not re.search(r"\b[Aa] [aeioAEIO]", story), story


@pytest.mark.parametrize(
    ("one", "other"), [("train", "calibrate"), ("train", "verify"), ("calibrate", "verify"), ("verify", "verify")]
)
def test_no_story_is_told_twice(one: str, other: str) -> None:
    found = sharing(TEXTS[one], TEXTS[other], SHARED_WORDS)
    assert not found, found[:2]


@pytest.mark.parametrize(("one", "other"), [("train", "calibrate"), ("train", "verify"), ("calibrate", "verify")])
def test_splits_share_few_runs_of_words(one: str, other: str) -> None:
    known = set(runs(TEXTS[one]))
    shared = [run in known for run in runs(TEXTS[other])]
    assert sum(shared) / len(shared) < SHARED_RUNS


def test_example_recipe_gathers_them(tmp_path: Path) -> None:
    """The build itself finds nothing wrong with them."""
    recipe = load_recipe(packaged("examples/stories"))
    facts = gather(recipe, SPLITS, tmp_path)
    assert facts["rows"] == {split: len(TEXTS[split]) for split in SPLITS}
    # All are scored, a window of the long ones, and they can prove what the recipe asks for.
    assert MOST_TOKENS // len(TEXTS["verify"]) >= LEAST
    assert not unprovable(recipe, len(TEXTS["verify"]))
    assert unprovable(recipe, len(TEXTS["verify"]) - 1)
    assert facts["dropped"] == {}
