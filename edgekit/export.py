"""Export: a student and its calibration become an artifact, one folder in the target's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS
from edgekit.model import Model, load_model
from edgekit.prompts import Prompt, PromptSet
from edgekit.schema import pick
from edgekit.tasks import TASKS, find_pad_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


def export(
    *,
    student: Path,
    calibration: Path,
    prompts: Path,
    task: str,
    options: Mapping[str, Any],
    where: str,
    max_length: int,
    out_of_scope: str | None,
    out: Path,
) -> dict[str, Any]:
    """Write the student in the format and scheme that `options` (a target's `[export.<task>]` table) names.

    Only the calibrate split is read: it chooses the scheme and fits the task's settings on the artifact's own outputs.
    Returns the artifact's facts. Raises EdgekitError where the student cannot be exported or nothing was quantized.
    """
    from edgekit.calibrate import load_calibration
    from edgekit.runtimes import ort
    from edgekit.schema import parse

    format_ = pick(FORMATS, str(options.get("format", "onnx")), f"{where}.format")
    chosen = parse(format_.Options, {key: value for key, value in options.items() if key != "format"}, where)
    model = load_model(student)
    rows = PromptSet(folder=prompts).split("calibrate")
    ids = model.encode([row.text for row in rows], max_length)
    kind = TASKS[task]
    facts: dict[str, Any] = dict(
        format_.write(
            module=kind.load(student),
            ids=ids,
            calibration=load_calibration(calibration),
            options=chosen,
            score=kind.score,
            out=out,
            pad_id=find_pad_id(model),
            output_name=kind.OUTPUT,
        )
    )
    model.tokenizer(max_length).save(str(out / "tokenizer.json"))
    answers = ort.outputs(out / facts["file"], ids, pad_id=find_pad_id(model), options=facts["runtime_options"])
    return facts | _describe(
        out / facts["file"], model, task, rows, answers, max_length=max_length, out_of_scope=out_of_scope
    )


def adopt(
    *, file: Path, checkpoint: Path, prompts: Path, task: str, max_length: int, out_of_scope: str | None, out: Path
) -> dict[str, Any]:
    """Make an artifact folder of an .onnx file that something else wrote, so that `verify` can judge it.

    The checkpoint gives tokenizer and labels. Raises EdgekitError for a file that onnxruntime does not load, that lacks a
    file of its weights, or that does not map token ids to one row per text.
    """
    from edgekit.formats.onnx import FILE, describe_file
    from edgekit.formats.onnx.files import copy_files
    from edgekit.runtimes import ort
    from edgekit.runtimes.ort import load_errors

    if not file.is_file():
        raise EdgekitError(f"{file}: no such file")
    model = load_model(checkpoint)
    copy_files(file, out / FILE)
    facts = describe_file(out / FILE, named=file)
    rows = PromptSet(folder=prompts).split("calibrate")
    ids = model.encode([row.text for row in rows], max_length)
    model.tokenizer(max_length).save(str(out / "tokenizer.json"))
    try:
        answers = ort.outputs(out / FILE, ids, pad_id=find_pad_id(model), options=facts["runtime_options"])
    except load_errors() as failed:
        raise EdgekitError(
            f"{file}: onnxruntime fails on the calibrate prompts: {str(failed).splitlines()[0][:300]}; is {checkpoint} the"
            " checkpoint that it was exported from?"
        ) from failed
    return facts | _describe(file, model, task, rows, answers, max_length=max_length, out_of_scope=out_of_scope)


def file_digest(file: Path) -> str:
    """sha256 over an .onnx file and the files of its weights: what an adopted artifact depends on.

    Raises EdgekitError for what `adopt` refuses of its files.
    """
    from edgekit.formats.onnx.files import digest, external_files, read

    return digest(file.parent, [file.name, *external_files(read(file), file)])


def _describe(
    file: Path,
    model: Model,
    task: str,
    rows: Sequence[Prompt],
    answers: Floats,
    *,
    max_length: int,
    out_of_scope: str | None,
) -> dict[str, Any]:
    kind = TASKS[task]
    classes = model.labels if kind.OUTPUT == "logits" else []
    if classes and answers.shape[1] != len(classes):
        raise EdgekitError(
            f"{file}: gives {answers.shape[1]} scores, but the model has {len(classes)} labels; name the checkpoint that it"
            " was exported from"
        )
    return {
        "task": task,
        "output": kind.OUTPUT,
        "classes": classes,
        "out_of_scope": out_of_scope,
        "settings": kind.fit(answers, [row.label for row in rows], classes, out_of_scope),
        "max_length": max_length,
        "pad_id": find_pad_id(model),
    }
