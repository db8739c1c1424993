"""The spine: resolve, preflight, then the verbs in order. A stage command is one of these steps on folders that others made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.build.plan import Built, Listener, Plan, Progress, Session
from edgekit.build.preflight import check_recipe, check_target, gather_prompts, needed_splits, resolve
from edgekit.build.steps import (
    calibrate,
    distill,
    export,
    finetune,
    open_artifact,
    open_reference,
    package,
    record,
    verify,
)
from edgekit.errors import CheckFailed, DeviceFailed, EdgekitError
from edgekit.recipe import Recipe
from edgekit.schema import read_json
from edgekit.target import Target
from edgekit.workspace import Product

__all__ = [
    "Built",
    "Listener",
    "Plan",
    "Progress",
    "Session",
    "build",
    "build_one",
    "calibrate",
    "check_recipe",
    "check_target",
    "distill",
    "exit_code",
    "export",
    "finetune",
    "gather_prompts",
    "needed_splits",
    "open_artifact",
    "open_reference",
    "package",
    "record",
    "resolve",
    "run",
    "verify",
]


def build(recipe: Recipe, targets: Sequence[Target], session: Session) -> list[Built]:
    """Build, verify and package a recipe for every target; each target is tried even where another failed.

    Raises EdgekitError where the recipe itself cannot be built. A target's failed check or device is in its Built.error.
    """
    prompts = gather_prompts(recipe, session)
    plans = [resolve(recipe, target, prompts, session) for target in targets]
    built = []
    for plan in plans:
        try:
            built.append(build_one(plan, prompts, session))
        except (CheckFailed, DeviceFailed) as failed:
            built.append(_failure(plan, failed, session))
    return built


def build_one(plan: Plan, prompts: Product, session: Session) -> Built:
    """The spine."""
    teacher = finetune(plan.recipe, plan.teacher, prompts, session)
    student = distill(plan.recipe, teacher, prompts, session)
    reference = record(plan.recipe, teacher, student, prompts, session)
    calibration = calibrate(plan.recipe, student, prompts, session)
    artifact = export(plan, student, calibration, prompts, session)
    report = verify(plan, artifact, reference, prompts, session, student=student, calibration=calibration)
    return package(plan, artifact, report, session)


def run(bundle: Path, texts: Sequence[str], *, threads: int | None = None) -> list[Any]:
    """A bundle's answer to each text: {label, score, scores} or, of an encoder, its embedding as list[float].

    bundle: a bundle's folder or archive. threads: of the runtime; without it the bundle's own. Raises EdgekitError for a
    bundle that is not whole, and where onnxruntime cannot open the model.
    """
    from edgekit.package import run_bundle

    return run_bundle(bundle, texts, threads=threads)


def exit_code(built: Sequence[Built], *, strict: bool) -> int:
    """4 if a device failed, else 3 if a check failed (with strict: or was not proven), else 0."""
    if any(isinstance(one.error, DeviceFailed) for one in built):
        return DeviceFailed.exit_code
    verdicts = {(one.report or {}).get("verdict") for one in built}
    failed = any(one.error for one in built) or "fail" in verdicts or (strict and "not proven" in verdicts)
    return CheckFailed.exit_code if failed else 0


def _failure(plan: Plan, failed: EdgekitError, session: Session) -> Built:
    evidence = session.out / f"{plan.name}.report.json"
    report = read_json(evidence) if isinstance(failed, CheckFailed) and evidence.is_file() else None
    return Built(target=plan.target.name, report=report, evidence=evidence if report else None, error=failed)
