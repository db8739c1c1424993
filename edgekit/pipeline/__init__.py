"""The spine: resolve, preflight, then the verbs in order. A stage command is one of these steps on folders that others made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import CheckFailed, EdgekitError, first_line
from edgekit.evidence import read_report
from edgekit.pipeline.answers import answered
from edgekit.pipeline.cost import busy, seconds
from edgekit.pipeline.fit import keep_choice, plan_for
from edgekit.pipeline.kept import kept_steps
from edgekit.pipeline.labels import labelled
from edgekit.pipeline.ladder import Made, recover
from edgekit.pipeline.plan import Built, Listener, Plan, Session, Settings
from edgekit.pipeline.recordings import Recording, record_splits
from edgekit.pipeline.resolve import (
    Checked,
    check_places,
    check_recipe,
    check_room,
    check_target,
    choices,
    gather_prompts,
    needed_splits,
    read_settings,
    resolve,
)
from edgekit.pipeline.rungs import propose
from edgekit.pipeline.steps import (
    calibrate,
    control,
    create,
    distill,
    export,
    finetune,
    linear,
    qad,
    record,
)
from edgekit.pipeline.teacher import is_local
from edgekit.pipeline.verdict import Covering, hold, open_artifact, open_reference, package, verify
from edgekit.progress import Progress
from edgekit.prompts.prompt import RECOVER
from edgekit.recipe import Recipe
from edgekit.report.fit import fit_lines
from edgekit.target import Target

if TYPE_CHECKING:
    from edgekit.bundle.open import Speaker
    from edgekit.recovery import Recovery
    from edgekit.workspace import Product

__all__ = [
    "Built",
    "Checked",
    "Conversation",
    "Covering",
    "Listener",
    "Plan",
    "Progress",
    "Recording",
    "Session",
    "Settings",
    "answered",
    "build",
    "busy",
    "calibrate",
    "check_places",
    "check_recipe",
    "check_room",
    "check_target",
    "choices",
    "control",
    "create",
    "distill",
    "exit_code",
    "export",
    "finetune",
    "gather_prompts",
    "held",
    "is_local",
    "kept_steps",
    "labelled",
    "linear",
    "needed_splits",
    "open_artifact",
    "open_reference",
    "open_speaker",
    "package",
    "plan_for",
    "qad",
    "read_settings",
    "record",
    "record_splits",
    "resolve",
    "run",
    "seconds",
    "speak",
    "verify",
]

Conversation = Sequence[Mapping[str, object]]


def build(
    recipe: Recipe,
    targets: Sequence[Target],
    session: Session,
    wanted: Sequence[tuple[str | None, str | None]] = ((None, None),),
) -> list[Built]:
    """The spine: what a recipe makes once, then for each target; every target is tried even where another failed.

    wanted: formats and schemes to build of each target, by name, instead of the target's own (None).

    Raises EdgekitError where the recipe cannot be built, or a target cannot take it. What fails later for one target (export,
    device, check) is in its Built.error.
    """
    names = [target.name for target in targets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise EdgekitError(f"two targets are named {twice}, and their bundles would be: rename one of the files")
    prompts = gather_prompts(recipe, session)
    if session.recover is not None and RECOVER not in prompts.facts["rows"]:
        raise EdgekitError(
            f"{recipe.path}: data.recover: missing key; name a file of prompts, or a share of the train rows (0.1)"
        )
    checked = check_recipe(recipe, prompts, session)
    plans = [plan_for(checked, target, prompts, session, choice) for target in targets for choice in wanted]
    for plan in plans:
        check_places(plan, session)
        for told in fit_lines(plan.fit) if plan.fit else ():
            session.listener.say(f"fit: {plan.target.name}: {told}")
        keep_choice(plan, session)
    prompts = labelled(recipe, prompts, session)
    taken, built = {plan.name for plan in plans}, dict[str, Built]()
    # Targets share a student but where each has one that fits it.
    students = dict.fromkeys(repr(plan.recipe.student) for plan in plans)
    for student in students:
        alike = [plan for plan in plans if repr(plan.recipe.student) == student]
        own = [replace(session, bundle=plan.name if len(plans) > 1 else "") for plan in alike]
        try:
            made = _build_alike(alike, checked.teacher, prompts, session, own, taken)
        except EdgekitError as failed:
            if len(students) == 1:
                raise
            made = [_failure(plan, failed, one) for plan, one in zip(alike, own, strict=True)]
        built |= {plan.name: one for plan, one in zip(alike, made, strict=True)}
    return [built[plan.name] for plan in plans]


def _build_alike(
    plans: Sequence[Plan],
    teacher: Path | None,
    prompts: Product,
    session: Session,
    sessions: Sequence[Session],
    taken: set[str],
) -> list[Built]:
    """What targets get of one student. teacher: the recipe's; sessions: of each plan its own; taken: names of bundles."""
    settings, gradients = plans[0].settings, any(plan.mixes for plan in plans)
    base = teacher or create(settings, prompts, session)
    plans = [replace(plan, teacher=base) for plan in plans]
    teacher = finetune(settings, base, prompts, session)
    prompts = answered(settings.recipe, teacher, prompts, session)
    whole = distill(settings, teacher, prompts, session)
    alone = control(settings, teacher, whole, prompts, session)
    line = linear(settings, base, prompts, session)
    # Of a student that is trained for a target's file, each target has its own.
    recorded = {}
    if settings.recipe.qad is None:
        recorded[whole] = _record(settings, teacher, whole, prompts, session, gradients)
    built = []
    for plan, own in zip(plans, sessions, strict=True):
        try:
            student = qad(plan, teacher, whole, prompts, own)
            if student not in recorded:
                recorded[student] = _record(settings, teacher, student, prompts, session, gradients)
            reference, calibration = recorded[student]
            covering = Covering(student=student, calibration=calibration, linear=line, control=alone)
            artifact = export(plan, student, calibration, prompts, own)
            report = verify(plan, artifact, reference, prompts, own, covering=covering)
            made = Made(
                plan=plan,
                prompts=prompts,
                teacher=teacher,
                student=student,
                calibration=calibration,
                artifact=artifact,
            )
            built.append(_end(made, report, covering, own, taken))
        except EdgekitError as failed:
            built.append(_failure(plan, failed, own))
    return built


def _end(made: Made, report: Product, covering: Covering, session: Session, taken: set[str]) -> Built:
    """What becomes of a verdict: the bundle, or where the gate failed what may be done about it, and with `recover` is.

    taken: the names of this build's bundles, with that of what was recovered. What fails after the verdict does not cost it.
    """
    ended = held(made.plan, report, session)
    if ended.error is not None:
        return ended
    recovery = _propose(made, report, session)
    if recovery is not None and session.recover is not None:
        recovery, better = recover(made, session, session.recover, recovery, taken)
        if better is not None and recovery.ladder is not None:
            try:
                report = _judge(better, covering, session)
                made = better
                taken.add(made.plan.name)
            except EdgekitError as failed:
                why = f"{recovery.ladder.stopped}; the gate could not judge it, and the artifact that failed stays as it is"
                ladder = replace(recovery.ladder, chosen=None, keep=(), stopped=f"{why}: {failed.message}")
                recovery = replace(recovery, ladder=ladder)
            else:
                ended = held(made.plan, report, session)
                if ended.error is not None:
                    return ended
    try:
        shipped = package(made.plan, made.artifact, report, made.prompts, session, recovery)
    except EdgekitError as failed:
        return _failure(made.plan, failed, session)
    return replace(shipped, against=ended.against)


def _propose(made: Made, report: Product, session: Session) -> Recovery | None:
    """What may be done about a verdict; None where nothing is, or it cannot be told, which is said."""
    try:
        return propose(made.plan, read_report(report.folder), made.prompts, session)
    except EdgekitError as failed:
        session.listener.say(f"recovery: nothing is proposed: {failed.message}")
        return None


def _judge(made: Made, covering: Covering, session: Session) -> Product:
    """The gate's verdict of what was recovered. covering: of what failed."""
    # The control run is of the student that it was made for.
    alone = covering.control if made.student == covering.student else ()
    covering = replace(covering, student=made.student, calibration=made.calibration, control=alone)
    reference = record(made.plan.settings, made.teacher, made.student, made.prompts, session)
    return verify(made.plan, made.artifact, reference, made.prompts, session, covering=covering)


def _record(
    settings: Settings, teacher: Path, student: Path, prompts: Product, session: Session, gradients: bool
) -> tuple[Product, Product]:
    """What teacher and student answer in float, and the student's calibration."""
    reference = record(settings, teacher, student, prompts, session)
    return reference, calibrate(settings, student, prompts, session, gradients=gradients)


def run(
    bundle: Path, texts: Sequence[str], *, prompt: str | None = None, threads: int | None = None, tuned: bool = False
) -> list[object]:
    """A bundle's answer to each text: {label, score, scores} or, of an encoder, its embedding as list[float].

    bundle: a bundle's folder or archive. prompt: which of the model's prompts comes before each text, by its name; without it
    the model's default. threads: of the runtime; without it the bundle's own, or with `tuned` those of the setting that lies
    beside the bundle (NAME.tuning.json). Raises EdgekitError for a bundle that is not whole, a prompt that it has not, and where
    the runtime cannot open the model.
    """
    from edgekit.bundle.open import run_bundle

    return run_bundle(bundle, texts, prompt=prompt, threads=threads, tuned=tuned)


def open_speaker(bundle: Path, *, threads: int | None = None, tuned: bool = False) -> Speaker | None:
    """The loader of a bundle that generates text, opened. None for others.

    tuned: as for `run`. Raises EdgekitError as `run` does.
    """
    from edgekit.bundle.open import open_speaker as open_it

    return open_it(bundle, threads=threads, tuned=tuned)


def between(speaker: Speaker, before: str, behind: str) -> list[int]:
    """The tokens that ask an opened GGUF bundle for what is missing between two texts; see `runtimes.llamacpp.infill`.

    Raises EdgekitError for a model that has no tokens for it.
    """
    from edgekit.runtimes.llamacpp.infill import infill_tokens
    from edgekit.runtimes.llamacpp.library import LlamaError

    try:
        return infill_tokens(speaker.llama, before, behind)
    except LlamaError as missing:
        raise EdgekitError(str(missing)) from missing


def speak(speaker: Speaker, asked: str | Conversation | list[int], options: Mapping[str, object]) -> Iterator[str]:
    """The pieces of an opened speaker's answer to a text, a conversation or tokens, as they are made.

    options: max_tokens, temperature and others of the loader. Raises EdgekitError where the context is full, and where the chat
    template refuses the conversation.
    """
    from jinja2 import TemplateError

    try:
        yield from speaker.stream(asked, **options)
    except TemplateError as refused:
        raise EdgekitError(f"{speaker.folder}: its chat template refuses this: {first_line(refused)}") from refused
    except (ValueError, RuntimeError) as refused:
        raise EdgekitError(f"{speaker.folder}: {str(refused).splitlines()[0]}; begin a new conversation") from refused


def exit_code(built: Sequence[Built], *, strict: bool) -> int:
    """4 if a device failed, else 3 if a check failed (with strict: or was not proven), else 1 after an error, else 0.

    Of several targets, formats or schemes the worst counts, although another may ship.
    """
    return max((bundle.exit_code(strict=strict) for bundle in built), default=0)


def held(plan: Plan, report: Product, session: Session) -> Built:
    """A verdict with what became of the artifact since the session's baseline; its error where that does not hold."""
    found = hold(plan, report, session)
    fell = found is not None and (found.verdict == "fail" or (session.strict and found.verdict == "not proven"))
    error = None
    if found is not None and fell:
        since = f"{found.baseline[:12]}, measured {found.since}"
        error = CheckFailed(f"{plan.name}: {found.verdict} against the baseline ({since}): {found.reason}")
    evidence = report.folder / "report.json"
    return Built(
        target=plan.target.name, report=read_report(report.folder), evidence=evidence, error=error, against=found
    )


def _failure(plan: Plan, failed: EdgekitError, session: Session) -> Built:
    evidence = session.out / f"{plan.name}.report.json"
    report = read_report(evidence) if isinstance(failed, CheckFailed) and evidence.is_file() else None
    return Built(target=plan.target.name, report=report, evidence=evidence if report else None, error=failed)
