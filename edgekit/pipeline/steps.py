"""The verbs: each names its inputs, which are its fingerprint, and fills one folder from others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.distill.machine import conditions
from edgekit.errors import EdgekitError
from edgekit.formats import DEFAULT
from edgekit.model import load_model
from edgekit.pipeline.origin import (
    MACHINE,
    create_inputs,
    finetune_inputs,
    model_digest,
    origin,
    split_digests,
    with_read,
)
from edgekit.pipeline.plan import Plan, Session, run_step
from edgekit.recipe import Recipe
from edgekit.schema import pick
from edgekit.workspace import (
    Product,
    file_sha256,
    installed_version,
    library_version,
)

if TYPE_CHECKING:
    from edgekit.formats.smallest import Limits


def create(recipe: Recipe, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The teacher that the recipe describes, made from nothing but the train split."""
    from edgekit import distill as training

    options = recipe.teacher.create or {}
    return run_step(
        session,
        "create",
        create_inputs(recipe, prompts) | {MACHINE: conditions(options)},
        lambda out, progress: with_read(
            training.create(
                prompts=prompts.folder,
                options=options,
                max_length=recipe.data.max_length,
                seed=recipe.seed,
                out=out,
                progress=progress,
            ),
            prompts,
            ["train"],
        ),
        note=f"{prompts.facts['rows']['train']} texts",
        resumable=True,
        at=at,
    ).folder


def finetune(recipe: Recipe, base: Path, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The teacher, fine-tuned where the recipe asks; else the checkpoint as it is."""
    if recipe.teacher.finetune is None:
        return base
    from edgekit import distill as training

    note = f"{len(prompts.facts['labels'])} labels, {prompts.facts['rows']['train']} texts"
    return run_step(
        session,
        "finetune",
        finetune_inputs(recipe, base, prompts) | {MACHINE: conditions(recipe.teacher.finetune)},
        lambda out, progress: with_read(
            training.finetune(
                base=base,
                prompts=prompts.folder,
                task=recipe.task,
                options=recipe.teacher.finetune or {},
                out_of_scope=recipe.data.out_of_scope,
                max_length=recipe.data.max_length,
                seed=recipe.seed,
                out=out,
                progress=progress,
            ),
            prompts,
            ["train"],
            base,
        ),
        note=note,
        resumable=True,
        at=at,
    ).folder


def distill(recipe: Recipe, teacher: Path, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The student that the recipe describes; the teacher itself where it describes none."""
    if recipe.student is None:
        return teacher
    from edgekit import distill as training

    student = {"layers": recipe.student.layers, "keep": recipe.student.keep}
    inputs = {
        "teacher": model_digest(teacher),
        "prompts": split_digests(prompts, "train"),
        "task": recipe.task,
        "student": student,
        "options": recipe.distill,
        MACHINE: conditions(recipe.distill),
        "out_of_scope": recipe.data.out_of_scope,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }
    return run_step(
        session,
        "distill",
        inputs,
        lambda out, progress: with_read(
            training.distill(
                teacher=teacher,
                prompts=prompts.folder,
                task=recipe.task,
                layers=recipe.student.layers if recipe.student else None,
                keep=recipe.student.keep if recipe.student else None,
                options=recipe.distill,
                out_of_scope=recipe.data.out_of_scope,
                max_length=recipe.data.max_length,
                seed=recipe.seed,
                out=out,
                progress=progress,
            ),
            prompts,
            ["train"],
            teacher,
        ),
        note=f"{load_model(teacher).layers} layers to {recipe.student.layers or len(recipe.student.keep or [])}",
        resumable=True,
        at=at,
    ).folder


def record(
    recipe: Recipe, teacher: Path, student: Path, prompts: Product, session: Session, at: Path | None = None
) -> Product:
    """Teacher and float student on the calibrate and verify prompts."""
    from edgekit.record import record as run

    rows = prompts.facts["rows"]
    inputs = {
        "teacher": model_digest(teacher),
        "teacher_origin": origin(teacher),
        "student": model_digest(student),
        "prompts": split_digests(prompts, "calibrate", "verify"),
        "task": recipe.task,
        "max_length": recipe.data.max_length,
        # Whose answers "as the original" compares with.
        "libraries": {name: installed_version(name) for name in ("transformers", "sentence-transformers")},
    }
    product = run_step(
        session,
        "record",
        inputs,
        lambda out, progress: with_read(
            run(
                teacher=teacher,
                student=student,
                prompts=prompts.folder,
                task=recipe.task,
                max_length=recipe.data.max_length,
                out=out,
                progress=progress,
            ),
            prompts,
            [],
            teacher,
            student,
        ),
        note=f"{rows['calibrate']} calibrate and {rows['verify']} verify prompts",
        at=at,
        fresh=session.fresh,
    )
    _say_warnings(product, session)
    return product


def calibrate(
    recipe: Recipe,
    student: Path,
    prompts: Product,
    session: Session,
    at: Path | None = None,
    *,
    gradients: bool = False,
) -> Product:
    """The student's activation statistics on the calibrate prompts; with gradients, which the scheme "mixed" weighs by."""
    from edgekit.calibrate import calibrate as run

    inputs = {
        "student": model_digest(student),
        "prompts": split_digests(prompts, "calibrate"),
        "task": recipe.task,
        "options": vars(recipe.calibrate),
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
        "gradients": gradients,
    }
    product = run_step(
        session,
        "calibrate",
        inputs,
        lambda out, progress: with_read(
            run(
                model=student,
                prompts=prompts.folder,
                task=recipe.task,
                limit=recipe.calibrate.prompts,
                batch=recipe.calibrate.batch,
                max_length=recipe.data.max_length,
                seed=recipe.seed,
                gradients=gradients,
                out=out,
                progress=progress,
            ),
            prompts,
            ["calibrate"],
            student,
        ),
        note=f"{prompts.facts['rows']['calibrate']} prompts",
        at=at,
    )
    _say_warnings(product, session)
    return product


def _say_warnings(product: Product, session: Session) -> None:
    for warning in product.facts["warnings"]:
        session.listener.say(f"warning: {warning}")


def export(
    plan: Plan, student: Path, calibration: Product, prompts: Product, session: Session, at: Path | None = None
) -> Product:
    """The artifact in the target's format and scheme."""
    from edgekit.export import export as run

    recipe, digest = plan.recipe, model_digest(student)
    if calibration.manifest["inputs"]["student"] != digest:
        raise EdgekitError(f"{calibration.folder}: of another model; run: edgekit calibrate {student}")
    hardware, limits = plan.target.hardware, _limits(plan)
    inputs = {
        "student": digest,
        "calibration": calibration.digest,
        "prompts": split_digests(prompts, "calibrate"),
        "task": recipe.task,
        "options": plan.export,
        "out_of_scope": recipe.data.out_of_scope,
        "rejection": vars(recipe.rejection),
        "max_length": recipe.data.max_length,
        "name": recipe.name,
        "license": recipe.license,
        "card": file_sha256(student / "README.md") if (student / "README.md").is_file() else None,
        **_scheme_inputs(plan, limits),
    }
    product = run_step(
        session,
        "export",
        inputs,
        lambda out, progress: with_read(
            run(
                student=student,
                calibration=calibration.folder,
                prompts=prompts.folder,
                task=recipe.task,
                options=plan.export,
                where=f"{plan.target.path}: export.{recipe.task}",
                max_length=recipe.data.max_length,
                out_of_scope=recipe.data.out_of_scope,
                rejection=recipe.rejection,
                out=out,
                name=recipe.name,
                arch=hardware.arch,
                features=hardware.features,
                bandwidth_gbs=hardware.bandwidth_gbs,
                fingerprints={"student": digest, "calibration": calibration.digest},
                license=recipe.license,
                limits=limits,
                progress=progress,
            ),
            prompts,
            ["calibrate"],
            student,
            calibration,
        ),
        note=" ".join(str(plan.export[key]) for key in ("format", "scheme") if key in plan.export),
        at=at,
    )
    _say_notes(product, session)
    return product


def _scheme_inputs(plan: Plan, limits: Limits | None) -> dict[str, Any]:
    """What a scheme depends on beside its options."""
    hardware = plan.target.hardware
    return {
        # A mixture has the types that are fast there; all else is the same for all.
        "hardware": [hardware.arch, hardware.bandwidth_gbs, *hardware.features]
        if plan.export.get("scheme") == "mixed"
        else None,
        "limits": limits and [limits(bits) for bits in (4.0, 8.0)],
        "libraries": libraries(str(plan.export.get("format", DEFAULT))),
    }


def _limits(plan: Plan) -> Limits | None:
    """What a decoder may lose, by the bits of a weight, where that decides its scheme; else None."""
    from edgekit.formats import finds_scheme, parse_options
    from edgekit.tasks import TASKS
    from edgekit.verify.margins import limits_at, read_limits

    output = TASKS[plan.recipe.task].OUTPUT
    format_, options = parse_options(plan.export, output, "export")
    if not finds_scheme(format_, options, output):
        return None
    limits = read_limits(plan.recipe.accuracy)
    return lambda bits: limits_at(limits, bits)


def _say_notes(product: Product, session: Session) -> None:
    for line in product.facts.get("notes", ()):
        session.listener.say(f"note: {line}")


def libraries(format_: str) -> dict[str, str]:
    """The installed versions of what a format needs."""
    from edgekit.formats import FORMATS

    return {name: library_version(name) for name in pick(FORMATS, format_, "export.format").LIBRARIES}
