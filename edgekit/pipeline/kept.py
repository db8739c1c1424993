"""Which steps of a plan a build would keep from before: the verbs, asked in a workspace that makes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edgekit.pipeline.answers import answered
from edgekit.pipeline.labels import labelled
from edgekit.pipeline.plan import Listener, Plan, Session
from edgekit.pipeline.steps import (
    calibrate,
    control,
    create,
    distill,
    export,
    finetune,
    importance,
    linear,
    qad,
    record,
    signals,
)
from edgekit.pipeline.verdict import Covering, is_judged
from edgekit.workspace import NotMade, Product, Workspace

T = TypeVar("T")


def kept_steps(plan: Plan, prompts: Product, session: Session) -> dict[str, bool]:
    """{step: kept} of every step that the plan has, in order; a bundle is always packaged again, which is quick."""
    looking = replace(session, workspace=Workspace(session.workspace.root, makes=False), listener=Listener())
    found = dict.fromkeys(plan.steps, False)

    def ask(step: str, find: Callable[[], T]) -> T | None:
        try:
            product = find()
        except NotMade:
            return None
        if step in found:
            found[step] = True
        return product

    recipe, settings = plan.recipe, plan.settings
    told = ask("labels", lambda: labelled(recipe, prompts, looking))
    if told is None:
        return found
    given = told
    teacher: Path | None = plan.teacher or ask("create", lambda: create(settings, given, looking))
    if teacher is not None and recipe.teacher.finetune is not None:
        base = teacher
        teacher = ask("finetune", lambda: finetune(settings, base, given, looking))
    asked = teacher
    written = None if asked is None else ask("answers", lambda: answered(recipe, asked, given, looking))
    # Whoever learns from answers that are not there is not there either.
    teacher, taught = (None, given) if written is None else (asked, written)
    student = teacher
    if teacher is not None and recipe.student is not None:
        tuned = teacher
        if "importance" in found:
            ask("importance", lambda: importance(settings, tuned, prompts, looking))
        if "signals" in found:
            ask("signals", lambda: signals(settings, tuned, taught, looking))
        student = ask("distill", lambda: distill(settings, tuned, taught, looking))
    alone: tuple[Product, ...] | None = ()
    if teacher is not None and student is not None and "control" in found:
        origin, whole = teacher, student
        alone = ask("control", lambda: control(settings, origin, whole, taught, looking))
    begun, line = plan.teacher, None
    if begun is not None and "linear" in found:
        line = ask("linear", lambda: linear(settings, begun, taught, looking))
    if teacher is not None and student is not None and recipe.qad is not None:
        tuned, rounded = teacher, student
        student = ask("qad", lambda: qad(plan, tuned, rounded, taught, looking))
    if teacher is None or student is None:
        return found
    first, made = teacher, student
    reference = None if session.fresh else ask("record", lambda: record(settings, first, made, taught, looking))
    calibration = ask("calibrate", lambda: calibrate(settings, made, taught, looking, gradients=plan.mixes))
    if calibration is None:
        return found
    known = calibration
    artifact = ask("export", lambda: export(plan, made, known, taught, looking))
    is_drawn = (line is not None or "linear" not in found) and alone is not None
    if artifact is not None and reference is not None and is_drawn and not session.fresh:
        covering = Covering(student=made, calibration=known, linear=line, control=alone or ())
        found["verify"] = is_judged(plan, artifact, reference, taught, looking, covering)
    return found
