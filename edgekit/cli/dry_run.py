"""`build --dry-run`: what a build would do, as facts and as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cli.tables import wrapped

if TYPE_CHECKING:
    from edgekit.pipeline import Session
    from edgekit.recipe import Recipe
    from edgekit.target import Target

# Steps that all targets of a build share.
SHARED = ("create", "finetune", "distill", "record", "calibrate")


def plan_build(
    recipe: Recipe, targets: Sequence[Target], session: Session, wanted: Sequence[tuple[str | None, str | None]]
) -> list[dict[str, Any]]:
    """What a build would do, for each target and choice. Where nothing was built yet, nothing is left behind."""
    from tempfile import TemporaryDirectory

    from edgekit.pipeline import busy, check_places, check_recipe, gather_prompts, kept_steps, resolve, seconds
    from edgekit.verify import plan_text
    from edgekit.workspace import Workspace

    with TemporaryDirectory() as scratch:
        passing = replace(session, workspace=Workspace(Path(scratch)))
        planning = session if session.workspace.root.exists() else passing
        disturbed = busy()
        prompts = gather_prompts(recipe, planning)
        checked = check_recipe(recipe, prompts, planning)
        plans = [resolve(checked, target, prompts, planning, one) for target in targets for one in wanted]
        for plan in plans:
            check_places(plan, session)
        proves = plan_text(recipe.task, prompts.facts["rows"]["verify"], recipe.accuracy)
        told = []
        for plan in plans:
            kept = kept_steps(plan, prompts, planning)
            every = {} if disturbed else seconds(plan.estimate)
            times = None if disturbed else {step: time for step, time in every.items() if not kept.get(step)}
            estimate = {
                "seconds": None if times is None else sum(times.values()),
                **plan.estimate.facts(),
                "busy": disturbed,
                "seconds_by_step": times,
            }
            told.append(plan.describe() | {"kept": kept, "proves": proves, "estimate": estimate})
        return told


def plan_lines(plans: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The plan in lines that fit, but for names, with one total."""
    for plan in plans:
        yield from _plan_lines(plan)
    for line in plans[0]["proves"] if plans else ():
        yield from wrapped(line, "  proves    ")
    yield _total(plans)


def _plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    guess, kept = plan["estimate"], plan["kept"]
    yield f"{plan['recipe']} for {plan['target']} ({plan['task']})"
    yield f"  teacher   {plan['teacher']}"
    rows = ", ".join(f"{count} {name}" for name, count in plan["data"]["rows"].items())
    labels = len(plan["data"]["labels"])
    yield f"  data      {rows}{f'; {labels} labels' if labels else ''}"
    for line in plan["data"]["notes"]:
        yield from wrapped(line, " " * 12)
    yield from _indented("steps", " ".join(plan["steps"]))
    done = [step for step in plan["steps"] if kept[step]]
    yield from _indented("kept", ", ".join(done) if done else "nothing: all is to do")
    yield from _indented("export", ", ".join(f"{key} = {value}" for key, value in plan["export"].items()))
    if len(plan["runtimes"]) > 1:
        first, *others = plan["runtimes"]
        told = f"{first}, or where it is clearly faster on the device {' or '.join(others)}: decided at verify, by measurement"
        yield from _indented("runtime", told)
    if sizes := guess.get("schemes_mb"):
        every = ", ".join(f"{name} ({size:.3g} MB)" for name, size in sizes.items())
        told = (
            f"auto: the smallest of {every} that keeps the limits of [accuracy] on {guess['judged_on']} calibrate prompts,"
            " decided at export"
        )
        yield from _indented("scheme", told)
        least, most = min(sizes.values()), max(sizes.values())
        yield f"  artifact  about {least:.3g} to {most:.3g} MB, in {plan['bundle']}"
    else:
        most = guess.get("artifact_most_mb")
        more = f", {most:.3g} MB where a layer stays float," if most else ","
        yield from _indented("artifact", f"about {guess['artifact_mb']:.3g} MB{more} in {plan['bundle']}")
    if "needed_mb" in guess:
        told = (
            f"{guess['needed_mb']:.0f} MB of memory, {guess['cache_mb']:.1f} MB of them for {guess['context']} tokens of"
            f" context; {plan['usable_mb']} MB are usable: it fits"
        )
        yield from _indented("on target", told)


def _indented(name: str, text: str) -> list[str]:
    return wrapped(text, f"  {name:<10}")


def _total(plans: Sequence[Mapping[str, Any]]) -> str:
    guesses = [plan["estimate"] for plan in plans]
    memory = max(guess["memory_mb"] for guess in guesses)
    disk = max(guess["disk_mb"] for guess in guesses) + sum(3 * guess["artifact_mb"] for guess in guesses[1:])
    if guesses[0]["busy"]:
        time = f"time unknown: this machine is busy ({guesses[0]['busy']})"
    else:
        shared = {step: time for guess in guesses for step, time in guess["seconds_by_step"].items() if step in SHARED}
        own = [time for guess in guesses for step, time in guess["seconds_by_step"].items() if step not in SHARED]
        time = f"about {_duration(sum(shared.values()) + sum(own))}"
    return f"in all: {time}, {memory:.0f} MB of memory, {disk:.0f} MB of disk"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
