"""Export: a student and its calibration become an artifact, one folder in the target's format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.formats import Format, Reading, Source, format_of, parse_options
from edgekit.model import Model
from edgekit.progress import Progress, silent
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.running import check_running
from edgekit.runtimes import RUNTIMES
from edgekit.tasks import TASKS, find_pad_id, row_task, text_generation
from edgekit.tasks.contentless import ASKED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.formats.smallest import Limits

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
    rejection: Rejection = AS_CALIBRATED,
    name: str = "",
    arch: str = "",
    features: Sequence[str] = (),
    bandwidth_gbs: float | None = None,
    fingerprints: Mapping[str, str] | None = None,
    license: str | None = None,  # noqa: A002 - the recipe's name for it
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the student in the format and scheme that `options` (a target's `[export.<task>]` table) names.

    arch, features and bandwidth_gbs are the target's; name, fingerprints (sha256 by what) and license (where it is not the
    checkpoint's own) are for the file's own record. Only the calibrate split is read: it chooses the scheme and fits the task's
    settings on the artifact's outputs. limits: what a decoder may lose, by the bits of a weight (`verify.margins.limits_at`),
    which scheme = "auto" keeps. Returns its facts. Raises EdgekitError where it cannot be exported, or nothing was quantized.
    """
    from edgekit.calibrate import load_calibration

    kind = TASKS[task]
    format_, chosen = parse_options(options, kind.OUTPUT, where)
    model, rows = kind.open_model(student), PromptSet(folder=prompts).split("calibrate")
    source = Source(
        model=model,
        load=lambda: kind.load(student),
        calibration=lambda: load_calibration(calibration),
        **_read(model, task, rows, max_length),
        output=kind.OUTPUT,
        name=name,
        dataset=f"{name} calibrate" if name else "calibrate",
        fingerprints=fingerprints or {},
        arch=arch,
        features=features,
        bandwidth_gbs=bandwidth_gbs,
        score=None if kind.OUTPUT == "tokens" else row_task(task).score,
        pad_id=find_pad_id(model),
        max_length=max_length,
        license=license,
        limits=limits,
        progress=progress or silent,
    )
    facts = format_.write(source, chosen, out) | _shared(model, task, max_length, out)
    if kind.OUTPUT == "tokens":
        return facts | _running(format_, student, out / facts["file"], source.ids, facts["bits"])
    file, asked = out / facts["file"], _asked(source.ids, model, facts, out_of_scope)
    answers = _answers(format_, file, asked, facts)
    facts |= _fitted(file, model, task, rows, answers[: len(rows)], out_of_scope, rejection)
    return facts | _contentless(answers[len(rows) :], task, facts)


def _read(model: Model, task: str, rows: Sequence[Prompt], max_length: int) -> dict[str, Any]:
    """What a Source knows of the prompts: their texts and conversations, ids as the model reads them, and a decoder's starts."""
    told: dict[str, Any] = {"texts": [row.text for row in rows], "conversations": _conversations(rows)}
    if TASKS[task].OUTPUT != "tokens":
        return told | {"ids": [tokens for _, tokens in TASKS[task].encode(model, rows, max_length)]}
    passages = text_generation.passages(model, rows, max_length)
    return told | {"ids": [one.ids for one in passages], "starts": [one.start for one in passages]}


def adopt(
    *,
    file: Path,
    checkpoint: Path,
    prompts: Path,
    task: str,
    max_length: int,
    out_of_scope: str | None,
    out: Path,
    rejection: Rejection = AS_CALIBRATED,
) -> dict[str, Any]:
    """Make an artifact folder of a file that something else wrote, so that `verify` can judge it.

    The checkpoint gives tokenizer and labels. Raises EdgekitError for a file that its runtime does not load, that lacks a
    file of its weights, or whose outputs are not what the task needs.
    """
    if not file.is_file():
        raise EdgekitError(f"{file}: no such file")
    format_, model = format_of(file), TASKS[task].open_model(checkpoint)
    length = TASKS[task].length(model, max_length)
    reading = Reading(model=model, output=TASKS[task].OUTPUT, pad_id=find_pad_id(model), max_length=length)
    facts = format_.adopt(file, out, reading)
    facts |= _shared(model, task, max_length, out)
    rows = PromptSet(folder=prompts).split("calibrate")
    if TASKS[task].OUTPUT == "tokens":
        _check_vocabulary(file, facts["vocabulary"], model)
    facts |= _reading(format_, out / facts["file"], model, rows, TASKS[task].OUTPUT)
    if TASKS[task].OUTPUT == "tokens":
        return facts
    ids = [tokens for _, tokens in TASKS[task].encode(model, rows, max_length)]
    runtime, asked = RUNTIMES[format_.RUNTIME], _asked(ids, model, facts, out_of_scope)
    try:
        answers = _answers(format_, out / facts["file"], asked, facts)
    except runtime.load_errors() as failed:
        raise EdgekitError(
            f"{file}: {runtime.NAME} fails on the calibrate prompts: {str(failed).splitlines()[0][:300]}; is {checkpoint} the"
            " checkpoint that it was exported from?"
        ) from failed
    facts |= _fitted(file, model, task, rows, answers[: len(ids)], out_of_scope, rejection)
    return facts | _contentless(answers[len(ids) :], task, facts)


def _reading(format_: Format, file: Path, model: Model, rows: Sequence[Prompt], output: str) -> dict[str, Any]:
    """Whether another tool's file reads texts as the checkpoint does: its `parity`, or as `misread` the first difference."""
    conversations = _conversations(rows) if output == "tokens" else None
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


def _running(format_: Format, student: Path, file: Path, ids: Sequence[Sequence[int]], bits: float) -> dict[str, Any]:
    """That llama.cpp runs what was written as the float model; ONNX graphs are compared where they are made."""
    return {"running": check_running(student, file, ids, bits)} if format_.RUNTIME == "llama-cpp" else {}


def _shared(model: Model, task: str, max_length: int, out: Path) -> dict[str, Any]:
    """The facts that follow from the checkpoint, whose tokenizer and chat template are put beside the artifact's file."""
    kind = TASKS[task]
    max_length = kind.length(model, max_length)
    model.tokenizer(max_length).save(str(out / "tokenizer.json"))
    template = text_generation.chat_template(model) if kind.OUTPUT == "tokens" else None
    if template is not None:
        (out / text_generation.TEMPLATE).write_text(template, encoding="utf-8", newline="\n")
    return {
        "task": task,
        "output": kind.OUTPUT,
        "classes": model.labels if kind.OUTPUT == "logits" else [],
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
    classes = model.labels if kind.OUTPUT == "logits" else []
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
    runtime = RUNTIMES[format_.RUNTIME]
    return runtime.outputs(file, asked, pad_id=facts["pad_id"], options=runtime.joined({}, facts["runtime_options"]))


def _asked(
    ids: Sequence[Sequence[int]], model: Model, facts: Mapping[str, Any], out_of_scope: str | None
) -> list[Sequence[int]]:
    """What the artifact is asked: the prompts and, of a classifier that may reject texts, behind them those that say nothing."""
    rejects = facts["output"] == "logits" and out_of_scope is not None
    return [*ids, *(model.encode(ASKED, facts["max_length"]) if rejects else [])]


def _contentless(answers: Floats, task: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """As `contentless`: how many texts that say nothing were asked, and those that got a class, with it. {} without rejection."""
    if "threshold" not in facts["settings"]:
        return {}
    labels = row_task(task).answer(answers, facts["settings"], facts["classes"], ASKED)
    rejected = facts["settings"]["out_of_scope"]
    accepted = {text[:20]: label for text, label in zip(ASKED, labels, strict=True) if label != rejected}
    return {"contentless": {"asked": len(ASKED), "accepted": accepted}}
