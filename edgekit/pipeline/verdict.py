"""The verdict: an artifact is verified on its target, and what passed is packaged; both refuse what does not belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import __version__
from edgekit.artifact import read_artifact
from edgekit.bundle.destination import refuse_other_page
from edgekit.errors import EdgekitError
from edgekit.evidence import Coverage, Report, read_report
from edgekit.history import Origin, append, entry_of
from edgekit.inputs import Content, identity
from edgekit.model_card import read_card
from edgekit.outputs import OUTPUTS
from edgekit.pipeline import answers, labels
from edgekit.pipeline.cost import control_seconds
from edgekit.pipeline.looks import find_look, settle, take
from edgekit.pipeline.origin import (
    model_content,
    model_digest,
    refuse_read,
    split_content,
    split_digests,
    with_read,
)
from edgekit.pipeline.plan import Built, Plan, Session, Settings, is_made, run_step
from edgekit.pipeline.steps import libraries, record, teacher_origin
from edgekit.pipeline.teacher import who_taught
from edgekit.progress import Progress
from edgekit.recipe import Recipe
from edgekit.report.page import write_html
from edgekit.typed_json import as_table
from edgekit.workspace import PAGE, Product, fingerprint, open_product

if TYPE_CHECKING:
    from edgekit.devices import Device
    from edgekit.gate import Look
    from edgekit.recovery import Recovery
    from edgekit.verify import VerifyInputs
    from edgekit.verify.baseline import Against

# What a verdict is about, in words, and the command that makes one about something else.
ABOUT = {
    "artifact": "artifact",
    "settings": "settings of the artifact",
    "task": "task",
    "max_length": "data.max_length",
    "out_of_scope": "data.out_of_scope",
    "rejection": "[rejection] table",
    "prompts": "calibrate or verify prompts",
    "teacher": "teacher",
    "student": "float student",
    "target": "target",
    "hardware": "hardware",
    "runtime": "runtime",
    "budget": "budget",
    "accuracy": "[accuracy] table",
}


@dataclass(frozen=True, kw_only=True)
class Covering:
    """What a build has made beside what is judged: a float student and the calibration of it, of which the report says how well
    it covers the verify prompts, the linear model that it draws as a line, and the records of a control run (`steps.control`)."""

    student: Path
    calibration: Product
    linear: Product | None = None
    control: tuple[Product, ...] = ()

    @property
    def products(self) -> list[Product]:
        """Those that must be whole and have read no verify prompt."""
        return [self.calibration, *([self.linear] if self.linear else []), *self.control]


def verify(
    plan: Plan,
    artifact: Product,
    reference: Product,
    prompts: Product,
    session: Session,
    *,
    covering: Covering | None = None,
    at: Path | None = None,
) -> Product:
    """The artifact on the target's device, compared with the reference and judged against the budget.

    covering: whose calibration the report also says something of. At a folder
    that a command names, report.html lies beside the product's files: drawn anew each time and no part of the product, so that
    a change of its style measures nothing again.
    """
    from edgekit.devices import open_device
    from edgekit.verify import plan_text
    from edgekit.verify import verify as run

    recipe, target = plan.recipe, plan.target
    foreign = check_parts(plan, artifact, reference, prompts, *(covering.products if covering else []))
    device = open_device(target.device, f"{target.path}: device")
    page = _page(at)
    look = take(artifact, prompts, recipe.accuracy)
    inputs = _inputs(plan, artifact, reference, prompts, look, device)
    inputs = _beside(replace(inputs, foreign_teacher=foreign), covering, recipe)
    for line in plan_text(recipe.task, prompts.facts["rows"]["verify"], recipe.accuracy, look=look):
        session.listener.say(line)

    def make(inputs: VerifyInputs, out: Path, progress: Progress) -> Mapping[str, object]:
        coverage = _cover(inputs, covering, progress) if covering else None
        offer = _offer(plan) if covering and not covering.control else None
        report = run(inputs, out, progress, device=device, coverage=coverage, control_offer=offer)
        append(entry_of(report, **_origin(plan, identity(inputs))))
        return report.verdicts()

    try:
        inputs = _with_facts(inputs, device, session, at)
        note = f"{prompts.facts['rows']['verify']} prompts on {target.device.get('kind', 'local')}"
        product = run_step(session, inputs, make, note=note, at=at, fresh=session.fresh)
    finally:
        device.close()
    _settle(product, artifact, prompts, recipe)
    if page is not None:
        write_html(read_report(product.folder), page)
    return product


def rehearse(plan: Plan, artifact: Product, reference: Product, prompts: Product, session: Session) -> Report:
    """How an artifact is judged on prompts that no verdict is about: no look is taken, and no history is written.

    Raises EdgekitError and DeviceFailed as `verify` does.
    """
    from edgekit.devices import open_device
    from edgekit.gate import ALPHA, Look
    from edgekit.verify import verify as run

    foreign = check_parts(plan, artifact, reference, prompts)
    device = open_device(plan.target.device, f"{plan.target.path}: device")

    def make(inputs: VerifyInputs, out: Path, progress: Progress) -> Mapping[str, object]:
        return run(inputs, out, progress, device=device).verdicts()

    try:
        inputs = _inputs(plan, artifact, reference, prompts, Look(alpha=ALPHA), device)
        inputs = _with_facts(replace(inputs, foreign_teacher=foreign), device, session, None)
        note = f"{prompts.facts['rows']['verify']} prompts"
        return read_report(run_step(session, inputs, make, note=note).folder)
    finally:
        device.close()


def _beside(inputs: VerifyInputs, covering: Covering | None, recipe: Recipe) -> VerifyInputs:
    """The inputs with what the report shows beside the verdict."""
    if covering is None:
        return inputs
    return replace(
        inputs,
        calibration=_content(covering.calibration),
        linear=_content(covering.linear) if covering.linear else None,
        hashed=recipe.student is not None and recipe.student.kind == "ngrams",
        control=_content(covering.control[0]) if covering.control else None,
        taught=_content(covering.control[1]) if len(covering.control) > 1 else None,
        who_taught=who_taught(recipe, covering.student),
    )


def _offer(plan: Plan) -> str | None:
    """How to learn what the teacher added, and how long that takes; None where no student can be trained without it, and where
    the recipe asks for that already: its control run is then of the student that it was made for."""
    if plan.settings.training.control:
        return None
    seconds = control_seconds(plan.estimate)
    if seconds is None:
        return None
    time = f"{seconds} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return (
        "what the teacher added is not measured: edgekit build --set distill.control=true trains the same student without it"
        f" (about {time} here)"
    )


def _with_facts(inputs: VerifyInputs, device: Device, session: Session, at: Path | None) -> VerifyInputs:
    """The inputs with what the device said when it was last asked, where a verdict of that is there; else with what it says now.

    So a build in which nothing changed contacts no device, and what is measured is always of the machine as it is.
    """
    from edgekit.devices import ask_facts, known_facts

    facts = None if session.fresh else known_facts(device)
    if facts is not None and is_made(session, known := replace(inputs, facts=facts), at=at):
        return known
    return replace(inputs, facts=ask_facts(device))


def _origin(plan: Plan, inputs: Mapping[str, object]) -> Origin:
    """What a report does not say of itself, and the history keeps. inputs: verify's, as its manifest has them."""
    libraries, prompts = as_table(inputs["libraries"]), as_table(inputs["prompts"])
    return {
        "recipe": plan.recipe.name,
        "tools": {"edgekit": __version__, **{name: str(version) for name, version in libraries.items()}},
        "identity": str(inputs["device"]),
        "prompts": str(prompts["verify"]),
    }


def hold(plan: Plan, product: Product, session: Session) -> Against | None:
    """A verdict's artifact against the session's baseline; None where there is none, or nothing of its line, which is said."""
    from edgekit.verify.baseline import against

    if not session.baseline:
        return None
    entry = entry_of(read_report(product.folder), **_origin(plan, product.manifest["inputs"]))
    found = against(entry, session.baseline)
    if found is None:
        session.listener.say(
            f"baseline: no other artifact of {plan.recipe.name} for {plan.target.name} on such a device in it"
        )
    else:
        session.listener.say(
            f"baseline of {found.since}: {found.verdict}" + (f" ({found.reason})" if found.reason else "")
        )
    return found


def _page(at: Path | None) -> Path | None:
    """Where the page goes, at a folder that a command names; EdgekitError where something of the user's lies there."""
    if at is None:
        return None
    refuse_other_page(at / PAGE)
    return at / PAGE


def _inputs(
    plan: Plan, artifact: Product, reference: Product, prompts: Product, look: Look, device: Device
) -> VerifyInputs:
    """What verify is given, before the device is asked what it is."""
    from edgekit.verify import VerifyInputs
    from edgekit.verify.choice import answering

    recipe, target, made = plan.recipe, plan.target, read_artifact(artifact)
    return VerifyInputs(
        artifact=_content(artifact),
        settings=fingerprint(artifact.facts),
        reference=_content(reference),
        student=artifact.manifest["inputs"]["student"],
        teacher=reference.manifest["inputs"]["teacher_origin"],
        prompts=split_content(prompts, "calibrate", "verify"),
        data={key: prompts.facts[key] for key in ("rows", "notes")},
        task=recipe.task,
        max_length=recipe.data.max_length,
        out_of_scope=recipe.data.out_of_scope,
        rejection=recipe.rejection,
        accuracy=recipe.accuracy,
        target=target.name,
        hardware=target.hardware,
        runtime=target.runtime,
        budget=target.budget_for(recipe.task),
        measure=target.measure,
        libraries=libraries(made.file.format, answering(made, target.runtime, str(target.path))),
        device=device.identity,
        facts={},
        host=_host() if device.REMOTE else {},
        look=look,
    )


def _host() -> dict[str, object]:
    """What this machine's arithmetic depends on."""
    from edgekit.runtimes.machine import KERNEL_FEATURES, describe

    machine = describe()
    features = [name for name in machine["features"] if name in KERNEL_FEATURES]
    return {"arch": machine["arch"], "cpu": machine["cpu"], "features": features}


def _content(product: Product) -> Content:
    return Content(path=product.folder, digest=product.digest)


def is_judged(
    plan: Plan, artifact: Product, reference: Product, prompts: Product, session: Session, covering: Covering
) -> bool:
    """Whether a build would keep the verdict on this, as far as can be known: no look is taken, no remote device contacted."""
    from edgekit.devices import known_facts, open_device

    look = find_look(artifact, prompts, plan.recipe.accuracy)
    if look is None:
        return False
    foreign = check_parts(plan, artifact, reference, prompts, *covering.products)
    device = open_device(plan.target.device, f"{plan.target.path}: device")
    try:
        facts = known_facts(device) if device.REMOTE else device.facts()
        inputs = _inputs(plan, artifact, reference, prompts, look, device)
    finally:
        device.close()
    known = _beside(replace(inputs, facts=facts or {}, foreign_teacher=foreign), covering, plan.recipe)
    return facts is not None and is_made(session, known)


def _settle(report: Product, artifact: Product, prompts: Product, recipe: Recipe) -> None:
    """Where all that looked at the prompts passed, the next look may use the error of this one."""
    entries = read_report(report.folder).comparisons
    if {entry.verdict for entry in entries if entry.verdict is not None} == {"pass"}:
        settle(artifact, prompts, recipe.accuracy)


def _cover(inputs: VerifyInputs, covering: Covering, progress: Progress) -> Coverage:
    from edgekit.calibrate import cover

    progress(0, 0, "how the calibration covers the prompts")
    folder = covering.calibration.folder
    return cover(covering.student, folder, inputs.prompts.path, task=inputs.task, max_length=inputs.max_length)


def check_parts(plan: Plan, artifact: Product, reference: Product, prompts: Product, *more: Product) -> str | None:
    """Whether artifact and reference are of this recipe and these prompts; why the teacher is not the recipe's, None where it is.

    Raises EdgekitError where a folder was changed, is of other prompts, another student, max_length, label of what is out of
    scope or task, and where anything was trained or calibrated on a verify prompt.
    """
    from edgekit.verify import check_reference

    for product in (artifact, reference, *more):
        product.check()
    recipe, made, inputs = plan.recipe, read_artifact(artifact), reference.manifest["inputs"]
    wanted = {"task": recipe.task, "max_length": recipe.data.max_length}
    for key, value in wanted.items():
        if getattr(made, key) != value:
            _refuse(artifact.folder, key, getattr(made, key), value, recipe, "export")
        if inputs.get(key) != value:
            _refuse(reference.folder, key, inputs.get(key), value, recipe, "record")
    if OUTPUTS[made.output].has_classes and made.out_of_scope != recipe.data.out_of_scope:
        _refuse(artifact.folder, "out_of_scope", made.out_of_scope, recipe.data.out_of_scope, recipe, "export")
    check_reference(reference, artifact, prompts.folder)
    refuse_read(prompts, artifact, reference, *more)
    if inputs.get("teacher_origin") == teacher_origin(plan.settings, plan.teacher, prompts):
        return None
    return (
        f"{reference.folder} was recorded with another teacher than {recipe.path} asks for; run: edgekit record TEACHER STUDENT"
        + (
            " with the teacher that `edgekit finetune` makes of this recipe"
            if recipe.teacher.finetune or recipe.teacher.create
            else f" with {recipe.teacher.source}, or name the model that it was recorded with as teacher.source"
        )
    )


def _refuse(folder: Path, key: str, found: object, wanted: object, recipe: Recipe, command: str) -> None:
    raise EdgekitError(
        f"{folder}: made with {ABOUT[key]} {found!r}, and {recipe.path} says {wanted!r}; run `edgekit {command}` again, or"
        " change the recipe"
    )


def about(plan: Plan, artifact: Product, prompts: Product) -> dict[str, object]:
    """What a verdict is about, of its inputs (the keys of ABOUT): a report that differs in any of it is of something else."""
    recipe, target = plan.recipe, plan.target
    return {
        "artifact": artifact.digest,
        "settings": fingerprint(artifact.facts),
        "task": recipe.task,
        "max_length": recipe.data.max_length,
        "out_of_scope": recipe.data.out_of_scope,
        "rejection": vars(recipe.rejection),
        "prompts": split_digests(prompts, "calibrate", "verify"),
        "teacher": teacher_origin(plan.settings, plan.teacher, prompts),
        "student": artifact.manifest["inputs"]["student"],
        "target": target.name,
        "hardware": asdict(target.hardware),
        "runtime": target.runtime,
        "budget": vars(target.budget_for(recipe.task)),
        "accuracy": recipe.accuracy,
    }


def _check_report(plan: Plan, artifact: Product, report: Product, prompts: Product) -> None:
    """Refuse a report that was edited, or is about anything else than what is to be packaged."""
    report.check()
    had = report.manifest["inputs"]
    for key, wanted in about(plan, artifact, prompts).items():
        if fingerprint(had.get(key)) != fingerprint(wanted):
            command = "edgekit record TEACHER STUDENT, then edgekit verify" if key == "teacher" else "edgekit verify"
            raise EdgekitError(
                f"{report.folder}: its verdict is about another {ABOUT[key]}{_difference(had.get(key), wanted)} than this"
                f" recipe, target and artifact have; run: {command} ARTIFACT REFERENCE --target {plan.target.name} --recipe"
                f" {plan.recipe.path}"
            )


def _difference(had: object, wanted: object) -> str:
    """What differs, where it can be read: not of hashes."""
    if isinstance(had, Mapping) and isinstance(wanted, Mapping):
        key = next(key for key in sorted({*had, *wanted}) if fingerprint(had.get(key)) != fingerprint(wanted.get(key)))
        inner = _difference(had.get(key), wanted.get(key))
        return f" ({key}{inner or ' differs'})" if not inner else f" ({key}:{inner})"
    if any(isinstance(value, str) and len(value) == 64 for value in (had, wanted)):
        return ""
    return f" ({had!r}, not {wanted!r})"


def package(
    plan: Plan,
    artifact: Product,
    report: Product,
    prompts: Product,
    session: Session,
    recovery: Recovery | None = None,
) -> Built:
    """The bundle and its archive where the verdict allows them, the evidence in any case, with what may be done, or was.

    Raises CheckFailed where a check failed, or with strict was not proven, EdgekitError where the report was edited or is
    about something else than this artifact, target and recipe.
    """
    from edgekit.bundle.package import Lineage, PackageInputs
    from edgekit.bundle.package import package as run

    _check_report(plan, artifact, report, prompts)
    refuse_read(prompts, artifact)
    session.listener.begin("package", f"{plan.name}.tar.gz")
    teacher = _teacher(plan)
    card = read_card(teacher)
    if card.note:
        session.listener.say(f"note: {card.note}")
    recipe = plan.recipe
    inputs = PackageInputs(
        artifact=artifact.folder,
        report=report.folder,
        name=plan.name,
        recipe=recipe.name,
        target=plan.target,
        calibrate=prompts.folder,
        recovery=recovery,
        issue=recipe.bundle,
        lineage=Lineage(
            teacher=recipe.teacher.source,
            teacher_revision=plan.revision,
            other_teachers=", ".join(other.source for other in recipe.teacher.others) or None,
            teacher_digest=model_digest(teacher),
            student_digest=artifact.manifest["inputs"].get("student"),
            answers=answers.provenance(prompts),
            labels=labels.provenance(prompts),
            teacher_license=card.license,
            data_license=recipe.data.license,
            license=recipe.license,
        ),
    )
    made = run(inputs, session.out, strict=session.strict)
    session.listener.end("package", made.bundle, kept=False, bundle=session.bundle)
    return Built(
        target=plan.target.name,
        report=read_report(made.report),
        bundle=made.bundle,
        archive=made.archive,
        evidence=made.report,
        tuning=made.tuning,
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
    from edgekit.export import AdoptInputs, adopt, file_digest

    recipe = plan.recipe
    if not artifact.is_file():
        raise EdgekitError(f"{artifact}: no such file")
    inputs = AdoptInputs(
        file=Content(path=artifact, digest=file_digest(artifact)),
        student=model_content(checkpoint),
        prompts=split_content(prompts, "calibrate"),
        task=recipe.task,
        max_length=recipe.data.max_length,
        out_of_scope=recipe.data.out_of_scope,
        rejection=recipe.rejection,
    )
    filled = with_read(lambda *given: adopt(*given).facts(), prompts, "calibrate", checkpoint)
    return run_step(session, inputs, filled, note=f"adopting {artifact.name}")


def open_reference(settings: Settings, reference: Path, prompts: Product, session: Session) -> Product:
    """The folder of a record, or what a checkpoint answers, recorded now."""
    if (reference / "record.json").is_file():
        return open_product(reference, "record")
    return record(settings, reference, reference, prompts, session)
