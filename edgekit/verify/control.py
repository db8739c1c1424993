"""The control run in a report: what the float student answers beside the same one that was taught without its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import gate
from edgekit.errors import EdgekitError
from edgekit.evidence import Control, FloatModel, Interval, finite
from edgekit.reference import read_reference
from edgekit.verify import clusters
from edgekit.verify.generation import passages
from edgekit.verify.recorded import Recorded, read_recorded
from edgekit.verify.rows import answers_of
from edgekit.workspace import open_product

if TYPE_CHECKING:
    from edgekit.prompts import Prompt
    from edgekit.verify.accuracy import Answers
    from edgekit.verify.run import Run, VerifyInputs

ROLE = "control"
_MEND = "train without it ([distill] losses = { labels = 1.0 }), or mend it"


def model_of(inputs: VerifyInputs) -> dict[str, FloatModel]:
    """What the student without its teacher costs, by its role; {} where there is none."""
    if inputs.control is None:
        return {}
    return {ROLE: read_reference(open_product(inputs.control.path, "record")).models["student"]}


def compare_rows(run: Run, rows: Sequence[Prompt], student: Answers) -> Control | None:
    """Of a classifier: how much more often the student is right. None without a control run, or where no prompt has a label.

    student: what the reference's float student answers to the prompts `rows`.
    """
    given, taught = run.inputs.control, run.inputs.taught
    known = [index for index, row in enumerate(rows) if row.label is not None]
    if given is None or not known:
        return None
    texts = [row.text for row in rows]
    both = (
        student if taught is None else answers_of(run, taught.path, "student", texts),
        answers_of(run, given.path, "student", texts),
    )
    mine, alone = ([answers.labels[index] == rows[index].label for index in known] for answers in both)
    return judge_right(mine, alone, [rows[index].group for index in known], run.inputs.look.alpha)


def judge_right(
    mine: Sequence[bool], alone: Sequence[bool], groups: clusters.Keys, alpha: float = gate.ALPHA
) -> Control:
    """By which labelled prompts are answered rightly with the teacher, and without it. groups: see `clusters.paired_bounds`."""
    difference, interval = clusters.paired_difference(mine, alone, groups, alpha)
    return Control(
        metric="accuracy",
        student=sum(mine) / len(mine),
        control=sum(alone) / len(alone),
        difference=difference,
        interval=interval,
        prompts=len(mine),
        note=_note(interval, "points", 100.0),
    )


def compare_tokens(run: Run, recorded: Recorded, prompts: Sequence[Prompt]) -> Control | None:
    """Of a decoder: how much less a token of the verify passages surprises the student, in nats. None without a control run.

    recorded: the reference's, of the prompts. Raises EdgekitError where the records have other passages.
    """
    import numpy as np

    given, taught = run.inputs.control, run.inputs.taught
    if given is None:
        return None
    alone = _read(given.path)
    mine = recorded if taught is None else _read(taught.path)
    if any(not np.array_equal(alone.arrays[name], mine.arrays[name]) for name in ("ids", "offsets", "starts")):
        raise EdgekitError(
            f"{given.path}: the record of other passages than {run.recorded.folder}; run the build again"
        )
    tokens, groups = passages(mine, prompts)
    together = clusters.indices(groups)[tokens]
    both = [one.arrays["student_nll"].astype(np.float64) for one in (mine, alone)]
    gained = np.bincount(together, weights=both[1] - both[0]).astype(np.float64)
    counts = np.bincount(together).astype(np.float64)
    alpha, longest = run.inputs.look.alpha, float(mine.max_length)
    # Either may have rare large losses, which a lower bound knows nothing of: of both signs the wider bound counts.
    ratio, least, most = gate.ratio_bounds(gained, counts, alpha, longest=longest)
    _, below, above = gate.ratio_bounds(-gained, counts, alpha, longest=longest)
    interval = finite(min(least, -above)), finite(max(most, -below))
    return Control(
        metric="nats",
        student=float(both[0].mean()),
        control=float(both[1].mean()),
        difference=ratio,
        interval=interval,
        prompts=len(counts),
        note=_note(interval, "nats a token", 1.0),
    )


def _read(folder: Path) -> Recorded:
    product = open_product(folder, "record")
    return read_recorded(product, read_reference(product))


def _note(interval: Interval, unit: str, factor: float) -> str | None:
    """What is to be done, by the bounds of what the teacher made better."""
    least, most = interval
    if most is not None and most < 0:
        return f"the teacher made it worse: by {-factor * most:.2g} {unit} at least; {_MEND}"
    if least is None or least <= 0:
        return f"the teacher is not proven to add anything: {_MEND}, or give more verify prompts"
    return None
