"""Export: a student and its calibration become an artifact, one folder in the target's format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, Format, Processor, Reading, Source, format_of, runtime_of
from edgekit.inputs import Content
from edgekit.model import Model
from edgekit.outputs import OUTPUTS
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import Rejection
from edgekit.tasks import TASKS, find_pad_id, row_task, text_generation
from edgekit.tasks.contentless import ASKED

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import DataclassInstance
    from numpy.typing import NDArray

    from edgekit.formats.smallest import Limits

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ExportInputs:
    """What `export` is given: a student, its calibration, the calibrate prompts, and how to write it.

    options: of the format (`Format.Options`). name: what the model is called; license: what it ships under, where that is not
    the checkpoint's own; card: sha256 of the student's README.md. processor: the target's, where the file depends on it;
    limits: what a decoder may lose, where that decides its scheme. libraries: versions of those that the format needs.
    """

    STEP: ClassVar[str] = "export"
    student: Content
    calibration: Content
    prompts: Content
    task: str
    format: str
    options: DataclassInstance
    max_length: int
    out_of_scope: str | None
    rejection: Rejection
    name: str
    license: str | None
    card: str | None
    processor: Processor | None
    limits: Limits | None
    libraries: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AdoptInputs:
    """What `adopt` is given: a file that something else wrote, the checkpoint that it came from, and the calibrate prompts."""

    STEP: ClassVar[str] = "export"
    file: Content
    student: Content
    prompts: Content
    task: str
    max_length: int
    out_of_scope: str | None
    rejection: Rejection


def export(inputs: ExportInputs, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Write the student in the format that is asked for, into `out`.

    Only the calibrate split is read: it chooses the scheme and fits the task's settings on the artifact's outputs. Returns the
    artifact's facts. Raises EdgekitError where it cannot be exported, or nothing was quantized.
    """
    from edgekit.calibration import load_calibration

    task, kind, student, name = inputs.task, TASKS[inputs.task], inputs.student.path, inputs.name
    format_, model = FORMATS[inputs.format], kind.open_model(student)
    rows = PromptSet(folder=inputs.prompts.path).split("calibrate")
    source = Source(
        model=model,
        load=lambda: kind.load(student),
        calibration=lambda: load_calibration(inputs.calibration.path),
        **_read(model, task, rows, inputs.max_length),
        output=kind.OUTPUT,
        name=name,
        dataset=f"{name} calibrate" if name else "calibrate",
        fingerprints={"student": str(inputs.student.digest), "calibration": str(inputs.calibration.digest)},
        processor=inputs.processor,
        score=None if OUTPUTS[kind.OUTPUT].generates else row_task(task).score,
        pad_id=find_pad_id(model),
        max_length=inputs.max_length,
        license=inputs.license,
        limits=inputs.limits,
        progress=progress,
    )
    facts = format_.write(source, inputs.options, out) | _shared(model, task, inputs.max_length, out)
    if OUTPUTS[kind.OUTPUT].generates:
        return facts
    file, asked = out / facts["file"], _asked(source.ids, model, facts, inputs.out_of_scope)
    answers = _answers(format_, file, asked, facts)
    facts |= _fitted(file, model, task, rows, answers[: len(rows)], inputs.out_of_scope, inputs.rejection)
    return facts | _contentless(answers[len(rows) :], task, facts)


def _read(model: Model, task: str, rows: Sequence[Prompt], max_length: int) -> dict[str, Any]:
    """What a Source knows of the prompts: their texts and conversations, ids as the model reads them, and a decoder's starts."""
    told: dict[str, Any] = {"texts": [row.text for row in rows], "conversations": _conversations(rows)}
    if not OUTPUTS[TASKS[task].OUTPUT].generates:
        return told | {"ids": [tokens for _, tokens in TASKS[task].encode(model, rows, max_length)]}
    passages = text_generation.passages(model, rows, max_length)
    return told | {"ids": [one.ids for one in passages], "starts": [one.start for one in passages]}


def adopt(inputs: AdoptInputs, out: Path, progress: Progress = silent) -> dict[str, Any]:  # noqa: ARG001 - quick
    """Make an artifact folder of a file that something else wrote, so that `verify` can judge it.

    The checkpoint gives tokenizer and labels. Raises EdgekitError for a file that its runtime does not load, that lacks a
    file of its weights, or whose outputs are not what the task needs.
    """
    file, checkpoint, task, max_length = inputs.file.path, inputs.student.path, inputs.task, inputs.max_length
    if not file.is_file():
        raise EdgekitError(f"{file}: no such file")
    format_, model = format_of(file), TASKS[task].open_model(checkpoint)
    length = TASKS[task].length(model, max_length)
    reading = Reading(model=model, output=TASKS[task].OUTPUT, pad_id=find_pad_id(model), max_length=length)
    facts = format_.adopt(file, out, reading)
    facts |= _shared(model, task, max_length, out)
    rows = PromptSet(folder=inputs.prompts.path).split("calibrate")
    if OUTPUTS[TASKS[task].OUTPUT].generates:
        _check_vocabulary(file, facts["vocabulary"], model)
    facts |= _reading(format_, out / facts["file"], model, rows, TASKS[task].OUTPUT)
    if OUTPUTS[TASKS[task].OUTPUT].generates:
        return facts
    ids = [tokens for _, tokens in TASKS[task].encode(model, rows, max_length)]
    runtime, asked = runtime_of(format_), _asked(ids, model, facts, inputs.out_of_scope)
    try:
        answers = _answers(format_, out / facts["file"], asked, facts)
    except runtime.load_errors() as failed:
        raise EdgekitError(
            f"{file}: {runtime.NAME} fails on the calibrate prompts: {str(failed).splitlines()[0][:300]}; is {checkpoint} the"
            " checkpoint that it was exported from?"
        ) from failed
    facts |= _fitted(file, model, task, rows, answers[: len(ids)], inputs.out_of_scope, inputs.rejection)
    return facts | _contentless(answers[len(ids) :], task, facts)


def _reading(format_: Format, file: Path, model: Model, rows: Sequence[Prompt], output: str) -> dict[str, Any]:
    """Whether another tool's file reads texts as the checkpoint does: its `parity`, or as `misread` the first difference."""
    conversations = _conversations(rows) if OUTPUTS[output].generates else None
    try:
        parity = format_.check_reading(model, file, [row.text for row in rows], conversations)
    except EdgekitError as differs:
        return {"misread": differs.message}
    return {"parity": parity, "notes": parity["limits"]} if parity else {}


def _conversations(rows: Sequence[Prompt]) -> list[Mapping[str, Any]]:
    return [{"messages": text_generation.conversation(row), "tools": row.tools} for row in rows]


def _check_vocabulary(file: Path, found: int | None, model: Model) -> None:
    if found is not None and model.rows not in {found, math.inf}:
        raise EdgekitError(
            f"{file}: its vocabulary has {found} tokens, that of {model.folder} {model.rows}; name the checkpoint"
            " that it was made from"
        )


def file_digest(file: Path) -> str:
    """sha256 over a file of any format and the files of its weights: what an adopted artifact depends on.

    Raises EdgekitError for what `adopt` refuses of its files.
    """
    return format_of(file).file_digest(file)


def _shared(model: Model, task: str, max_length: int, out: Path) -> dict[str, Any]:
    """The facts that follow from the checkpoint, whose tokenizer and chat template are put beside the artifact's file."""
    kind = TASKS[task]
    max_length = kind.length(model, max_length)
    model.tokenizer(max_length).save(str(out / "tokenizer.json"))
    template = text_generation.chat_template(model) if OUTPUTS[kind.OUTPUT].generates else None
    if template is not None:
        (out / text_generation.TEMPLATE).write_text(template, encoding="utf-8", newline="\n")
    return {
        "task": task,
        "output": kind.OUTPUT,
        "classes": model.labels if OUTPUTS[kind.OUTPUT].has_classes else [],
        "out_of_scope": None,
        "settings": kind.settings(model),
        "max_length": max_length,
        "pad_id": find_pad_id(model),
    }


def _fitted(
    file: Path,
    model: Model,
    task: str,
    rows: Sequence[Prompt],
    answers: Floats,
    out_of_scope: str | None,
    rejection: Rejection,
) -> dict[str, Any]:
    """What a task of rows learns from the artifact's own outputs on the calibrate prompts."""
    kind = row_task(task)
    classes = model.labels if OUTPUTS[kind.OUTPUT].has_classes else []
    if classes and answers.shape[1] != len(classes):
        raise EdgekitError(
            f"{file}: gives {answers.shape[1]} scores, but the model has {len(classes)} labels; name the checkpoint that it"
            " was exported from"
        )
    return {
        "out_of_scope": out_of_scope,
        "settings": kind.settings(model)
        | kind.fit(answers, [row.label for row in rows], classes, out_of_scope, rejection),
    }


def _answers(format_: Format, file: Path, asked: Sequence[Sequence[int]], facts: Mapping[str, Any]) -> Floats:
    runtime = runtime_of(format_)
    return runtime.outputs(file, asked, pad_id=facts["pad_id"], options=runtime.joined({}, facts["runtime_options"]))


def _asked(
    ids: Sequence[Sequence[int]], model: Model, facts: Mapping[str, Any], out_of_scope: str | None
) -> list[Sequence[int]]:
    """What the artifact is asked: the prompts and, of a classifier that may reject texts, behind them those that say nothing."""
    rejects = OUTPUTS[facts["output"]].has_classes and out_of_scope is not None
    return [*ids, *(model.encode(ASKED, facts["max_length"]) if rejects else [])]


def _contentless(answers: Floats, task: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """As `contentless`: how many texts that say nothing were asked, and those that got a class, with it. {} without rejection."""
    if "threshold" not in facts["settings"]:
        return {}
    labels = row_task(task).answer(answers, facts["settings"], facts["classes"], ASKED)
    rejected = facts["settings"]["out_of_scope"]
    accepted = {text[:20]: label for text, label in zip(ASKED, labels, strict=True) if label != rejected}
    return {"contentless": {"asked": len(ASKED), "accepted": accepted}}
