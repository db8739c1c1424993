"""The verbs: each names its inputs, which are its fingerprint, and fills one folder from others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.build.looks import settle, split_digests, take
from edgekit.build.plan import Built, Plan, Progress, Session, run_step
from edgekit.build.teacher import model_digest
from edgekit.card import read_card
from edgekit.errors import EdgekitError
from edgekit.formats import DEFAULT
from edgekit.model import load_model
from edgekit.recipe import Recipe
from edgekit.schema import pick, read_json
from edgekit.workspace import (
    Product,
    file_sha256,
    fingerprint,
    installed_version,
    library_version,
    open_product,
)


def create(recipe: Recipe, prompts: Product, session: Session, at: Path | None = None) -> Path:
    """The teacher that the recipe describes, made from nothing but the train split."""
    from edgekit import distill as training

    options = recipe.teacher.create or {}
    inputs = {
        "prompts": split_digests(prompts, "train"),
        "task": recipe.task,
        "options": options,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }
    return run_step(
        session,
        "create",
        inputs,
        lambda out, progress: training.create(
            prompts=prompts.folder,
            options=options,
            max_length=recipe.data.max_length,
            seed=recipe.seed,
            out=out,
            progress=progress,
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

    inputs = {
        "base": model_digest(base),
        "prompts": split_digests(prompts, "train"),
        "task": recipe.task,
        "options": recipe.teacher.finetune,
        "out_of_scope": recipe.data.out_of_scope,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }
    note = f"{len(prompts.facts['labels'])} labels, {prompts.facts['rows']['train']} texts"
    return run_step(
        session,
        "finetune",
        inputs,
        lambda out, progress: training.finetune(
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
        "out_of_scope": recipe.data.out_of_scope,
        "max_length": recipe.data.max_length,
        "seed": recipe.seed,
    }
    return run_step(
        session,
        "distill",
        inputs,
        lambda out, progress: training.distill(
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
        note=f"{load_model(teacher).layers} layers to {recipe.student.layers or len(recipe.student.keep or [])}",
        resumable=True,
        at=at,
    ).folder


def record(
    recipe: Recipe, teacher: Path, student: Path, prompts: Product, session: Session, at: Path | None = None
) -> Product:
    """Teacher and float student on the calibrate and verify prompts."""
    from edgekit.record import record as run

    inputs = {
        "teacher": model_digest(teacher),
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
        lambda out, progress: run(
            teacher=teacher,
            student=student,
            prompts=prompts.folder,
            task=recipe.task,
            max_length=recipe.data.max_length,
            out=out,
            progress=progress,
        ),
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
        lambda out, progress: run(
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
        raise EdgekitError(
            f"{calibration.folder}: calibrated on another model than {student}; run: edgekit calibrate {student}"
        )
    scheme, hardware = plan.export.get("scheme"), plan.target.hardware
    inputs = {
        "student": digest,
        "calibration": calibration.digest,
        "prompts": split_digests(prompts, "calibrate"),
        "task": recipe.task,
        "options": plan.export,
        "out_of_scope": recipe.data.out_of_scope,
        "max_length": recipe.data.max_length,
        "name": recipe.name,
        "license": recipe.license,
        "card": file_sha256(student / "README.md") if (student / "README.md").is_file() else None,
        # A mixture has the types that are fast there; all else is the same for all.
        "hardware": [hardware.arch, hardware.bandwidth_gbs, *hardware.features] if scheme == "mixed" else None,
        "libraries": _libraries(str(plan.export.get("format", DEFAULT))),
    }
    product = run_step(
        session,
        "export",
        inputs,
        lambda out, _: run(
            student=student,
            calibration=calibration.folder,
            prompts=prompts.folder,
            task=recipe.task,
            options=plan.export,
            where=f"{plan.target.path}: export.{recipe.task}",
            max_length=recipe.data.max_length,
            out_of_scope=recipe.data.out_of_scope,
            out=out,
            name=recipe.name,
            arch=hardware.arch,
            features=hardware.features,
            bandwidth_gbs=hardware.bandwidth_gbs,
            fingerprints={"student": digest, "calibration": calibration.digest},
            license=recipe.license,
        ),
        note=" ".join(str(plan.export[key]) for key in ("format", "scheme") if key in plan.export),
        at=at,
    )
    for line in product.facts.get("notes", ()):
        session.listener.say(f"note: {line}")
    return product


def verify(
    plan: Plan,
    artifact: Product,
    reference: Product,
    prompts: Product,
    session: Session,
    *,
    student: Path | None = None,
    calibration: Product | None = None,
    at: Path | None = None,
) -> Product:
    """The artifact on the target's device, compared with the reference and judged against the budget.

    With the student and its calibration the report also says how well the calibration covers the verify prompts.
    """
    from edgekit.devices import DEVICES
    from edgekit.verify import plan_text
    from edgekit.verify import verify as run

    recipe, target = plan.recipe, plan.target
    device = DEVICES[str(target.device.get("kind", "local"))](target.device, where=f"{target.path}: device")
    look = take(artifact, prompts, recipe.accuracy)
    inputs = _verify_inputs(plan, artifact, reference, prompts) | {
        "device": device.describe(),
        "look": vars(look),
        "libraries": _libraries(str(artifact.facts["format"])),
        "coverage": calibration.digest if calibration and student else None,
    }
    for line in plan_text(recipe.task, prompts.facts["rows"]["verify"], recipe.accuracy, look=look):
        session.listener.say(line)

    def make(out: Path, _: Progress) -> Mapping[str, Any]:
        return run(
            artifact=artifact.folder,
            reference=reference.folder,
            prompts=prompts.folder,
            target=target,
            task=recipe.task,
            accuracy=recipe.accuracy,
            out_of_scope=recipe.data.out_of_scope,
            look=look,
            coverage=_cover(plan, student, calibration, prompts),
            device=device,
            out=out,
        )

    try:
        product = run_step(
            session,
            "verify",
            inputs,
            make,
            note=f"{prompts.facts['rows']['verify']} prompts on {target.device.get('kind', 'local')}",
            at=at,
            fresh=session.fresh,
        )
    finally:
        device.close()
    _settle(product, artifact, prompts, recipe)
    return product


def _settle(report: Product, artifact: Product, prompts: Product, recipe: Recipe) -> None:
    """Where all that looked at the prompts passed, the next look may use the error of this one."""
    entries = read_json(report.folder / "report.json")["comparisons"]
    if {entry["verdict"] for entry in entries if entry["verdict"] is not None} == {"pass"}:
        settle(artifact, prompts, recipe.accuracy)


def _libraries(format_: str) -> dict[str, str]:
    from edgekit.formats import FORMATS

    return {name: library_version(name) for name in pick(FORMATS, format_, "export.format").LIBRARIES}


def _cover(plan: Plan, student: Path | None, calibration: Product | None, prompts: Product) -> dict[str, Any] | None:
    from edgekit.calibrate import cover

    if student is None or calibration is None:
        return None
    recipe = plan.recipe
    return cover(student, calibration.folder, prompts.folder, task=recipe.task, max_length=recipe.data.max_length)


def _verify_inputs(plan: Plan, artifact: Product, reference: Product, prompts: Product) -> dict[str, Any]:
    return _judged(plan, artifact) | {
        "reference": reference.digest,
        "prompts": split_digests(prompts, "verify"),
        "data": {key: prompts.facts[key] for key in ("rows", "notes")},
    }


def _judged(plan: Plan, artifact: Product) -> dict[str, Any]:
    """What a verdict is about: the artifact, and what it was measured against."""
    return {
        "artifact": artifact.digest,
        "facts": fingerprint(artifact.facts),
        "target": plan.target.name,
        "hardware": vars(plan.target.hardware),
        "runtime": plan.target.runtime,
        "budget": vars(plan.target.budget_for(plan.recipe.task)),
        "accuracy": plan.recipe.accuracy,
    }


def package(plan: Plan, artifact: Product, report: Product, session: Session) -> Built:
    """The bundle and its archive where the verdict allows them, the evidence in any case.

    Raises CheckFailed where a check failed, or with strict was not proven, EdgekitError where the report was edited or is
    about something else than this artifact, target and recipe.
    """
    from edgekit.package import package as run

    report.check()
    for key, wanted in _judged(plan, artifact).items():
        if fingerprint(report.manifest["inputs"].get(key)) != fingerprint(wanted):
            raise EdgekitError(
                f"{report.folder}: its verdict is about another {key} than this build's; run: edgekit verify"
            )
    session.listener.begin("package")
    teacher = _teacher(plan)
    card = read_card(teacher)
    if card.note:
        session.listener.say(f"note: {card.note}")
    made = run(
        artifact=artifact.folder,
        report=report.folder,
        name=plan.name,
        recipe=plan.recipe.name,
        target=plan.target,
        lineage={
            "teacher": plan.recipe.teacher.source,
            "teacher_revision": plan.revision,
            "teacher_digest": model_digest(teacher),
            "student_digest": artifact.manifest["inputs"].get("student"),
            "teacher_license": card.license,
            "data_license": plan.recipe.data.license,
            "license": plan.recipe.license,
        },
        out=session.out,
        strict=session.strict,
    )
    session.listener.end("package", made.bundle, kept=False)
    return Built(
        target=plan.target.name,
        report=read_json(made.report),
        bundle=made.bundle,
        archive=made.archive,
        evidence=made.report,
        products={"artifact": artifact.folder, "report": report.folder},
    )


def _teacher(plan: Plan) -> Path:
    if plan.teacher is None:
        raise EdgekitError(f"{plan.recipe.path}: its teacher is created: package what `edgekit build` makes")
    return plan.teacher


def open_artifact(plan: Plan, artifact: Path, checkpoint: Path, prompts: Product, session: Session) -> Product:
    """The folder of an export, or a file that something else made, with the checkpoint whose tokenizer it uses."""
    if artifact.is_dir():
        return open_product(artifact, "export")
    from edgekit.export import adopt, file_digest

    recipe = plan.recipe
    if not artifact.is_file():
        raise EdgekitError(f"{artifact}: no such file")
    inputs = {
        "file": file_digest(artifact),
        "student": model_digest(checkpoint),
        "prompts": split_digests(prompts, "calibrate"),
        "task": recipe.task,
        "max_length": recipe.data.max_length,
        "out_of_scope": recipe.data.out_of_scope,
    }
    return run_step(
        session,
        "export",
        inputs,
        lambda out, _: adopt(
            file=artifact,
            checkpoint=checkpoint,
            prompts=prompts.folder,
            task=recipe.task,
            max_length=recipe.data.max_length,
            out_of_scope=recipe.data.out_of_scope,
            out=out,
        ),
        note=f"adopting {artifact.name}",
    )


def open_reference(recipe: Recipe, reference: Path, prompts: Product, session: Session) -> Product:
    """The folder of a record, or what a checkpoint answers, recorded now."""
    if (reference / "record.json").is_file():
        return open_product(reference, "record")
    return record(recipe, reference, reference, prompts, session)
