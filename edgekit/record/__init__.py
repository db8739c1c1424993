"""record: the teacher's and the float student's outputs on the calibrate and verify prompts, for later comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.progress import Progress
from edgekit.record.inputs import RecordInputs
from edgekit.record.rows import record_rows
from edgekit.record.tokens import record_tokens
from edgekit.reference import Reference
from edgekit.schema import pick
from edgekit.tasks import TASKS

__all__ = ["RECORDERS", "RecordInputs", "record"]

# Who records a task's answers, by their kind; each writes reference.npz into the folder.
RECORDERS: dict[str, Callable[[RecordInputs, Path, Progress | None], Reference]] = {
    LOGITS.name: record_rows,
    EMBEDDING.name: record_rows,
    TOKENS.name: record_tokens,
}


def record(inputs: RecordInputs, out: Path, progress: Progress | None = None) -> Reference:
    """Run teacher and student in float32 over the calibrate and verify prompts and write reference.npz into `out`.

    Raises EdgekitError for unknown tasks, for models whose classes differ, and for outputs that are not finite.
    """
    return RECORDERS[pick(TASKS, inputs.task, "task").OUTPUT](inputs, out, progress)
