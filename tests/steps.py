"""The verbs on plain folders: inputs are built here as the pipeline builds them, with tables as a recipe has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgekit import calibrate as calibrating
from edgekit import distill as training
from edgekit import export as exporting
from edgekit import record as recording
from edgekit.architectures.widths import Sizes
from edgekit.distill.machine import conditions
from edgekit.distill.options import Ngrams, choose_blocks, read_create_options, read_distill_options
from edgekit.distill.processes import spread
from edgekit.formats import Processor, Source, parse_options
from edgekit.formats.smallest import Limits
from edgekit.inputs import Content
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.progress import Progress, silent
from edgekit.recipe import AS_CALIBRATED, Calibrate, Rejection
from edgekit.reference import Reference
from edgekit.tasks import TASKS


def content(path: Path, digest: str = "a test's") -> Content:
    """A folder as an input; nothing here asks what is in it."""
    return Content(path=path, digest=digest)


def source(model: Any, load: Callable[[], Any], ids: Sequence[Sequence[int]], **more: Any) -> Source:
    """What a format is given of a decoder that was not calibrated, `more` where a test says more."""
    empty = {"texts": (), "conversations": (), "name": "", "dataset": "", "fingerprints": {}, "processor": None}
    usual = {"output": "tokens", "score": None, "max_length": 40}
    calibration = SimpleNamespace(stats={})
    asked = {"model": model, "load": load, "encoded": of_tokens(ids, 0), "calibration": lambda: calibration}
    return Source(**(empty | usual | asked | more))


def create(
    prompts: Path, *, options: Mapping[str, Any], max_length: int, out: Path, seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """`edgekit.distill.create` by a `[teacher.create]` table."""
    read = read_create_options(options, max_length, "teacher.create")
    inputs = training.CreateInputs(
        prompts=content(prompts),
        task="text-generation",
        options=read,
        max_length=max_length,
        seed=seed,
        machine=conditions(read),
    )
    return training.create(inputs, out, progress)


def finetune(
    base: Path,
    prompts: Path,
    *,
    task: str,
    options: Mapping[str, Any],
    max_length: int,
    out: Path,
    seed: int = 0,
    out_of_scope: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """`edgekit.distill.finetune` by a `[teacher.finetune]` table."""
    read = training.read_finetune_options(task, options, "teacher.finetune")
    inputs = training.FinetuneInputs(
        base=content(base),
        prompts=content(prompts),
        task=task,
        options=read,
        out_of_scope=out_of_scope,
        max_length=max_length,
        seed=seed,
        machine=conditions(read),
    )
    return training.finetune(inputs, out, progress)


def distill(
    teacher: Path,
    prompts: Path,
    *,
    task: str,
    options: Mapping[str, Any],
    max_length: int,
    out: Path,
    progress: Progress = silent,
    **more: Any,
) -> dict[str, Any]:
    """`edgekit.distill.distill` by a `[student]` and a `[distill]` table; more: see `distill_inputs`."""
    inputs = distill_inputs(teacher, prompts, task=task, options=options, max_length=max_length, **more)
    return training.distill(inputs, out, progress)


def control(
    teacher: Path, prompts: Path, *, epochs: int, out: Path, progress: Progress = silent, **more: Any
) -> dict[str, Any]:
    """`edgekit.distill.control` of the student that `distill` makes of the same; more: see `distill_inputs`."""
    inputs = replace(distill_inputs(teacher, prompts, **more), losses={"labels": 1.0})
    return training.control(training.ControlInputs(**vars(inputs), epochs=epochs), out, progress)


@spread
def distill_saving(inputs: training.DistillInputs, out: Path, progress: Progress = silent) -> dict[str, object]:
    """`edgekit.distill.distill`, with a snapshot after each step."""
    from edgekit.distill import loop

    loop.SNAPSHOT_SECONDS = 0.0
    return training.distill(inputs, out, progress)


def distill_inputs(
    teacher: Path,
    prompts: Path,
    *,
    task: str,
    options: Mapping[str, Any],
    max_length: int,
    layers: int | None = None,
    keep: Sequence[int] | None = None,
    vocabulary: int | None = None,
    ngrams: Ngrams | None = None,
    signals: Path | None = None,
    sizes: Sizes | None = None,
    importance: Path | None = None,
    seed: int = 0,
    out_of_scope: str | None = None,
) -> training.DistillInputs:
    """What a student is made of and taught by; without layers or `keep` one of n-grams."""
    kind = "cut" if ngrams is None else "ngrams"
    read, losses = read_distill_options(options, TASKS[task].OUTPUT, "distill", kind)
    return training.DistillInputs(
        teacher=content(teacher),
        prompts=content(prompts),
        task=task,
        kept=[] if ngrams else choose_blocks(load_model(teacher).layers, layers, keep, "student"),
        options=read,
        losses=losses,
        out_of_scope=out_of_scope,
        max_length=max_length,
        seed=seed,
        machine=conditions(read),
        ngrams=ngrams,
        vocabulary=vocabulary,
        signals=None if signals is None else content(signals),
        sizes=sizes,
        importance=None if importance is None else content(importance),
    )


def record(
    teacher: Path,
    student: Path,
    prompts: Path,
    *,
    task: str,
    max_length: int,
    out: Path,
    progress: Progress | None = None,
) -> Reference:
    """`edgekit.record.record`."""
    inputs = recording.RecordInputs(
        teacher=content(teacher),
        teacher_origin="a test's",
        student=content(student),
        prompts=content(prompts),
        task=task,
        max_length=max_length,
        libraries={},
    )
    return recording.record(inputs, out, progress)


def calibrate(
    model: Path,
    prompts: Path,
    *,
    task: str,
    max_length: int,
    out: Path,
    limit: int = 0,
    batch: int = 16,
    seed: int = 0,
    gradients: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`edgekit.calibrate.calibrate`."""
    inputs = calibrating.CalibrateInputs(
        student=content(model),
        prompts=content(prompts),
        task=task,
        options=Calibrate(prompts=limit, batch=batch),
        max_length=max_length,
        seed=seed,
        gradients=gradients,
    )
    return calibrating.calibrate(inputs, out, progress)


def export(
    *,
    student: Path,
    calibration: Path,
    prompts: Path,
    task: str,
    options: Mapping[str, Any],
    max_length: int,
    out_of_scope: str | None,
    out: Path,
    rejection: Rejection = AS_CALIBRATED,
    name: str = "",
    processor: Processor | None = None,
    digests: tuple[str, str] = ("a student's", "a calibration's"),
    license: str | None = None,  # noqa: A002 - the recipe's name for it
    limits: Limits | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """`edgekit.export.export` by a target's `[export.<task>]` table. digests: of student and calibration."""
    format_, read = parse_options(options, TASKS[task].OUTPUT, "export")
    inputs = exporting.ExportInputs(
        student=content(student, digests[0]),
        calibration=content(calibration, digests[1]),
        prompts=content(prompts),
        task=task,
        format=format_.NAME,
        options=read,
        max_length=max_length,
        out_of_scope=out_of_scope,
        rejection=rejection,
        name=name,
        license=license,
        card=None,
        processor=processor,
        limits=limits,
        libraries={},
    )
    return exporting.export(inputs, out, progress).facts()


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
    """`edgekit.export.adopt`."""
    inputs = exporting.AdoptInputs(
        file=content(file),
        student=content(checkpoint),
        prompts=content(prompts),
        task=task,
        max_length=max_length,
        out_of_scope=out_of_scope,
        rejection=rejection,
    )
    return exporting.adopt(inputs, out).facts()
