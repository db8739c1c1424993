"""Labels of scores, and whether they may be trained on: how they agree with labels that people gave, and which are in doubt."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.duplicates import near_copies, normalized
from edgekit.gate import proportion_bounds
from edgekit.prompts import Prompt, PromptSet
from edgekit.schema import dump_json
from edgekit.written.journal import read_lines
from edgekit.written.labels import FREE, GOLD, TEXTS, Scored, choose_gold, read_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.written.labels import LabelsInputs

AUDIT = "audit.json"
# So many of each kind of doubtful labels are listed.
_LISTED = 50


@dataclass(frozen=True, kw_only=True)
class Auditing:
    """Which labels stay: see `recipe.Labelling`."""

    calibrate: bool
    agreement: float
    least: float


def probabilities(scores: Sequence[Sequence[float]], free: Sequence[Sequence[float]] = ()) -> NDArray[np.float64]:
    """The labels' probabilities [n, labels] by scores in nats; free: scores of texts that say nothing, to calibrate by.

    A softmax over the labels; calibrated, each probability is divided by the mean of those that the model gives the label where
    the text says nothing, and all are made to sum to 1 again: Zhao et al., "Calibrate Before Use" (arXiv:2102.09690), section 5,
    with W = diag(p_free)^-1 and b = 0.
    """
    import numpy as np

    found = _softmax(np.asarray(scores, dtype=np.float64))
    if len(free):
        found /= _softmax(np.asarray(free, dtype=np.float64)).mean(axis=0)
        found /= found.sum(axis=1, keepdims=True)
    return found


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    shares: NDArray[np.float64] = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def label(inputs: LabelsInputs, scored: Path, auditing: Auditing, out: Path) -> dict[str, object]:
    """Write a folder of prompts into `out` whose train split also has the texts with the labels that were found; audit.json
    beside it lists what is in doubt. A text that is there without a label gets it in its place.

    inputs: what was scored; scored: the folder of the scores. Returns the audit's figures, how many labels train (`kept`), of
    how many texts that were there (`placed`), and why others do not (`left_out`).
    """
    lines, left_out = read_lines(scored, Scored), Counter[str]()
    free = [line.scores for (_, kind), line in sorted(lines.items()) if kind == FREE and line.scores]
    free = free if auditing.calibrate else []
    gold = choose_gold(inputs.prompts.path, inputs.labels, inputs.audit)
    texts = read_texts(inputs)

    def said(kind: int, count: int) -> list[tuple[str, float] | None]:
        return [_said(lines[index, kind].scores, free, inputs.labels) for index in range(count)]

    figures = _compare(gold, said(GOLD, len(gold)), auditing)
    given = PromptSet(folder=inputs.prompts.path)
    own, found = given.split("train"), list[Prompt]()
    known, unsure = {normalized(row.text): place for place, row in enumerate(own)}, list[dict[str, object]]()
    bare = {place for place in known.values() if own[place].label is None}
    inside = dict[int, str]()
    for text, told in zip(texts, said(TEXTS, len(texts)), strict=True):
        if told is None:
            left_out["too long for the model"] += 1
        elif (place := known.get(normalized(text))) is not None and place not in bare:
            left_out["in the train split already"] += 1
        else:
            unsure.append({"text": text, "said": told[0], "probability": round(told[1], 4)})
            if told[1] < auditing.least:
                left_out["less probable than least"] += 1
            elif place is not None:
                inside[place] = told[0]
            else:
                found.append(Prompt(text=text, label=told[0]))
    apart = _near_others(given, found)
    left_out["nearly what another split has"] += len(apart)
    kept = [row for place, row in enumerate(found) if place not in apart]
    for path in sorted(inputs.prompts.path.glob("*.jsonl")):
        if path.stem != "train":
            shutil.copyfile(path, out / path.name)
    own = [replace(row, label=inside.get(place, row.label)) for place, row in enumerate(own)]
    rows = (json.dumps(row.facts(), ensure_ascii=False) for row in [*own, *kept])
    (out / "train.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8", newline="\n")
    labels = Counter([*inside.values(), *(str(row.label) for row in kept)])
    unsure.sort(key=lambda one: (one["probability"], one["text"]))
    report = {**figures, "unsure": unsure[:_LISTED], "labels": dict(sorted(labels.items()))}
    (out / AUDIT).write_text(dump_json(report), encoding="utf-8", newline="\n")
    reasons = {reason: left_out[reason] for reason in sorted(left_out) if left_out[reason]}
    shown = {key: value for key, value in figures.items() if key != "by_label"}
    rows_now, placed = len(own) + len(kept), len(inside)
    return {**shown, "rows": rows_now, "kept": labels.total(), "placed": placed, "left_out": reasons}


def _said(
    scores: Sequence[float] | None, free: Sequence[Sequence[float]], labels: Sequence[str]
) -> tuple[str, float] | None:
    """The most probable label and its probability; None where nothing was scored."""
    if scores is None:
        return None
    found = probabilities([scores], free)[0]
    best = int(found.argmax())
    return labels[best], float(found[best])


def _compare(gold: Sequence[Prompt], said: Sequence[tuple[str, float] | None], auditing: Auditing) -> dict[str, object]:
    """How the labels agree with people's: the share, its exact bounds, the shares by label, and where they disagree, the surest
    first. A text that is too long for the model counts as a disagreement."""
    by_label: dict[str, list[int]] = {}
    suspects = []
    for row, told in zip(gold, said, strict=True):
        agrees = told is not None and told[0] == row.label
        count = by_label.setdefault(str(row.label), [0, 0])
        count[0] += agrees
        count[1] += 1
        if told is not None and not agrees:
            suspects.append({"text": row.text, "label": row.label, "said": told[0], "probability": round(told[1], 4)})
    suspects.sort(key=lambda one: (-float(str(one["probability"])), str(one["text"])))
    agreed = sum(count[0] for count in by_label.values())
    lo, hi = proportion_bounds(agreed, len(gold))
    return {
        "agreed": agreed,
        "gold": len(gold),
        "agreement": agreed / max(len(gold), 1),
        "interval": [lo, hi],
        "wanted": auditing.agreement,
        "suspects": suspects[:_LISTED],
        "by_label": {name: by_label[name] for name in sorted(by_label)},
    }


def _near_others(given: PromptSet, rows: Sequence[Prompt]) -> set[int]:
    """The rows that are nearly a text of another split, whatever its label: their places."""
    theirs = [(row.text, None) for row in given.apart()]
    return set(near_copies([(row.text, None) for row in rows], theirs))


def describe(facts: Mapping[str, object], by: str) -> str:
    """What a user is told of the labels."""
    left_out, interval = facts["left_out"], facts["interval"]
    assert isinstance(left_out, Mapping)
    assert isinstance(interval, list)
    told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return (
        f"train: {facts['kept']} labels by {by}, which agrees with {facts['agreed']} of {facts['gold']} labelled rows"
        f" ({interval[0]:.1%} to {interval[1]:.1%}, each bound at 95 %)" + (f"; left out: {told}" if told else "")
    )
