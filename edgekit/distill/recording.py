"""A teacher's answers to the train split, asked once for all students of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit.distill.courses import Job, read_source
from edgekit.distill.determinism import reproducible
from edgekit.distill.options import TrainingOptions
from edgekit.distill.recorded import record, record_rows
from edgekit.distill.students import load_module
from edgekit.distill.tap import Tap
from edgekit.model import load_model
from edgekit.outputs import OUTPUTS
from edgekit.prompts import Prompt


def record_teacher(
    teacher: Path, texts: Sequence[Prompt], job: Job, temperature: float, device: str
) -> dict[str, object]:
    """Ask a teacher for each text once, of a decoder for each scored token, and keep what it says (`recorded`)."""
    output = OUTPUTS[job.task.OUTPUT]
    classes = load_model(teacher).labels if output.has_classes else []
    source = read_source(teacher, texts, classes, TrainingOptions(), job)
    job.progress(0, 0, f"loading the teacher, {teacher.name}")
    with reproducible(job.seed, device):
        tap = Tap(load_module(job.task, teacher), device=device)
        if not output.generates:
            return record_rows(teacher, tap, source, job.out, progress=job.progress)
        return record(teacher, tap, source, job.out, temperature=temperature, seed=job.seed, progress=job.progress)
