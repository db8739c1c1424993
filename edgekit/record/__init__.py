"""record: the teacher's and the float student's outputs on the calibrate and verify prompts, for later comparison.

What gives one row per text is recorded here, what gives tokens in `tokens`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.checkpoint_keys import strange_keys
from edgekit.errors import EdgekitError
from edgekit.inputs import Content
from edgekit.model import load_model
from edgekit.progress import Progress
from edgekit.prompts import Prompt, PromptSet
from edgekit.schema import pick
from edgekit.tasks import TASKS, find_pad_id, outputs, pad, row_task
from edgekit.weights import weight_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("calibrate", "verify")
FILE = "reference.npz"
# Texts that are timed, and calls before that are not.
TIMED, WARM_UP = 40, 4
# Lengths at which a float model is timed beside an artifact, and calls at each, the first not counted: fewer, but FEWEST, where
# they take longer than SECONDS.
LENGTHS, SHAPED, FEWEST, SECONDS = (16, 32, 64, 128, 256), 12, 4, 2.0
TIMING = "timing the float models in a process of their own"
# Questions that are answered for the clock.
TIMED_ANSWERS = 8


@dataclass(frozen=True, kw_only=True)
class RecordInputs:
    """What `record` is given: two models, which may be one, and the calibrate and verify prompts.

    teacher_origin: what the teacher was made of, wherever its folder lies; libraries: the versions of those whose answers
    "as the original" compares with.
    """

    STEP: ClassVar[str] = "record"
    teacher: Content
    teacher_origin: str
    student: Content
    prompts: Content
    task: str
    max_length: int
    libraries: Mapping[str, str | None]


def record(inputs: RecordInputs, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run teacher and student in float32 over the calibrate and verify prompts and write reference.npz into `out`.

    Of text-generation see `tokens.record_tokens`. Else: arrays teacher_calibrate, teacher_verify, student_calibrate,
    student_verify: float32 [prompts, width], rows in the order of the split, of verify the owner's library's own where edgekit
    reads and answers as it does; owner_ids and owner_offsets: the ids that the student's owner reads of the verify prompts,
    behind each other, and where each begins and ends. Where student and teacher are one folder, they are run once. Returns
    classes, output kind, rows, and as `original` by role how the answers differ from the owner's library
    (`original_rows.compare`). Raises EdgekitError for unknown tasks, for models whose classes differ, and for outputs that are
    not finite.
    """
    teacher, student, prompts = inputs.teacher.path, inputs.student.path, inputs.prompts.path
    task, max_length = inputs.task, inputs.max_length
    if pick(TASKS, task, "task").OUTPUT == "tokens":
        return _record_tokens(teacher, student, prompts, task, max_length, out, progress)
    kind = row_task(task)
    classes = _shared_classes(teacher, student) if kind.OUTPUT == "logits" else []
    rows = {split: PromptSet(folder=prompts).split(split) for split in SPLITS}
    models = {"teacher": teacher, "student": student}
    once = {folder.resolve(): role for role, folder in reversed(models.items())}

    arrays: dict[str, NDArray[np.float32]] = {}
    read: dict[str, _Verified] = {}
    total, done = len(once) * sum(map(len, rows.values())), 0
    for folder, role in once.items():
        model = kind.open_model(folder)
        run = partial(outputs, kind.load(folder), pad_id=find_pad_id(model))
        ids = {split: [tokens for _, tokens in kind.encode(model, rows[split], max_length)] for split in SPLITS}
        arrays[f"{role}_calibrate"] = run(ids["calibrate"], progress=_from(done, total, role, progress))
        shown = _from(done + len(ids["calibrate"]), total, role, progress)
        read[role] = _verify(folder, task, rows["verify"], max_length, ids["verify"], run, shown)
        arrays[f"{role}_verify"] = read[role].outputs
        done += sum(map(len, ids.values()))
    if progress:
        progress(0, 0, TIMING)
    measured = measure_alone({folder: read[role].ids[:TIMED] for folder, role in once.items()}, task, max_length)
    figures = {role: {"bytes": _weight_bytes(folder)} | measured[folder] for folder, role in once.items()}
    figures.setdefault("student", figures["teacher"])
    read.setdefault("student", read["teacher"])
    for split in SPLITS:
        arrays.setdefault(f"student_{split}", arrays[f"teacher_{split}"])
    _check_finite(arrays, models)
    _write(out / FILE, arrays | _as_arrays(read["student"].owners))
    return {
        "classes": classes,
        "output": kind.OUTPUT,
        "original": {role: one.original for role, one in read.items()},
        "rows": {split: len(rows[split]) for split in SPLITS},
        "max_length": max_length,
        "models": figures,
        "warnings": [warning for folder in once for warning in strange_keys(folder)],
    }


def _shared_classes(teacher: Path, student: Path) -> list[str]:
    classes = load_model(student).labels
    if load_model(teacher).labels != classes:
        raise EdgekitError(f"{student}: its classes are not the teacher's ({teacher}); distil it from this teacher")
    return classes


def _write(file: Path, arrays: Mapping[str, Any]) -> None:
    import numpy as np

    # NumPy stamps every member with one fixed date: equal arrays are equal bytes.
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})


@dataclass(frozen=True, kw_only=True)
class _Verified:
    """What a model reads and answers on the verify prompts: its ids, the owner's, the outputs, and how they differ from the
    owner's."""

    ids: list[list[int]]
    owners: Sequence[list[int]]
    outputs: NDArray[np.float32]
    original: dict[str, Any]


def _verify(
    folder: Path,
    task: str,
    rows: Sequence[Prompt],
    max_length: int,
    ids: list[list[int]],
    run: Callable[..., NDArray[np.float32]],
    progress: Progress | None,
) -> _Verified:
    """The owner's answers, where edgekit's own on some prompts are the same; else edgekit's own of all prompts."""
    from edgekit.record.original_rows import ask, compare, spread, stand_in
    from edgekit.tasks.text_classification import softmax

    texts = [row.text for row in rows]
    classes = load_model(folder).labels if row_task(task).OUTPUT == "logits" else []
    shown = (lambda count: progress(count, len(ids), "")) if progress else None
    found = ask(folder, task, texts, max_length=max_length, classes=classes, progress=shown)
    places = spread(ids)
    answered = None
    if len(places) < len(ids):
        answered = stand_in(found, ids, places, run([ids[place] for place in places]))
    compared = len(ids) if answered is None else len(places)
    if answered is None:
        answered = run(ids, progress=progress)
    facts = compare(found, texts, ids=ids, answers=softmax(answered) if classes else answered)
    return _Verified(ids=ids, owners=found.ids, outputs=answered, original=facts | {"compared": compared})


def _check_finite(arrays: Mapping[str, NDArray[np.float32]], models: Mapping[str, Path]) -> None:
    import numpy as np

    for name, array in arrays.items():
        role, _, split = name.partition("_")
        if not np.isfinite(array).all():
            raise EdgekitError(f"{models[role]}: NaN or infinite outputs on the {split} prompts")


def _as_arrays(ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    import numpy as np

    ends = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return {"owner_ids": np.array([one for row in ids for one in row], dtype=np.int64), "owner_offsets": ends}


def _record_tokens(
    teacher: Path,
    student: Path,
    prompts: Path,
    task: str,
    max_length: int,
    out: Path,
    progress: Progress | None,
) -> dict[str, Any]:
    import numpy as np

    from edgekit.record.tokens import record_tokens

    facts = record_tokens(teacher, student, prompts, max_length=max_length, out=out, progress=progress)
    with np.load(out / FILE, allow_pickle=False) as arrays:
        # Where all prompts are choices, nothing is asked.
        kind = "asked" if len(arrays["asked"]) else "choice_ids"
        places = "asked_offsets" if len(arrays["asked"]) else "choice_offsets"
        flat, offsets = arrays[kind].tolist(), arrays[places].tolist()
    asked = [flat[begin:end] for begin, end in itertools.pairwise(offsets)][:TIMED_ANSWERS]
    once = {folder.resolve(): role for role, folder in (("student", student), ("teacher", teacher))}
    if progress:
        progress(0, 0, TIMING)
    measured = measure_alone(dict.fromkeys(once, asked), task, max_length)
    figures = {role: {"bytes": _weight_bytes(folder)} | measured[folder] for folder, role in once.items()}
    figures.setdefault("student", figures["teacher"])
    return facts | {"models": figures}


def measure_alone(asked: Mapping[Path, Sequence[Sequence[int]]], task: str, longest: int) -> dict[Path, dict[str, Any]]:
    """What float costs on this machine, in torch, in a process of its own: {latency_ms, at, memory_mb, threads, busy} by folder.

    asked: each model's folder with token ids of texts. latency_ms, {p50, p95}, is of one text a call at its own length; at:
    [{sequence, threads, p50, p95}], of the shapes at which artifacts are timed (`shapes`), texts of up to `longest` tokens.
    memory_mb is the peak of the process in MiB, torch itself included: models are measured one after another, the smallest
    first, so that a peak is that of its own model. busy is the load average, its own threads included; both None where the
    system does not tell. Raises EdgekitError where the process fails.
    """
    folders = sorted(asked, key=lambda folder: (_weight_bytes(folder), str(folder)))
    told = {
        "folders": [str(folder) for folder in folders],
        "ids": [[list(row) for row in asked[one]] for one in folders],
    }
    ended = subprocess.run(
        [sys.executable, "-m", "edgekit.record", task],
        input=json.dumps(told | {"longest": longest}),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        why = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "no word")
        names = " and ".join(map(str, folders))
        raise EdgekitError(f"{names}: measuring in torch ended with exit code {ended.returncode}: {why[:300]}")
    found: list[dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    return dict(zip(folders, found, strict=True))


def measure_here(folder: Path, task: str, ids: Sequence[Sequence[int]], longest: int) -> dict[str, Any]:
    """What `measure_alone` tells of one model, of this very process: it should do nothing else."""
    import torch

    from edgekit.runtimes.machine import load_average, peak_memory_mb

    threads = torch.get_num_threads()
    try:
        if TASKS[task].OUTPUT == "tokens":
            from edgekit.record.tokens import measure_decoder

            times = measure_decoder(folder, ids)
        else:
            times = _measure_rows(folder, task, ids, longest)
    finally:
        torch.set_num_threads(threads)
    memory = peak_memory_mb()
    return times | {"memory_mb": memory and round(memory, 1), "threads": threads, "busy": load_average()}


def shapes(longest: int, cores: int) -> list[tuple[int, int]]:
    """(sequence, threads) at which artifacts are timed: texts of 16, 32, ... tokens and of `longest`; 1, 2, 4 ... cores."""
    lengths = {length for length in LENGTHS if length < longest} | {longest}
    counts = {1 << power for power in range(cores.bit_length())} | {cores}
    return [(length, threads) for threads in sorted(counts) for length in sorted(lengths)]


def _measure_rows(folder: Path, task: str, ids: Sequence[Sequence[int]], longest: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from edgekit.runtimes.machine import describe

    module, pad_id = TASKS[task].load(folder), find_pad_id(load_model(folder))

    def timed(row: Sequence[int]) -> float:
        tokens, mask = pad([row], pad_id)
        begin = time.perf_counter()
        module(tokens, mask)
        return 1e3 * (time.perf_counter() - begin)

    def quantiles(times: Sequence[float]) -> dict[str, float]:
        return {name: round(float(np.percentile(times, q)), 3) for name, q in (("p50", 50), ("p95", 95))}

    with torch.inference_mode():
        times = [timed(row) for row in [*ids[:WARM_UP], *ids]][min(WARM_UP, len(ids)) :]
        at = []
        flat = [token for row in ids for token in row] or [pad_id]
        for length, threads in shapes(longest, int(describe()["cores"])):
            torch.set_num_threads(threads)
            row = np.resize(flat, length).tolist()
            calls = [timed(row)]
            while len(calls) < SHAPED and (len(calls) < FEWEST or sum(calls) < 1e3 * SECONDS):
                calls.append(timed(row))
            at.append({"sequence": length, "threads": threads} | quantiles(calls[1:]))
    return {"latency_ms": quantiles(times), "at": at}


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))


def _from(done: int, total: int, note: str, progress: Progress | None) -> Progress | None:
    """A progress callback for a part that begins at `done` of `total`."""
    if progress is None:
        return None
    return lambda part, _all, _note: progress(done + part, total, note)
