"""qad: quantization-aware distillation. A student learns beside its teacher with the weights that its file will hold.

The forward pass of every batch sees the numbers of the target's format and scheme, so what is trained is what ships: export
writes the codes and scales of the last one. (QAD: NVIDIA, arXiv:2601.20088.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from edgekit.distill import Rows, student_job, student_rows
from edgekit.distill.options import QadOptions, Schedule
from edgekit.distill.processes import spread
from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, FormatOptions
from edgekit.inputs import BESIDE, Content
from edgekit.progress import Progress, silent
from edgekit.tasks import TASKS

# What teaches a classifier of 8 bits where a recipe does not say: so little is lost that the probabilities of texts which the
# teacher learned from, and is sure of, hardly tell it.
INPUTS_LOSSES = {"logit_squares": 1.0}


@dataclass(frozen=True, kw_only=True)
class QadInputs:
    """What `qad` is given: a teacher, a float student (or the teacher itself), and what the file will be.

    format, export: the format and its options. losses: weights by names of LOSSES. out_of_scope, machine,
    rows_at_once: see `distill.FinetuneInputs`. libraries: versions of those that round as the format does.
    """

    STEP: ClassVar[str] = "qad"
    teacher: Content
    student: Content
    prompts: Content
    task: str
    format: str
    export: FormatOptions
    options: QadOptions
    losses: Mapping[str, float | Schedule]
    out_of_scope: str | None
    max_length: int
    seed: int
    machine: Mapping[str, str | int]
    libraries: Mapping[str, str]
    rows_at_once: Rows = field(default_factory=dict, metadata=BESIDE)


@spread
def qad(inputs: QadInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """Train a student on the grid of its file, into `out`; a killed run continues there.

    Raises EdgekitError for a scheme that has no grid, a student of which it holds no weight, and an empty train split.
    """
    teacher, student, kind = inputs.teacher.path, inputs.student.path, TASKS[inputs.task]
    grid = FORMATS[inputs.format].grid(kind.open_model(student), inputs.export, kind.OUTPUT)
    if not grid.kinds:
        raise EdgekitError(f"{student}: {grid.format} {grid.scheme} rounds none of its weights; take out [qad]")
    rows = student_rows(inputs.prompts.path, inputs.task, inputs.out_of_scope)
    from edgekit.distill import courses
    from edgekit.distill.first_reads import choose_reads

    losses = inputs.losses
    if grid.inputs is not None:
        grid = replace(grid, choose_reads=choose_reads)
        if not inputs.options.losses and "logits" in losses:
            losses = INPUTS_LOSSES
    job = student_job(inputs, out, progress)
    return courses.train_on_grid(teacher, student, rows, grid, inputs.options, losses, job)
