"""A student that nobody taught: a checkpoint with some of its blocks, to see what a block costs before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit.architectures.widths import Sizes
from edgekit.distill.determinism import reproducible
from edgekit.distill.files import KEPT, copy_files, save_model
from edgekit.distill.students import Whole, cut, cut_widths, make_student
from edgekit.tasks import TASKS


def write_sample(
    teacher: Path, task: str, keep: Sequence[int], classes: Sequence[str], out: Path, sizes: Sizes | None = None
) -> None:
    """Write a checkpoint's blocks `keep` (indices, rising) as a model's folder.

    sizes: how wide it is, None for as wide as the checkpoint: the first heads, neurons and channels stay. classes: of a new
    classifier on it, whose weights are drawn; () where the checkpoint has what the task needs.
    """
    kind = TASKS[task]
    with reproducible(0, "cpu"):
        module = make_student(Whole(folder=teacher, classes=classes), kind).module
    cut(module, keep)
    if sizes is not None:
        cut_widths(module, keep, sizes, None)
    save_model(module, out)
    copy_files(teacher, out, KEPT[kind.OUTPUT])
