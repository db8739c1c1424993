"""Ranking: a teacher reads texts, and what each of its parts does is kept in a file, for all students that are cut from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from edgekit.distill.batches import SOURCES, TrainSplit
from edgekit.distill.determinism import reproducible
from edgekit.distill.importance import FILE, measure
from edgekit.distill.students import load_module
from edgekit.prompts import Prompt

if TYPE_CHECKING:
    from edgekit.distill.courses import Job

# Texts that are read at a time.
_BATCH = 16


def rank(teacher: Path, texts: Sequence[Prompt], job: Job, device: str) -> dict[str, object]:
    """Measure how much each part of a teacher does on texts (`importance.measure`), into the job's folder."""
    job.progress(0, 0, f"loading {teacher.name}")
    model = job.task.open_model(teacher)
    source = SOURCES[job.task.OUTPUT](
        TrainSplit(texts=texts, model=model, task=job.task, max_length=job.max_length, holdout=0.0)
    )
    rows = range(len(source.lengths))
    with reproducible(job.seed, device):
        module = load_module(job.task, teacher).to(device)
        batches = (source.batch(rows[begin : begin + _BATCH]).to(device) for begin in range(0, len(rows), _BATCH))
        found = measure(
            module, batches, lambda done: job.progress(done, len(rows), "texts that show what is important")
        )
    save_file(found, job.out / FILE)
    return {"texts": len(texts), "influence": [round(float(value), 6) for value in found["influence"]]}
