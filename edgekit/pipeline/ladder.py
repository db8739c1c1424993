"""Recover: where a gate failed, rungs are made and judged on a split of their own, until one passes there or the time is spent.

The verify prompts decide nothing here but that a gate failed: what failed is found anew on the recovery split, rungs are chosen
and stopped by it, and the one that is chosen goes to the gate once. Steps are kept as those of any build, so that a run that was
killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.evidence import Check, Report
from edgekit.pipeline.cost import seconds
from edgekit.pipeline.kept import kept_steps
from edgekit.pipeline.plan import Listener, Plan, Session
from edgekit.pipeline.resolve import judged_by
from edgekit.pipeline.rungs import SIZE, SPEED, Change, find_changes, find_failures, needed_prompts, rungs
from edgekit.pipeline.steps import calibrate, distill, export, finetune, qad, record
from edgekit.pipeline.verdict import rehearse
from edgekit.progress import Progress
from edgekit.prompts.prompt import RECOVER
from edgekit.recovery import Ladder, Recovery, Rung, Tried
from edgekit.target import Measure, Target
from edgekit.workspace import Product

# Of a limit: what a split that is too small to prove anything may be seen to lose, so that a rung is taken for one that passes.
_SURELY = 0.5


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the steps before the verdict make of a plan."""

    plan: Plan
    prompts: Product
    teacher: Path
    student: Path
    calibration: Product
    artifact: Product


class TimeSpentError(Exception):
    """The time for the ladder is spent while a step runs, which then stops as if it were killed."""


class _Watched(Listener):
    """Passes all on, and stops a step that goes on when the time is spent."""

    def __init__(self, inner: Listener, until: float) -> None:
        self._inner, self._until = inner, until

    def begin(self, step: str, note: str = "", *, bundle: str = "") -> Progress:
        shown = self._inner.begin(step, note, bundle=bundle)

        def progress(done: int, total: int, note: str) -> None:
            if time.monotonic() > self._until:
                raise TimeSpentError
            shown(done, total, note)

        return progress

    def end(self, step: str, product: Path, *, kept: bool, bundle: str = "") -> None:
        self._inner.end(step, product, kept=kept, bundle=bundle)

    @contextmanager
    def during(self, what: str, note: str = "") -> Iterator[None]:
        with self._inner.during(what, note):
            yield

    def say(self, text: str) -> None:
        self._inner.say(text)


def recover(begun: Made, session: Session, minutes: float) -> tuple[Recovery, Made | None]:
    """What was found and tried within so many minutes, and what was chosen of it for the gate; None where nothing was.

    begun: what failed. Raises DeviceFailed where the device does, and EdgekitError for a recipe without a recovery split.
    """
    ladder = _Run(begun, session, minutes)
    return ladder.climb()


class _Run:
    """One climb of the ladder."""

    def __init__(self, begun: Made, session: Session, minutes: float) -> None:
        if RECOVER not in begun.prompts.facts["rows"]:
            raise EdgekitError(
                f"{begun.plan.recipe.path}: data.recover: missing key; name a file of prompts, or a share of the train rows (0.1)"
            )
        self._begun, self._minutes, self._began = begun, minutes, time.monotonic()
        self._until = self._began + 60 * minutes
        watched = _Watched(session.listener, self._until)
        self._session = replace(session, listener=watched, fresh=False)
        self._times = self._ran_out = False

    def climb(self) -> tuple[Recovery, Made | None]:
        """Judge what failed, then rung by rung."""
        begun, session = self._begun, self._session
        try:
            report = self._judge(begun)
        except TimeSpentError:
            start = Tried(name="as it is", seconds=self._spent(self._began), reason=_STOPPED)
            return self._told((), (), start, [], None, "the time was spent before what failed was judged there"), None
        start = _seen("as it is", self._spent(self._began), report)
        failures = find_failures(report, lambda check: not _holds(check))
        if not failures:
            told = (
                "what failed is not seen there, so that nothing can be chosen by it: give more prompts (data.recover)"
            )
            return self._told((), (), start, [], None, told), None
        self._times = "speed" in failures
        found = rungs(begun.plan, find_changes(begun.plan, report, failures, begun.prompts), begun.prompts, session)
        tried: list[Tried] = []
        made: dict[str, tuple[Change, Made]] = {}
        for change, rung in found:
            entry, product = self._try(change)
            tried.append(entry)
            if product is not None:
                made[rung.name] = (change, product)
            if entry.holds:
                break
        chosen, why = _choose(tried, ran_out=self._ran_out)
        every = tuple(rung for _, rung in found)
        recovery = self._told(failures, every, start, tried, made[chosen][0] if chosen else None, why)
        return recovery, made[chosen][1] if chosen else None

    def _told(
        self,
        failures: tuple[str, ...],
        found: tuple[Rung, ...],
        start: Tried,
        tried: Sequence[Tried],
        chosen: Change | None,
        stopped: str,
    ) -> Recovery:
        plan = self._begun.plan
        return Recovery(
            failures=failures,
            rungs=found,
            ladder=Ladder(
                minutes=self._minutes,
                prompts=int(self._begun.prompts.facts["rows"][RECOVER]),
                start=start,
                tried=tuple(tried),
                chosen=chosen.name if chosen else None,
                stopped=stopped,
                keep=_keeping(plan, chosen) if chosen else (),
            ),
        )

    def _spent(self, since: float) -> float:
        return round(time.monotonic() - since, 1)

    def _try(self, change: Change) -> tuple[Tried, Made | None]:
        """Make and judge a rung, where the time is enough for it."""
        began = time.monotonic()
        try:
            prompts = needed_prompts(change, self._begun.plan, self._begun.prompts, self._session)
            plan = change.applied(self._begun.plan, prompts)
            needed, left = self._needed(change, plan, prompts), self._until - began
            if needed > left:
                self._ran_out = True
                told = f"not begun: {needed} s are estimated, {max(left, 0):.0f} s were left"
                return Tried(name=change.name, seconds=0.0, reason=told), None
            self._session.listener.say(f"recovery: {change.name}")
            made = make(plan, prompts, self._session)
            report = self._judge(made)
            return _seen(change.name, self._spent(began), report), made
        except TimeSpentError:
            self._ran_out = True
            return Tried(name=change.name, seconds=self._spent(began), reason=_STOPPED), None
        except DeviceFailed:
            raise
        except EdgekitError as failed:
            return Tried(name=change.name, seconds=self._spent(began), reason=failed.message), None

    def _needed(self, change: Change, plan: Plan, prompts: Product) -> int:
        """The seconds that a rung takes, without the steps that are there from an earlier run."""
        kept = kept_steps(plan, prompts, self._session)
        wanted = {step for step in change.steps(plan) if step == "verify" or not kept.get(step)}
        return sum(time for step, time in seconds(plan.estimate).items() if step in wanted)

    def _judge(self, made: Made) -> Report:
        """An artifact on the recovery split. Times are judged where they are what failed."""
        plan = made.plan
        target = _without(plan.target, plan.recipe.task, () if self._times else SPEED)
        prompts = judged_by(made.prompts, RECOVER, "judged on the recovery split", self._session)
        reference = record(plan.settings, made.teacher, made.student, prompts, self._session)
        return rehearse(replace(plan, target=target), made.artifact, reference, prompts, self._session)


_STOPPED = "stopped: the time was spent; the same command goes on from here"


def make(plan: Plan, prompts: Product, session: Session) -> Made:
    """All that comes before a verdict, of a plan whose teacher is there."""
    settings, base = plan.settings, plan.teacher
    assert base is not None
    teacher = finetune(settings, base, prompts, session)
    whole = distill(settings, teacher, prompts, session)
    student = qad(plan, teacher, whole, prompts, session)
    calibration = calibrate(settings, student, prompts, session, gradients=plan.mixes)
    artifact = export(plan, student, calibration, prompts, session)
    return Made(
        plan=plan, prompts=prompts, teacher=teacher, student=student, calibration=calibration, artifact=artifact
    )


def _without(target: Target, task: str, limits: Sequence[str] | frozenset[str]) -> Target:
    """The target without some limits, and nothing measured that no limit needs."""
    budget = {key: value for key, value in vars(target.budget_for(task)).items() if value is not None}
    kept: dict[str, object] = {key: value for key, value in budget.items() if key not in limits}
    return replace(target, budget=kept, measure=Measure())


def _keeping(plan: Plan, chosen: Change) -> tuple[str, ...]:
    """The arguments that make the same artifact again; where anything learns from the train rows, without those held out."""
    trains = (
        {"create", "finetune", "distill", "qad"} & {*plan.steps} or "qad" in chosen.makes or "distill" in chosen.makes
    )
    share = plan.recipe.data.recover
    held = ("--set", f"data.recover={share}") if trains and isinstance(share, float) else ()
    return (*held, *chosen.arguments(plan))


def _counts(check: Check) -> bool:
    """Whether a check decides about rungs: those of accuracy, speed and size; any other only where it fails."""
    return "_vs_" in check.name or check.name == "accuracy" or check.name in SPEED or check.name in SIZE


def _ratio(check: Check) -> float:
    """How much of its limit a check uses: of a loss, or of what was measured; infinite where nobody knows."""
    limit, seen = check.limit, check.measured if check.loss is None else check.loss
    if isinstance(limit, str | None) or isinstance(seen, str | None):
        return 0.0 if check.verdict == "pass" else float("inf")
    if check.loss is None and check.name in {"accuracy", "tokens_per_second"}:
        limit, seen = seen, limit
    return seen / limit if limit > 0 else float("inf")


def _holds(check: Check) -> bool:
    """Whether a check is proven, or as good as that on a split that is too small for a proof.

    What other machines must prove (speed, memory), and the share of right answers, count as they were measured.
    """
    if check.verdict == "pass" or not _counts(check):
        return check.verdict != "fail"
    return check.verdict != "fail" and _ratio(check) <= (_SURELY if check.loss is not None else 1.0)


def _within(check: Check) -> bool:
    """Whether a check is not seen to lose more than its limit."""
    return _holds(check) or (check.verdict != "fail" and _ratio(check) <= 1.0)


def _seen(name: str, spent: float, report: Report) -> Tried:
    """What a report on the recovery split says, by the check that is worst."""
    counted = [check for check in report.checks if _counts(check) or check.verdict == "fail"]
    worst = max(counted, key=lambda check: (check.verdict == "fail", _ratio(check)), default=None)
    entry = Tried(
        name=name,
        seconds=spent,
        holds=all(_holds(check) for check in report.checks),
        within=all(_within(check) for check in report.checks),
    )
    if worst is None:
        return entry
    return replace(
        entry,
        check=worst.name,
        measured=worst.measured,
        loss=worst.loss,
        interval=worst.interval,
        limit=worst.limit,
    )


def _choose(tried: Sequence[Tried], *, ran_out: bool) -> tuple[str | None, str]:
    """Which rung goes to the gate, and why it stopped there: the one that passes, else the one that loses the least within all
    limits; of equals the cheapest."""
    if passing := next((entry for entry in tried if entry.holds), None):
        return passing.name, f"stopped at {passing.name!r}, which passes there"
    within = [entry for entry in tried if entry.within]
    ended = "the time was spent" if ran_out else "no rung is left" if tried else "nothing suits what failed"
    if not within:
        return None, f"{ended}, and none passes there: the artifact that failed stays as it is"
    best = min(
        within, key=lambda entry: (entry.loss or 0.0) / entry.limit if isinstance(entry.limit, int | float) else 0.0
    )
    return best.name, f"{ended}; {best.name!r} is chosen: none passes there, and it loses the least within its limits"
