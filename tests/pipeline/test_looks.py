"""How often prompts were looked at: by their texts, wherever they come from and whatever is judged on them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.gate import ALPHA, FIRST_LOOK, Look, alpha_for
from edgekit.pipeline.looks import settle, take
from tests.artifacts import artifact_facts
from tests.conftest import child_environment

TEXTS = tuple(
    f"text number {word}" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
)


def product(name: str, **facts: Any) -> Any:
    """An artifact with these files."""
    known = artifact_facts(**{"max_length": 32, "settings": {"threshold": 0.5}, **facts})
    return SimpleNamespace(digest=name, folder=Path(name), facts=known)


def rows(folder: Path, texts: Sequence[str], label: str = "a") -> Any:
    """A folder of prompts with these texts in verify."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": text, "label": label}) for text in texts]
    (folder / "verify.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return SimpleNamespace(folder=folder)


def look(folder: Path, name: str, texts: Sequence[str] = TEXTS, *, stages: int = 1, **facts: Any) -> Look:
    return take(product(name, **facts), rows(folder / "prompts", texts), {"stages": stages})


def test_an_artifact_keeps_its_place(tmp_path: Path) -> None:
    assert [look(tmp_path, name).index for name in ("a", "b", "c", "b", "a")] == [1, 2, 3, 2, 1]
    assert look(tmp_path, "a") == Look(index=1, alpha=FIRST_LOOK)
    assert look(tmp_path, "b").alpha == alpha_for(2)


def test_other_settings_are_another_artifact(tmp_path: Path) -> None:
    """The same file that reads fewer tokens, or rejects more, answers differently."""
    assert look(tmp_path, "a").index == 1
    assert look(tmp_path, "a", max_length=6).index == 2
    assert look(tmp_path, "a", settings={"threshold": 0.9}).index == 3


CHANGED = {
    "one row less": TEXTS[:-1],
    "one row more": (*TEXTS, "a text that was not there"),
    "one row in common": (TEXTS[0], "quite another", "and one more"),
    "another order": tuple(random.Random(0).sample(TEXTS, len(TEXTS))),
    "written otherwise": tuple(text.upper().replace(" ", "  ") + "!" for text in TEXTS),
}


@pytest.mark.parametrize("texts", CHANGED.values(), ids=CHANGED)
def test_prompts_with_a_common_text_were_looked_at(tmp_path: Path, texts: Sequence[str]) -> None:
    assert look(tmp_path, "a").index == 1
    assert look(tmp_path, "b", texts).index == 2


def test_the_same_artifact_on_fewer_prompts_or_other_labels_is_a_new_look(tmp_path: Path) -> None:
    """Who may drop the rows that were lost, or relabel them, proves anything."""
    assert [look(tmp_path, "a").index, look(tmp_path, "a", TEXTS[:-1]).index, look(tmp_path, "a").index] == [1, 2, 1]
    assert take(product("a"), rows(tmp_path / "other", TEXTS, label="b"), {}).index == 3


def test_order_is_no_new_look(tmp_path: Path) -> None:
    assert [look(tmp_path, "a").index, look(tmp_path, "a", TEXTS[::-1]).index] == [1, 1]


def test_prompts_that_share_texts_with_both_join_two_families(tmp_path: Path) -> None:
    assert [look(tmp_path, "a", TEXTS[:4]).index, look(tmp_path, "a", TEXTS[6:]).index] == [1, 1]
    assert look(tmp_path, "a", TEXTS).index == 3
    assert look(tmp_path, "b", TEXTS[:4]).index == 4
    assert look(tmp_path, "b", ["wholly", "different", "texts"]).index == 1


def test_what_passed_hands_its_error_on_once(tmp_path: Path) -> None:
    prompts = rows(tmp_path / "prompts", TEXTS)
    assert take(product("a"), prompts, {}).alpha == FIRST_LOOK
    settle(product("a"), prompts, {})
    assert look(tmp_path, "b").alpha == pytest.approx(FIRST_LOOK + alpha_for(2))
    assert look(tmp_path, "c").alpha == alpha_for(3)
    # With other limits the first artifact would claim more with an error that it has no longer.
    assert take(product("a"), prompts, {"student_margin": 0.001}).alpha == alpha_for(4)
    assert take(product("a"), prompts, {}).index == 1


def test_what_passed_two_sets_of_limits_hands_nothing_on(tmp_path: Path) -> None:
    prompts = rows(tmp_path / "prompts", TEXTS)
    for margin in (0.5, 0.01):
        assert take(product("a"), prompts, {"student_margin": margin}).alpha == FIRST_LOOK
        settle(product("a"), prompts, {"student_margin": margin})
    assert look(tmp_path, "b").alpha == alpha_for(2)


def test_planned_stages_share_one_look(tmp_path: Path) -> None:
    """Prompts are added after "not proven", the artifact stays."""
    told = [look(tmp_path, "a", TEXTS[:count], stages=3) for count in (4, 7, 10)]
    assert [(one.index, one.stage, one.stages) for one in told] == [(1, 1, 3), (1, 2, 3), (1, 3, 3)]
    assert sum(one.alpha for one in told) == pytest.approx(FIRST_LOOK)
    assert look(tmp_path, "a", TEXTS[:7], stages=3) == told[1]
    assert look(tmp_path, "a", [*TEXTS, "one too many"], stages=3).index == 2


@pytest.mark.parametrize(
    ("name", "texts", "stages"),
    [("a", [*TEXTS[1:4], "new"], 3), ("b", TEXTS, 3), ("a", TEXTS, 4), ("a", TEXTS, 1), ("a", TEXTS[:3], 3)],
    ids=["a row was dropped", "another artifact", "other stages", "no stages", "fewer rows"],
)
def test_what_was_not_planned_is_a_new_look(tmp_path: Path, name: str, texts: list[str], stages: int) -> None:
    assert look(tmp_path, "a", TEXTS[:4], stages=3).stage == 1
    assert (look(tmp_path, name, texts, stages=stages).index) == 2


PARALLEL = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.pipeline.test_looks import look
os.environ["EDGEKIT_STATE"] = sys.argv[4]
told = look(Path(sys.argv[2]), sys.argv[3])
print(told.index, told.alpha)
"""


def test_builds_at_once_get_different_places(tmp_path: Path, state: Path) -> None:
    look(tmp_path, "before")
    root = str(Path(__file__).resolve().parents[2])
    running = []
    for name in "abcd":
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", PARALLEL, root, str(tmp_path / name), name, str(state)]
        running.append(subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True))
    told = [process.communicate(timeout=120)[0].split() for process in running]
    assert sorted(int(place) for place, _ in told) == [2, 3, 4, 5]
    assert FIRST_LOOK + sum(float(alpha) for _, alpha in told) < ALPHA


def test_no_text_is_kept(tmp_path: Path, state: Path) -> None:
    look(tmp_path, "a")
    kept = (state / "looks.json").read_text(encoding="utf-8")
    assert not [text for text in TEXTS if text in kept]
    (state / "looks.json").write_text("[]")
    with pytest.raises(EdgekitError, match="not what edgekit wrote"):
        look(tmp_path, "a")
