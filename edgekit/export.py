"""Export: a student and its calibration become an artifact, one folder in the target's format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekit.artifact import Artifact, Contentless, ModelFile
from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, Format, FormatOptions, Processor, Reading, Source, format_of, runtime_of
from edgekit.inputs import Content
from edgekit.modalities import text
from edgekit.model import Model
from edgekit.outputs import OUTPUTS
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import Rejection
from edgekit.tasks import TASKS, row_task, text_generation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.formats.smallest import Limits
    from edgekit.modalities.encoded import Encoded

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
    options: FormatOptions
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
class TraceInputs:
    """What the graph of a student follows from that a format keeps (see `Source.keep`): a part of what `export` is given."""

    STEP: ClassVar[str] = "trace"
    student: Content
    prompts: Content
    task: str
    format: str
    max_length: int
    libraries: Mapping[str, str]


Keep = Callable[[TraceInputs, Callable[[Path], None]], Path]


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


def export(inputs: ExportInputs, out: Path, progress: Progress = silent, keep: Keep | None = None) -> Artifact:
    """Write the student in the format that is asked for, into `out`.

    Only the calibrate split is read: it chooses the scheme and fits the task's settings on the artifact's outputs. keep(inputs,
    fill): a folder that `fill` filled for these inputs, now or before. Raises EdgekitError where it cannot be exported, or
    nothing was quantized.
    """
    task, kind, student = inputs.task, TASKS[inputs.task], inputs.student.path
    format_, model = FORMATS[inputs.format], kind.open_model(student)
    rows = PromptSet(folder=inputs.prompts.path).split("calibrate")
    source = _source(inputs, model, rows, progress)
    if keep is not None:
        source = replace(source, keep=partial(keep, _traced(inputs)))
    artifact = _of_task(format_.write(source, inputs.options, out), model, task, inputs.max_length, out)
    if OUTPUTS[kind.OUTPUT].generates:
        return artifact
    answers = _answers(format_, out, source.encoded, model, artifact, inputs)
    return _fitted(artifact, out / artifact.file.name, model, rows, answers, inputs)


def _source(inputs: ExportInputs, model: Model, rows: Sequence[Prompt], progress: Progress) -> Source:
    """What the format writes."""
    from edgekit.calibration import load_calibration

    task, kind, student, name = inputs.task, TASKS[inputs.task], inputs.student.path, inputs.name
    if OUTPUTS[kind.OUTPUT].generates:
        passages = text_generation.passages(model, rows, inputs.max_length)
        encoded = text.of_tokens([one.ids for one in passages], kind.pad_id(model))
        starts = [one.start for one in passages]
    else:
        encoded, starts = kind.encode(model, rows, inputs.max_length), []
    return Source(
        model=model,
        load=lambda: kind.load(student),
        calibration=lambda: load_calibration(inputs.calibration.path),
        texts=[row.text for row in rows],
        conversations=_conversations(rows),
        encoded=encoded,
        starts=starts,
        output=kind.OUTPUT,
        name=name,
        dataset=f"{name} calibrate" if name else "calibrate",
        fingerprints={"student": str(inputs.student.digest), "calibration": str(inputs.calibration.digest)},
        processor=inputs.processor,
        score=None if OUTPUTS[kind.OUTPUT].generates else row_task(task).score,
        max_length=inputs.max_length,
        license=inputs.license,
        limits=inputs.limits,
        progress=progress,
    )


def _traced(inputs: ExportInputs) -> TraceInputs:
    names = [field.name for field in fields(TraceInputs)]
    return TraceInputs(**{name: getattr(inputs, name) for name in names})


def adopt(inputs: AdoptInputs, out: Path, progress: Progress = silent) -> Artifact:  # noqa: ARG001 - quick
    """Make an artifact folder of a file that something else wrote, so that `verify` can judge it.

    The checkpoint gives tokenizer and labels. Raises EdgekitError for a file that its runtime does not load, that lacks a
    file of its weights, or whose outputs are not what the task needs.
    """
    file, checkpoint, task, max_length = inputs.file.path, inputs.student.path, inputs.task, inputs.max_length
    if not file.is_file():
        raise EdgekitError(f"{file}: no such file")
    format_, model = format_of(file), TASKS[task].open_model(checkpoint)
    length = TASKS[task].length(model, max_length)
    reading = Reading(model=model, output=TASKS[task].OUTPUT, pad_id=TASKS[task].pad_id(model), max_length=length)
    artifact = _of_task(format_.adopt(file, out, reading), model, task, max_length, out)
    rows = PromptSet(folder=inputs.prompts.path).split("calibrate")
    if OUTPUTS[artifact.output].generates:
        _check_vocabulary(file, artifact.file, model)
    artifact = _read(format_, artifact, out, model, rows)
    if OUTPUTS[artifact.output].generates:
        return artifact
    encoded = TASKS[task].encode(model, rows, max_length)
    runtime = runtime_of(format_)
    try:
        answers = _answers(format_, out, encoded, model, artifact, inputs)
    except runtime.load_errors() as failed:
        raise EdgekitError(
            f"{file}: {runtime.NAME} fails on the calibrate prompts: {str(failed).splitlines()[0][:300]}; is {checkpoint} the"
            " checkpoint that it was exported from?"
        ) from failed
    return _fitted(artifact, file, model, rows, answers, inputs)


def _read(format_: Format, artifact: Artifact, out: Path, model: Model, rows: Sequence[Prompt]) -> Artifact:
    """The artifact with what another tool's file reads otherwise than the checkpoint: its parity, or the first difference."""
    conversations = _conversations(rows) if OUTPUTS[artifact.output].generates else None
    try:
        parity = format_.check_reading(model, out / artifact.file.name, [row.text for row in rows], conversations)
    except EdgekitError as differs:
        return replace(artifact, file=replace(artifact.file, misread=differs.message))
    if parity is None:
        return artifact
    return replace(artifact, file=replace(artifact.file, parity=parity, notes=parity.limits))


def _conversations(rows: Sequence[Prompt]) -> list[Mapping[str, object]]:
    return [{"messages": text_generation.conversation(row), "tools": row.tools} for row in rows]


def _check_vocabulary(file: Path, written: ModelFile, model: Model) -> None:
    found = None if written.gguf is None else written.gguf.vocabulary
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


def _of_task(file: ModelFile, model: Model, task: str, max_length: int, out: Path) -> Artifact:
    """The artifact with what follows from the checkpoint, whose files that read prompts are put beside its own."""
    kind = TASKS[task]
    max_length = kind.length(model, max_length)
    kind.ship(model, max_length, out)
    return Artifact(
        file=file,
        task=task,
        output=kind.OUTPUT,
        classes=tuple(model.labels) if OUTPUTS[kind.OUTPUT].has_classes else (),
        out_of_scope=None,
        settings=kind.settings(model),
        max_length=max_length,
        pad_id=kind.pad_id(model),
    )


def _answers(
    format_: Format,
    out: Path,
    encoded: Encoded,
    model: Model,
    artifact: Artifact,
    inputs: ExportInputs | AdoptInputs,
) -> Floats:
    """The artifact's outputs on prompts and, of a classifier that may reject prompts, behind them on those that say nothing."""
    runtime, file, kind = runtime_of(format_), artifact.file, row_task(artifact.task)
    contentless = [] if inputs.out_of_scope is None else [Prompt(text=text) for text in kind.CONTENTLESS]
    asked = [*encoded.prompts, *kind.encode(model, contentless, artifact.max_length).prompts]
    return runtime.outputs(out / file.name, asked, options=runtime.joined({}, file.runtime_options))


def _fitted(
    artifact: Artifact,
    file: Path,
    model: Model,
    rows: Sequence[Prompt],
    answers: Floats,
    inputs: ExportInputs | AdoptInputs,
) -> Artifact:
    """The artifact with what a task of rows learns from its own outputs on the calibrate prompts; file: as errors call it."""
    kind, classes = row_task(artifact.task), artifact.classes
    if classes and answers.shape[1] != len(classes):
        raise EdgekitError(
            f"{file}: gives {answers.shape[1]} scores, but the model has {len(classes)} labels; name the checkpoint that it"
            " was exported from"
        )
    of_rows, of_contentless = answers[: len(rows)], answers[len(rows) :]
    labels = [row.label for row in rows]
    settings = kind.settings(model) | kind.fit(of_rows, labels, classes, inputs.out_of_scope, inputs.rejection)
    fitted = replace(artifact, out_of_scope=inputs.out_of_scope, settings=settings)
    return replace(fitted, contentless=_contentless(fitted, of_contentless))


def _contentless(artifact: Artifact, answers: Floats) -> Contentless | None:
    """What a classifier answers to prompts that say nothing; None without rejection, and where there are no such prompts."""
    kind = row_task(artifact.task)
    asked = kind.CONTENTLESS
    if "threshold" not in artifact.settings or not asked:
        return None
    labels = kind.answer(answers, artifact.settings, artifact.classes, asked)
    rejected = artifact.settings["out_of_scope"]
    accepted = {text[:20]: label for text, label in zip(asked, labels, strict=True) if label != rejected}
    return Contentless(asked=len(asked), accepted=accepted)
