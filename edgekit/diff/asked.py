"""Both bundles are asked the same texts, through the loaders that ship: what changed, and who is right more often."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from edgekit.apart import apart
from edgekit.bundle.golden import GOLDEN, Row, tolerance_of
from edgekit.bundle.open import Bundle
from edgekit.errors import EdgekitError
from edgekit.evidence import Interval
from edgekit.outputs import OUTPUTS
from edgekit.outputs.rows import EMBEDDING
from edgekit.prompts.prompt import Prompt
from edgekit.prompts.rows import read_prompts
from edgekit.recipe import Data
from edgekit.tables import has_column, read_table
from edgekit.typed_json import MAY_BE_ABSENT
from edgekit.verify import clusters

_SHOWN, _TEXT = 5, 80

Rows = Mapping[str, Row]
"""A bundle's answers by text, as golden.json has them."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text that B answers otherwise, and both answers in words."""

    text: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Right:
    """Of labelled prompts the share that each answers right, B's less A's, and the paired bounds of that, each one-sided at 95 %.

    lost, gained: prompts that A alone and that B alone answers right.
    """

    prompts: int
    a: float
    b: float
    difference: float
    interval: Interval
    lost: int
    gained: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What both answer. of: which texts. changed: how many B answers otherwise; interval: bounds of their share. cosine: of
    embeddings, mean and least.

    Otherwise is another label, an embedding beyond the golden answers' tolerance, or of a model that writes other tokens, the
    likeliest each time, as far as both have one that is far likelier than any other; a text without any is not counted.
    """

    of: str
    texts: int
    changed: int
    interval: Interval
    examples: tuple[Example, ...]
    right: Right | None = field(default=None, metadata=MAY_BE_ABSENT)
    cosine: tuple[float, float] | None = field(default=None, metadata=MAY_BE_ABSENT)


def golden_texts(*bundles: Bundle) -> list[Prompt]:
    """The golden texts of bundles, each once."""
    places = [bundle.folder / GOLDEN for bundle in bundles if GOLDEN in (bundle.manifest.files or {})]
    rows = [row for place in places for row in json.loads(place.read_bytes())["rows"]]
    return [Prompt(text=text) for text in dict.fromkeys(str(row["text"]) for row in rows)]


def read_file(path: Path, labels: Sequence[str]) -> Sequence[Prompt]:
    """The prompts of a file: `text`, of a classifier (one of `labels`) also `label`, and `group` where there is such a column.

    Raises EdgekitError where the file is none, and where no label of it is one of these.
    """
    table = read_table(path)
    label = "label" if labels and has_column(table, "label") else None
    group = "group" if has_column(table, "group") else None
    prompts = read_prompts(table, Data(label=label, group=group), str(path)).prompts
    if not prompts:
        raise EdgekitError(f"{path}: no texts in it; name a file with some")
    if label and not any(prompt.label in labels for prompt in prompts):
        shown = ", ".join(sorted({str(prompt.label) for prompt in prompts})[:5])
        raise EdgekitError(
            f"{path}: its labels ({shown}, ...) are none of these bundles'; name the file of their prompts"
        )
    return prompts


def ask(bundle: Bundle, texts: Sequence[str]) -> Rows:
    """A bundle's answers, of a process of its own. Raises EdgekitError where the runtime is not there or cannot open it."""
    answered = apart(
        "edgekit.bundle.golden:answers",
        what=f"{bundle.manifest.name}: asked for its answers",
        remedy="does the model run on this machine? Try: edgekit doctor",
        folder=str(bundle.folder),
        texts=list(texts),
    )
    rows = [cast("Row", row) for row in cast("list[object]", answered)]
    return {str(row["text"]): row for row in rows}


def how_read(rows: Rows) -> Mapping[str, Sequence[int]]:
    """How a decoder read the texts."""
    return {text: cast("list[int]", row["asked"]) for text, row in rows.items() if "asked" in row}


def has_one_width(answers: tuple[Rows, Rows]) -> bool:
    """Whether all embeddings have as many numbers, so that they can be compared; also where there are none."""
    found = {
        len(cast("list[float]", row["embedding"])) for rows in answers for row in rows.values() if "embedding" in row
    }
    return len(found) <= 1


def compare_answers(a: Bundle, b: Bundle, answers: tuple[Rows, Rows], prompts: Sequence[Prompt], of: str) -> Asked:
    """What both answer to the prompts that both answered; the outputs are of one kind and width."""
    mine, theirs = answers
    both = [prompt for prompt in prompts if prompt.text in mine and prompt.text in theirs]
    both = [prompt for prompt in both if _clear(mine[prompt.text], theirs[prompt.text])]
    pairs = [(mine[prompt.text], theirs[prompt.text]) for prompt in both]
    groups = [prompt.group for prompt in both]
    output = b.manifest.output
    cosine = None
    if output == EMBEDDING.name:
        alike = _cosines(pairs)
        most = max(tolerance_of(a.manifest), tolerance_of(b.manifest))
        unlike = [not 1.0 - value <= most for value in alike]
        cosine = (sum(alike) / max(len(alike), 1), min(alike, default=1.0))
    else:
        unlike = [_is_other(before, after) for before, after in pairs]
    found = [index for index, changed in enumerate(unlike) if changed]
    return Asked(
        of=of,
        texts=len(both),
        changed=len(found),
        interval=clusters.proportion_bounds(unlike, groups),
        examples=tuple(
            Example(text=both[index].text[:_TEXT], a=_said(pairs[index][0]), b=_said(pairs[index][1]))
            for index in found[:_SHOWN]
            if cosine is None
        ),
        right=_right(both, pairs) if OUTPUTS[output].has_classes else None,
        cosine=cosine,
    )


def _clear(before: Row, after: Row) -> bool:
    """Whether both have an answer that can be compared: of tokens one at least."""
    return "tokens" not in before or bool(before["tokens"] and after["tokens"])


def _is_other(before: Row, after: Row) -> bool:
    if "tokens" not in before:
        return before["label"] != after["label"]
    mine, theirs = cast("list[int]", before["tokens"]), cast("list[int]", after["tokens"])
    return any(one != other for one, other in zip(mine, theirs, strict=False))


def _right(prompts: Sequence[Prompt], pairs: Sequence[tuple[Row, Row]]) -> Right | None:
    rows = [(prompt, pair) for prompt, pair in zip(prompts, pairs, strict=True) if prompt.label is not None]
    if not rows:
        return None
    mine, theirs = ([pair[side]["label"] == prompt.label for prompt, pair in rows] for side in (0, 1))
    return compare_right(mine, theirs, [prompt.group for prompt, _ in rows])


def compare_right(mine: Sequence[bool], theirs: Sequence[bool], groups: clusters.Keys) -> Right:
    """Who is right more often, by whether A and B answer each of some prompts rightly; groups: see `clusters.paired_bounds`."""
    difference, interval = clusters.paired_difference(theirs, mine, groups)
    return Right(
        prompts=len(mine),
        a=sum(mine) / len(mine),
        b=sum(theirs) / len(theirs),
        difference=difference,
        interval=interval,
        lost=sum(before and not after for before, after in zip(mine, theirs, strict=True)),
        gained=sum(after and not before for before, after in zip(mine, theirs, strict=True)),
    )


def _cosines(pairs: Sequence[tuple[Row, Row]]) -> list[float]:
    import numpy as np

    from edgekit.runtimes import scores

    if not pairs:
        return []
    mine, theirs = (np.array([pair[side]["embedding"] for pair in pairs], np.float32) for side in (0, 1))
    return [float(value) for value in scores.cosine(mine, theirs)]


def _said(row: Row) -> str:
    if "label" in row:
        return f"{row['label']} {cast('float', row['score']):.2f}"
    return f"tokens {' '.join(map(str, cast('list[int]', row['tokens'])))}"
