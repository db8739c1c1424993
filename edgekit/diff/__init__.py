"""Diff: what changed from one bundle to the next, and whether an app that uses the one can use the other as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.bundle.open import Bundle
from edgekit.diff.asked import Asked, Rows, ask, compare_answers, golden_texts, has_one_width, how_read, read_file
from edgekit.diff.identity import (
    FileChange,
    LabelChange,
    Setting,
    Told,
    compare_files,
    compare_labels,
    compare_settings,
    notes,
    tell,
    why_incompatible,
)
from edgekit.diff.measured import Measured, compare_reports
from edgekit.diff.sides import Side
from edgekit.diff.tensors import Weights, compare_weights
from edgekit.diff.verified import Verified, compare_outcomes
from edgekit.diff.vocabulary import TokenizerChange, compare_tokenizers
from edgekit.errors import EdgekitError
from edgekit.prompts.prompt import Prompt

GOLDEN_TEXTS = "golden texts"
# Below, an embedding of A finds another neighbour among those of B.
_ALIKE = 0.999


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changed from A to B. same: every file is equal. compatible: whether an app that uses A can use B as it is, and
    `reasons` why not; None of model files alone. Where a part was not compared it is None, and `notes` say why."""

    a: Told
    b: Told
    same: bool
    compatible: bool | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[FileChange, ...]
    weights: Weights | None
    labels: LabelChange | None
    settings: tuple[Setting, ...]
    tokenizer: TokenizerChange | None
    asked: Asked | None
    verified: Verified | None
    measured: Measured | None


def diff(a: Side, b: Side, prompts: Path | None = None, *, asks: bool = True) -> Difference:
    """What changed from A to B.

    prompts: a file of texts, labelled where accuracy is to be compared, that both are asked; without it the golden texts of both.
    asks: whether they are asked anything. Raises EdgekitError for a file that is not whole, and prompts that are none.
    """
    if a.bundle is None or b.bundle is None:
        if prompts is not None:
            raise EdgekitError(f"{prompts}: a model file alone is not asked: name two bundles")
        return _models(a, b)
    texts = _texts(a.bundle, b.bundle, prompts) if asks else None
    return _bundles(a.bundle, b.bundle, _models(a, b), (a, b), texts)


def _models(a: Side, b: Side) -> Difference:
    """What can be told of two model files."""
    mine, theirs = tell(a), tell(b)
    same = mine.sha256 == theirs.sha256
    weights = None if same else compare_weights(a.file, b.file)
    said = []
    if not same and weights is None:
        said.append("the weights are in files of other formats: their tensors have no names in common")
    if weights is not None and not weights.tensors:
        said.append("every tensor is the same: the model files differ in their graph or in what they say of themselves")
    return Difference(
        a=mine, b=theirs, same=same, compatible=None, reasons=(), notes=tuple(said), files=(),
        weights=weights, labels=None, settings=(), tokenizer=compare_tokenizers(a, b, (), None), asked=None, verified=None,
        measured=None,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """What both are asked: the prompts, where they are from, and whether the user named them."""

    prompts: Sequence[Prompt]
    of: str
    named: bool


def _texts(a: Bundle, b: Bundle, path: Path | None) -> _Texts:
    if path is None:
        return _Texts(prompts=golden_texts(a, b), of=GOLDEN_TEXTS, named=False)
    sides = (a.manifest, b.manifest)
    labels = [label for side in sides for label in (*side.labels, side.out_of_scope) if label is not None]
    return _Texts(prompts=read_file(path, labels), of=str(path), named=True)


def _bundles(a: Bundle, b: Bundle, models: Difference, sides: tuple[Side, Side], texts: _Texts | None) -> Difference:
    """What can be told of two bundles beside what `models` has."""
    before, after = a.manifest, b.manifest
    files = compare_files(before, after)
    answers, why = (None, None) if texts is None or before.digest == after.digest else _ask(a, b, texts)
    reasons = why_incompatible(a, b)
    asked, said = None, [why] if why else []
    if answers and texts and has_one_width(answers):
        asked = compare_answers(a, b, answers, texts.prompts, texts.of)
        if asked.cosine and asked.cosine[1] < _ALIKE:
            alike = f"{asked.cosine[0]:.4f} (least {asked.cosine[1]:.4f})"
            said.append(f"an embedding of B is like A's by {alike}: make stored ones anew")
    read = (how_read(answers[0]), how_read(answers[1])) if answers else None
    return replace(
        models,
        same=before.digest == after.digest,
        compatible=not reasons,
        reasons=tuple(reasons),
        notes=(*notes(before, after), *models.notes, *said),
        files=files,
        labels=compare_labels(before.labels, after.labels) if before.labels or after.labels else None,
        settings=compare_settings(before, after),
        tokenizer=compare_tokenizers(*sides, [prompt.text for prompt in texts.prompts] if texts else [], read),
        asked=asked,
        verified=None if before.digest == after.digest else compare_outcomes(*sides),
        measured=compare_reports(*sides),
    )


def _ask(a: Bundle, b: Bundle, texts: _Texts) -> tuple[tuple[Rows, Rows] | None, str | None]:
    """The answers of both, or why there are none; that is an error where the user named the texts."""
    asked = list(dict.fromkeys(prompt.text for prompt in texts.prompts))
    if a.manifest.output != b.manifest.output or not asked:
        return None, None
    try:
        return (ask(a, asked), ask(b, asked)), None
    except EdgekitError as failed:
        if texts.named:
            raise
        return None, f"not asked: {failed.message}"
