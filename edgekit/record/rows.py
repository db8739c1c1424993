"""What teacher and float student answer where an answer is one row per text.

reference.npz: teacher_calibrate, teacher_verify, student_calibrate, student_verify: float32 [prompts, width], rows in the order
of the split, of verify the owner's library's own where edgekit reads and answers as it does; owner_ids and owner_offsets: the ids
that the student's owner reads of the verify prompts, behind each other, and where each begins and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.checkpoint_keys import strange_keys
from edgekit.errors import EdgekitError
from edgekit.model import load_model
from edgekit.outputs import OUTPUTS
from edgekit.progress import Progress
from edgekit.prompts import Prompt, PromptSet
from edgekit.record.alone import TIMING, by_role, measure_alone
from edgekit.record.inputs import RecordInputs
from edgekit.record.original_rows import ask, compare, spread, stand_in
from edgekit.reference import OwnersRows, Reference
from edgekit.tasks import find_pad_id, outputs, row_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SPLITS = ("calibrate", "verify")
FILE = "reference.npz"
# Texts that are timed.
TIMED = 40


def record_rows(inputs: RecordInputs, out: Path, progress: Progress | None) -> Reference:
    """Write reference.npz (see above) into `out`. Where student and teacher are one folder, they are run once.

    Raises EdgekitError for models whose classes differ, and for outputs that are not finite.
    """
    models = {"teacher": inputs.teacher.path, "student": inputs.student.path}
    task, max_length, kind = inputs.task, inputs.max_length, row_task(inputs.task)
    classes = _shared_classes(**models) if OUTPUTS[kind.OUTPUT].has_classes else []
    rows = {split: PromptSet(folder=inputs.prompts.path).split(split) for split in SPLITS}
    once = {folder.resolve(): role for role, folder in reversed(models.items())}

    arrays: dict[str, Floats] = {}
    read: dict[str, _Verified] = {}
    total, done = len(once) * sum(map(len, rows.values())), 0
    for folder, role in once.items():
        model = kind.open_model(folder)
        run = partial(outputs, kind.load(folder), pad_id=find_pad_id(model))
        ids = {split: [tokens for _, tokens in kind.encode(model, rows[split], max_length)] for split in SPLITS}
        arrays[f"{role}_calibrate"] = run(ids["calibrate"], progress=_from(done, total, role, progress))
        shown = _from(done + len(ids["calibrate"]), total, role, progress)
        read[role] = _verify(folder, inputs, rows["verify"], ids["verify"], run, shown)
        arrays[f"{role}_verify"] = read[role].outputs
        done += sum(map(len, ids.values()))
    if progress:
        progress(0, 0, TIMING)
    measured = measure_alone({folder: read[role].ids[:TIMED] for folder, role in once.items()}, task, max_length)
    read.setdefault("student", read["teacher"])
    for split in SPLITS:
        arrays.setdefault(f"student_{split}", arrays[f"teacher_{split}"])
    _check_finite(arrays, models)
    _write(out / FILE, {**arrays, **_as_arrays(read["student"].owners)})
    return Reference(
        output=kind.OUTPUT,
        classes=tuple(classes),
        rows={split: len(rows[split]) for split in SPLITS},
        max_length=max_length,
        models=by_role(models, measured),
        warnings=tuple(warning for folder in once for warning in strange_keys(folder)),
        original={role: found.original for role, found in read.items()},
    )


def _shared_classes(teacher: Path, student: Path) -> list[str]:
    classes = load_model(student).labels
    if load_model(teacher).labels != classes:
        raise EdgekitError(f"{student}: its classes are not the teacher's ({teacher}); distil it from this teacher")
    return classes


def _write(file: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    import numpy as np

    # NumPy stamps every member with one fixed date: equal arrays are equal bytes.
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})


@dataclass(frozen=True, kw_only=True)
class _Verified:
    """What a model reads and answers on the verify prompts: its ids, the owner's, the outputs, and how they differ from the
    owner's."""

    ids: Sequence[Sequence[int]]
    owners: Sequence[Sequence[int]]
    outputs: Floats
    original: OwnersRows


def _verify(
    folder: Path,
    inputs: RecordInputs,
    rows: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    run: Callable[..., Floats],
    progress: Progress | None,
) -> _Verified:
    """The owner's answers, where edgekit's own on some prompts are the same; else edgekit's own of all prompts."""
    from edgekit.tasks.text_classification import softmax

    texts = [row.text for row in rows]
    classes = load_model(folder).labels if OUTPUTS[row_task(inputs.task).OUTPUT].has_classes else []
    shown = (lambda count: progress(count, len(ids), "")) if progress else None
    found = ask(folder, inputs.task, texts, max_length=inputs.max_length, classes=classes, progress=shown)
    indices = spread(ids)
    answered = None
    if len(indices) < len(ids):
        answered = stand_in(found, ids, indices, run([ids[index] for index in indices]))
    compared = len(ids) if answered is None else len(indices)
    if answered is None:
        answered = run(ids, progress=progress)
    answers = softmax(answered) if classes else answered
    original = compare(found, texts, ids=ids, answers=answers, compared=compared)
    return _Verified(ids=ids, owners=found.ids, outputs=answered, original=original)


def _check_finite(arrays: Mapping[str, Floats], models: Mapping[str, Path]) -> None:
    import numpy as np

    for name, array in arrays.items():
        role, _, split = name.partition("_")
        if not np.isfinite(array).all():
            raise EdgekitError(f"{models[role]}: NaN or infinite outputs on the {split} prompts")


def _as_arrays(ids: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
    import numpy as np

    ends = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return {"owner_ids": np.array([token for row in ids for token in row], dtype=np.int64), "owner_offsets": ends}


def _from(done: int, total: int, note: str, progress: Progress | None) -> Progress | None:
    """A progress callback for a part that begins at `done` of `total`."""
    if progress is None:
        return None
    return lambda part, _all, _note: progress(done + part, total, note)
