"""Texts without labels: the teacher says what they are, and a student learns it (`data.unlabelled`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from edgekit.duplicates import Labelled, near_copies, normalized, repeats
from edgekit.errors import EdgekitError
from edgekit.prompts.prompt import Prompt
from edgekit.prompts.rows import read_prompts
from edgekit.recipe import Recipe
from edgekit.stored import choose, derive
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
    recipe: Recipe, path: Path, others: Mapping[str, Sequence[Prompt]], folder: Path | None = None
) -> tuple[Sequence[Prompt], Counter[str]]:
    """The texts of the file that no split has and that none repeats, and how many were left out, by reason.

    others: the splits; folder: see `read_prompts`. Columns but the text's are not read. Where these texts or train's are not
    held in memory, what only nearly repeats another of them stays: such a text is held as 8 bytes of its hash. What is near to a
    text of another split never does. Raises EdgekitError as `read_table` and `read_prompts` do.
    """
    table = read_table(path, delimiter=recipe.data.delimiter, encoding=recipe.data.encoding)
    reading = read_prompts(table, replace(recipe.data, label=None, group=None), str(path), folder)
    texts, dropped, train = reading.prompts, Counter(reading.dropped), others.get("train", [])
    if isinstance(texts, list) and isinstance(train, list):
        near = near_copies(_bare(texts), _bare([row for rows in others.values() for row in rows]))
        texts = _without(near, texts, dropped)
        texts = _without(repeats(_bare(texts)), texts, dropped)
    else:
        judged = [row for name, rows in others.items() if name != "train" for row in rows]
        texts = _without(near_copies(_bare(texts), _bare(judged)), texts, dropped)
        texts = _without(_same(texts, train), texts, dropped)
    if not texts:
        raise EdgekitError(
            f"{path}: no text stays that no split has; add others, or remove data.unlabelled from the recipe"
        )
    return texts, dropped


def _same(texts: Sequence[Prompt], others: Sequence[Prompt]) -> set[int]:
    """The texts that one of the others is, or one before them, but for how they are written."""
    import numpy as np

    hashes = np.fromiter((hash(normalized(row.text)) for row in chain(others, texts)), np.int64)
    # Of equal ones the first.
    again = np.ones(len(hashes), bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    return set(np.flatnonzero(again[len(others) :]).tolist())


def tell_unlabelled(stay: int, left: Mapping[str, int]) -> list[str]:
    """What the user is told of them."""
    lines = [f"train: {stay} texts without a label, of which the student learns what the teacher says"]
    if left:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
        lines.append(f"unlabelled: {sum(left.values())} rows left out ({told}); {stay} stay")
    return lines


def _bare(rows: Sequence[Prompt]) -> Sequence[Labelled]:
    """Texts without their labels: one that is not known to be of another class is too near to one of verify."""
    return derive(rows, lambda row: (row.text, None))


def _without(doomed: Collection[int], texts: Sequence[Prompt], dropped: Counter[str]) -> Sequence[Prompt]:
    if doomed:
        dropped["near duplicates"] += len(doomed)
    return choose(texts, (index for index in range(len(texts)) if index not in doomed))
