"""The final split: kept apart from all others, judged on with --final, read by nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.pipeline import Session, gather_prompts
from edgekit.pipeline.origin import split_digests
from edgekit.prompts import PromptSet
from edgekit.recipe import load_recipe
from edgekit.workspace import Product, Workspace
from tests.conftest import PATTERNS, Answer

ROOMS = ("sunny veranda", "narrow balcony", "cold pantry", "noisy workshop")


@pytest.fixture
def final(project: Path) -> Path:
    """The project's recipe with a final file of twelve prompts."""
    rows = [{"text": text.format(room), "label": label} for room in ROOMS for label, text in PATTERNS.items()]
    write(project.parent / "last.jsonl", rows)
    project.write_text(project.read_text() + 'final = "last.jsonl"\n')
    return project


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def gathered(recipe: Path, *overrides: str, final: bool = False) -> Product:
    session = Session(workspace=Workspace(recipe.parent / "cache"), out=recipe.parent / "dist", final=final)
    return gather_prompts(load_recipe(recipe, overrides), session)


def test_final_stands_in_the_place_of_verify_and_changes_no_other_split(final: Path) -> None:
    plain, judged = gathered(final), gathered(final, final=True)
    assert split_digests(judged, "calibrate") == split_digests(plain, "calibrate")
    assert split_digests(judged, "verify")["verify"] == split_digests(plain, "final")["final"]
    texts = {split: {row.text for row in PromptSet(folder=plain.folder).split(split)} for split in ("verify", "final")}
    assert {row.text for row in PromptSet(folder=judged.folder).split("verify")} == texts["final"]
    assert not texts["verify"] & texts["final"]
    assert judged.facts["rows"] == {"calibrate": 6, "verify": 12}
    assert any("final split (last.jsonl)" in note for note in judged.facts["notes"])


@pytest.mark.parametrize("split", ["calibrate", "verify"])
def test_final_is_kept_apart_as_verify_is(final: Path, split: str) -> None:
    first = json.loads((final.parent / "data" / f"{split}.jsonl").read_text().splitlines()[0])
    rows = [json.loads(line) for line in (final.parent / "last.jsonl").read_text().splitlines()]
    write(final.parent / "last.jsonl", [*rows, first | {"text": first["text"].upper() + "!"}])
    with pytest.raises(EdgekitError, match=f"1 texts of {split} are .nearly. in final too"):
        gathered(final)
    assert gathered(final, "data.near_duplicates=drop").facts["dropped"][split] == {"near duplicates": 1}


def test_a_text_counts_once(final: Path) -> None:
    rows = [json.loads(line) for line in (final.parent / "last.jsonl").read_text().splitlines()]
    write(final.parent / "last.jsonl", [*rows, rows[0]])
    with pytest.raises(EdgekitError, match="final has 1 texts that repeat another"):
        gathered(final)


def test_final_needs_a_file(project: Path, command: Callable[..., Answer]) -> None:
    with pytest.raises(EdgekitError, match=r"data\.final: missing key"):
        gathered(project, final=True)
    told = command("build", "-r", project, "-t", "laptop-cpu", "--final")
    assert (told.code, "data.final: missing key" in told.err) == (1, True)
    with pytest.raises(EdgekitError, match=r"data\.final: no such file"):
        gathered(project, "data.final=absent.jsonl")
