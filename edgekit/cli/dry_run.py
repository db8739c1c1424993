"""`build --dry-run`: what a build would do, as facts and as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.tables import wrapped

if TYPE_CHECKING:
    from edgekit.pipeline import Plan, Session
    from edgekit.recipe import Recipe
    from edgekit.target import Target

# Steps that all targets of a build share.
BEFORE_QAD = ("labels", "create", "finetune", "answers", "importance", "signals", "distill", "control", "linear")
SHARED = (*BEFORE_QAD, "record", "calibrate")


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """A plan with which of its steps are kept from before, what its prompts can prove, and the seconds of each other step.

    busy: why seconds cannot be told, where they are None.
    """

    plan: Plan
    kept: Mapping[str, bool]
    proves: Sequence[str]
    seconds: Mapping[str, int] | None
    busy: str | None

    def facts(self) -> dict[str, object]:
        """As `--dry-run --json` shows it."""
        estimate = {
            "seconds": None if self.seconds is None else sum(self.seconds.values()),
            **self.plan.estimate.facts(),
            "busy": self.busy,
            "seconds_by_step": self.seconds,
        }
        return self.plan.describe() | {"kept": self.kept, "proves": self.proves, "estimate": estimate}


def plan_build(
    recipe: Recipe, targets: Sequence[Target], session: Session, wanted: Sequence[tuple[str | None, str | None]]
) -> list[Foreseen]:
    """What a build would do, for each target and choice. Where nothing was built yet, nothing is left behind."""
    from tempfile import TemporaryDirectory

    from edgekit.pipeline import busy, check_places, check_recipe, gather_prompts, kept_steps, plan_for, seconds
    from edgekit.verify import plan_text
    from edgekit.workspace import Workspace

    with TemporaryDirectory() as scratch:
        passing = replace(session, workspace=Workspace(Path(scratch)))
        planning = session if session.workspace.root.exists() else passing
        disturbed = busy()
        prompts = gather_prompts(recipe, planning)
        checked = check_recipe(recipe, prompts, planning)
        plans = [plan_for(checked, target, prompts, planning, choice) for target in targets for choice in wanted]
        for plan in plans:
            check_places(plan, session)
        proves = plan_text(recipe.task, prompts.facts["rows"]["verify"], recipe.accuracy)
        foreseen = []
        for plan in plans:
            kept = kept_steps(plan, prompts, planning)
            every = {} if disturbed else seconds(plan.estimate)
            times = None if disturbed else {step: time for step, time in every.items() if not kept.get(step)}
            foreseen.append(Foreseen(plan=plan, kept=kept, proves=proves, seconds=times, busy=disturbed))
        return foreseen


def plan_lines(plans: Sequence[Foreseen]) -> Iterator[str]:
    """The plan in lines that fit, but for names, with one total."""
    for plan in plans:
        yield from _plan_lines(plan)
    for line in plans[0].proves if plans else ():
        yield from wrapped(line, "  proves    ")
    yield _total(plans)


def _plan_lines(foreseen: Foreseen) -> Iterator[str]:
    from edgekit.report.fit import fit_lines

    plan, guess, data = foreseen.plan, foreseen.plan.estimate, foreseen.plan.prompts
    yield f"{plan.recipe.name} for {plan.target.name} ({plan.recipe.task})"
    yield f"  teacher   {plan.source}"
    rows = ", ".join(f"{count} {name}" for name, count in data["rows"].items())
    labels = len(data["labels"])
    yield f"  data      {rows}{f'; {labels} labels' if labels else ''}"
    for line in data["notes"]:
        yield from wrapped(line, " " * 12)
    yield from _indented("steps", " ".join(plan.steps))
    done = [step for step in plan.steps if foreseen.kept[step]]
    yield from _indented("kept", ", ".join(done) if done else "nothing: all is to do")
    for line in fit_lines(plan.fit) if plan.fit else ():
        yield from _indented("fit", line)
    yield from _indented("export", ", ".join(f"{key} = {value}" for key, value in plan.export.items()))
    if len(plan.runtimes) > 1:
        first, *others = plan.runtimes
        more = " or ".join(others)
        choice = f"{first}, or where it is clearly faster on the device {more}: decided at verify, by measurement"
        yield from _indented("runtime", choice)
    if guess.schemes_mb:
        every = ", ".join(f"{name} ({size:.3g} MB)" for name, size in guess.schemes_mb.items())
        choice = (
            f"auto: the smallest of {every} that keeps the limits of [accuracy] on {guess.judged_on} calibrate prompts,"
            " decided at export"
        )
        yield from _indented("scheme", choice)
        least, most = min(guess.schemes_mb.values()), max(guess.schemes_mb.values())
        yield f"  artifact  about {least:.3g} to {most:.3g} MB, in {plan.name}"
    else:
        more = f", {guess.artifact_most_mb:.3g} MB where a layer stays float," if guess.artifact_most_mb else ","
        yield from _indented("artifact", f"about {guess.artifact_mb:.3g} MB{more} in {plan.name}")
    if guess.context is not None:
        memory = (
            f"{guess.needed_mb:.0f} MB of memory, {guess.cache_mb or 0.0:.1f} MB of them for {guess.context} tokens of"
            f" context; {plan.usable_mb} MB are usable: it fits"
        )
        yield from _indented("on target", memory)


def _indented(name: str, text: str) -> list[str]:
    return wrapped(text, f"  {name:<10}")


def _total(plans: Sequence[Foreseen]) -> str:
    guesses = [foreseen.plan.estimate for foreseen in plans]
    memory = max(guess.memory_mb for guess in guesses)
    disk = max(guess.disk_mb for guess in guesses) + sum(3 * guess.artifact_mb for guess in guesses[1:])
    if plans[0].busy:
        time = f"time unknown: this machine is busy ({plans[0].busy})"
    else:
        each = [(step, time) for foreseen in plans for step, time in (foreseen.seconds or {}).items()]
        # What comes after `qad` is of a student that each target has for itself.
        alike = BEFORE_QAD if "qad" in plans[0].plan.steps else SHARED
        shared = {step: time for step, time in each if step in alike}
        own = [time for step, time in each if step not in alike]
        time = f"about {_duration(sum(shared.values()) + sum(own))}"
    return f"in all: {time}, {memory:.0f} MB of memory, {disk:.0f} MB of disk"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
