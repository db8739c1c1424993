"""Texts without labels: the teacher says what they are, and a student learns it (`data.unlabelled`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.duplicates import Labelled, near_copies, repeats
from edgekit.errors import EdgekitError
from edgekit.prompts.prompt import Prompt
from edgekit.prompts.rows import read_prompts
from edgekit.recipe import Recipe
from edgekit.tables import read_table


def find_unlabelled(recipe: Recipe) -> Path | None:
    """The file of texts without labels; None where the recipe names none. Raises EdgekitError where it is not there."""
    if recipe.data.unlabelled is None:
        return None
    path = recipe.locate(recipe.data.unlabelled)
    if not path.is_file():
        raise EdgekitError(f"{recipe.path}: data.unlabelled: no such file: {path}")
    return path


def read_unlabelled(
    recipe: Recipe, path: Path, others: Mapping[str, Sequence[Prompt]]
) -> tuple[list[Prompt], Counter[str]]:
    """The texts of the file that no split has and that none repeats, and how many were left out, by reason.

    others: the splits. Columns but the text's are not read. Raises EdgekitError as `read_table` and `read_prompts` do.
    """
    table = read_table(path, delimiter=recipe.data.delimiter, encoding=recipe.data.encoding)
    reading = read_prompts(table, replace(recipe.data, label=None, group=None), str(path))
    texts, dropped = reading.prompts, Counter(reading.dropped)
    texts = _without(
        near_copies(_bare(texts), _bare([row for rows in others.values() for row in rows])), texts, dropped
    )
    texts = _without(repeats(_bare(texts)), texts, dropped)
    if not texts:
        raise EdgekitError(
            f"{path}: no text stays that no split has; add others, or remove data.unlabelled from the recipe"
        )
    return texts, dropped


def tell_unlabelled(stay: int, left: Mapping[str, int]) -> list[str]:
    """What the user is told of them."""
    lines = [f"train: {stay} texts without a label, of which the student learns what the teacher says"]
    if left:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
        lines.append(f"unlabelled: {sum(left.values())} rows left out ({told}); {stay} stay")
    return lines


def _bare(rows: Sequence[Prompt]) -> list[Labelled]:
    """Texts without their labels: one that is not known to be of another class is too near to one of verify."""
    return [(row.text, None) for row in rows]


def _without(doomed: Mapping[int, int], texts: Sequence[Prompt], dropped: Counter[str]) -> list[Prompt]:
    if doomed:
        dropped["near duplicates"] += len(doomed)
    return [row for index, row in enumerate(texts) if index not in doomed]
