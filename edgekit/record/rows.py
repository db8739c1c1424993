"""What teacher and float student answer where an answer is one row per text.

reference.npz: teacher_calibrate, teacher_verify, student_calibrate, student_verify: float32 [prompts, width], rows in the order
of the split, of verify the owner's library's own where edgekit reads and answers as it does; owner.*: what the student's owner
reads of the verify prompts, as `runtimes.request.pack` writes it.
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
from edgekit.runtimes.request import pack
from edgekit.tasks import outputs, row_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.modalities.encoded import Arrays, Encoded

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
        run = partial(outputs, kind.load(folder))
        encoded = {split: kind.encode(model, rows[split], max_length) for split in SPLITS}
        arrays[f"{role}_calibrate"] = run(encoded["calibrate"], progress=_from(done, total, role, progress))
        shown = _from(done + len(encoded["calibrate"]), total, role, progress)
        read[role] = _verify(folder, inputs, rows["verify"], encoded["verify"], run, shown)
        arrays[f"{role}_verify"] = read[role].outputs
        done += sum(map(len, encoded.values()))
    if progress:
        progress(0, 0, TIMING)
    timed = {folder: read[role].encoded for folder, role in once.items()}
    measured = measure_alone(
        {folder: one.subset(range(len(one))[:TIMED]) for folder, one in timed.items()}, task, max_length
    )
    read.setdefault("student", read["teacher"])
    for split in SPLITS:
        arrays.setdefault(f"student_{split}", arrays[f"teacher_{split}"])
    _check_finite(arrays, models)
    _write(out / FILE, {**arrays, **pack(read["student"].owners, "owner.")})
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
    """Of the verify prompts: what edgekit and the model's owner read, the outputs, and how both differ."""

    encoded: Encoded
    owners: Sequence[Arrays]
    outputs: Floats
    original: OwnersRows


def _verify(
    folder: Path,
    inputs: RecordInputs,
    rows: Sequence[Prompt],
    encoded: Encoded,
    run: Callable[..., Floats],
    progress: Progress | None,
) -> _Verified:
    """The owner's answers, where edgekit's own on some prompts are the same; else edgekit's own of all prompts."""
    from edgekit.tasks.text_classification import softmax

    texts = [row.text for row in rows]
    classes = load_model(folder).labels if OUTPUTS[row_task(inputs.task).OUTPUT].has_classes else []
    shown = (lambda count: progress(count, len(encoded), "")) if progress else None
    found = ask(folder, inputs.task, texts, max_length=inputs.max_length, classes=classes, progress=shown)
    indices = spread(encoded.sizes)
    answered = None
    if len(indices) < len(encoded):
        answered = stand_in(found, encoded.prompts, indices, run(encoded.subset(indices)))
    compared = len(encoded) if answered is None else len(indices)
    if answered is None:
        answered = run(encoded, progress=progress)
    answers = softmax(answered) if classes else answered
    original = compare(found, texts, prompts=encoded.prompts, answers=answers, compared=compared)
    return _Verified(encoded=encoded, owners=found.prompts, outputs=answered, original=original)


def _check_finite(arrays: Mapping[str, Floats], models: Mapping[str, Path]) -> None:
    import numpy as np

    for name, array in arrays.items():
        role, _, split = name.partition("_")
        if not np.isfinite(array).all():
            raise EdgekitError(f"{models[role]}: NaN or infinite outputs on the {split} prompts")


def _from(done: int, total: int, note: str, progress: Progress | None) -> Progress | None:
    """A progress callback for a part that begins at `done` of `total`."""
    if progress is None:
        return None
    return lambda part, _all, _note: progress(done + part, total, note)
