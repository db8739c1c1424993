"""Prompts: texts with labels in three disjoint splits. Whatever the user's data is, it becomes one folder of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edgekit.prompts.clean import Splits
from edgekit.prompts.prompt import SPLITS, Prompt, PromptSet
from edgekit.prompts.splits import folder_files, read_splits, sources
from edgekit.prompts.unlabelled import find_unlabelled, read_unlabelled, tell_unlabelled
from edgekit.recipe import Recipe
from edgekit.stored import join

__all__ = ["SPLITS", "Prompt", "PromptSet", "folder_files", "gather", "sources"]


def gather(recipe: Recipe, splits: Sequence[str], out: Path) -> dict[str, object]:
    """Read the recipe's data, check it, and write one JSON-lines file per split into `out`.

    Returns what was found: `rows` per split, `labels`, how many rows of each split were left out and why (`dropped`), how many
    are unusual (`unusual`: converted labels, texts with two labels), and `notes`, which say all that in words; where the recipe
    names texts without labels, how many of train's are (`unlabelled`). Raises
    EdgekitError for a wrong column, an empty or one-class split, labels that differ by case only, texts that verify repeats, and
    overlapping splits.
    """
    places = sources(recipe, splits)
    where = {name: str(places.get(name) or places.get("*") or places["train"]) for name in splits}
    found = Splits(read_splits(recipe, splits, out), recipe, where)
    found.clean()
    rows, notes = found.rows, found.notes()
    more: dict[str, object] = {}
    if "train" in splits and (path := find_unlabelled(recipe)) is not None:
        texts, left = read_unlabelled(recipe, path, rows, out)
        rows = {**rows, "train": join(rows["train"], texts)}
        more = {"unlabelled": len(texts)}
        notes += tell_unlabelled(len(texts), left)
    for name in splits:
        with (out / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{json.dumps(row.facts(), ensure_ascii=False)}\n" for row in rows[name])
    # Of text-generation a prompt's label is its wanted answer.
    named = {row.label for part in rows.values() for row in part} if recipe.data.label else set()
    labels = sorted(label for label in named if label is not None)
    return {
        "rows": {name: len(rows[name]) for name in splits},
        "labels": [label for label in labels if label != recipe.data.out_of_scope],
        "dropped": {name: dict(found.dropped[name]) for name in splits if found.dropped[name]},
        "unusual": {name: dict(found.unusual[name]) for name in splits if found.unusual[name]},
        "notes": notes,
        **more,
    }
