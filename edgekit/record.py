"""record: the teacher's and the float student's outputs on the calibrate and verify prompts, for later comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.model import Model, load_model, weight_files
from edgekit.prompts import PromptSet
from edgekit.schema import pick
from edgekit.tasks import TASKS, find_pad_id, outputs, pad

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

SPLITS = ("calibrate", "verify")
FILE = "reference.npz"


def record(
    teacher: Path,
    student: Path,
    prompts: Path,
    *,
    task: str,
    max_length: int,
    out: Path,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Run teacher and student in float32 over the calibrate and verify prompts and write reference.npz into `out`.

    Arrays teacher_calibrate, teacher_verify, student_calibrate, student_verify: float32 [prompts, width], rows in the
    order of the split. Where student and teacher are one folder, they are run once. Returns classes, output kind and rows.
    Raises EdgekitError for unknown tasks, for models whose classes differ, and for outputs that are not finite.
    """
    import numpy as np

    kind = pick(TASKS, task, "task")
    classes = load_model(student).labels if kind.OUTPUT == "logits" else []
    if kind.OUTPUT == "logits" and load_model(teacher).labels != classes:
        raise EdgekitError(f"{student}: its classes are not the teacher's ({teacher}); distil it from this teacher")
    texts = {split: [prompt.text for prompt in PromptSet(folder=prompts).split(split)] for split in SPLITS}
    models = {"teacher": teacher, "student": student}
    once = {folder.resolve(): role for role, folder in reversed(models.items())}

    arrays: dict[str, NDArray[np.float32]] = {}
    figures: dict[str, dict[str, Any]] = {}
    total, done = len(once) * sum(map(len, texts.values())), 0
    for folder, role in once.items():
        model, module = load_model(folder), kind.load(folder)
        for split in SPLITS:
            ids = model.encode(texts[split], max_length)
            told = _from(done, total, role, progress)
            arrays[f"{role}_{split}"] = outputs(module, ids, find_pad_id(model), progress=told)
            done += len(ids)
        figures[role] = {"bytes": _weight_bytes(model), "latency_ms": time_module(module, ids, find_pad_id(model))}
    figures.setdefault("student", figures["teacher"])
    for split in SPLITS:
        arrays.setdefault(f"student_{split}", arrays[f"teacher_{split}"])
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise EdgekitError(
                f"{models[name.split('_')[0]]}: NaN or infinite outputs on the {name.split('_')[1]} prompts"
            )
    # NumPy stamps every member with one fixed date: equal arrays are equal bytes.
    with (out / FILE).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    return {
        "classes": classes,
        "output": kind.OUTPUT,
        "rows": {split: len(texts[split]) for split in SPLITS},
        "max_length": max_length,
        "models": figures,
    }


def time_module(module: nn.Module, ids: Sequence[Sequence[int]], pad_id: int, calls: int = 40) -> dict[str, float]:
    """p50 and p95 in ms of a module in torch on this machine, one text a call at its own length: what float costs here."""
    import numpy as np
    import torch

    times = []
    with torch.inference_mode():
        for row in [*ids[:4], *ids[:calls]]:
            tokens, mask = pad([row], pad_id)
            begin = time.perf_counter()
            module(tokens, mask)
            times.append(1e3 * (time.perf_counter() - begin))
    p50, p95 = np.percentile(times[min(4, len(ids)) :], [50, 95])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def _weight_bytes(model: Model) -> int:
    return sum(path.stat().st_size for path in weight_files(model.folder))


def _from(
    done: int, total: int, note: str, progress: Callable[[int, int, str], None] | None
) -> Callable[[int, int, str], None] | None:
    """A progress callback for a part that begins at `done` of `total`."""
    if progress is None:
        return None
    return lambda part, _all, _note: progress(done + part, total, note)
