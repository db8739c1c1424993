"""Recover: where a gate failed, rungs are made and judged on a split of their own, until one passes there or the time is spent.

The verify prompts decide nothing here but that a gate failed, and whether times are judged: what failed is found anew on the
recovery split, rungs are chosen and stopped by it, and the one that is chosen goes to the gate once. Steps are kept as those of
any build, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.evidence import Check, Report
from edgekit.pipeline.cost import seconds
from edgekit.pipeline.kept import kept_steps
from edgekit.pipeline.plan import Listener, Plan, Session
from edgekit.pipeline.resolve import check_places, judged_by
from edgekit.pipeline.rungs import SIZE, SPEED, Change, find_changes, find_failures, needed_prompts, rungs
from edgekit.pipeline.steps import calibrate, distill, export, finetune, qad, record
from edgekit.pipeline.verdict import rehearse
from edgekit.progress import Progress
from edgekit.prompts.prompt import RECOVER
from edgekit.recovery import Ladder, Recovery, Tried
from edgekit.target import Measure, Target
from edgekit.workspace import STEPS, Product

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
    """The time for the ladder is spent while a step runs, which then stops as if it were killed, or before it begins."""

    def __init__(self, step: str) -> None:
        goes_on = "goes on from there" if STEPS[step].resumable else "begins that step anew"
        super().__init__(f"stopped in {step}: the time was spent; the same command {goes_on}")


class _Watched(Listener):
    """Passes all on, and stops a step that begins or goes on when the time is spent."""

    def __init__(self, inner: Listener, until: float) -> None:
        self._inner, self._until = inner, until

    def begin(self, step: str, note: str = "", *, bundle: str = "") -> Progress:
        self._stop(step)
        shown = self._inner.begin(step, note, bundle=bundle)

        def progress(done: int, total: int, note: str) -> None:
            self._stop(step)
            shown(done, total, note)

        return progress

    def _stop(self, step: str) -> None:
        if time.monotonic() > self._until:
            raise TimeSpentError(step)

    def end(self, step: str, product: Path, *, kept: bool, bundle: str = "") -> None:
        self._inner.end(step, product, kept=kept, bundle=bundle)

    @contextmanager
    def during(self, what: str, note: str = "") -> Iterator[None]:
        with self._inner.during(what, note):
            yield

    def say(self, text: str) -> None:
        self._inner.say(text)


def recover(
    begun: Made, session: Session, minutes: float, proposed: Recovery, taken: Collection[str] = ()
) -> tuple[Recovery, Made | None]:
    """What was found and tried within so many minutes, and what was chosen of it for the gate; None where nothing was.

    begun: what failed; the time does not stop its judging, by which all else is chosen. proposed: what the gate's own report
    says of it. taken: names of bundles that no rung may have. What fails here ends the ladder, which says so.
    """
    ladder = _Run(begun, session, minutes, proposed, taken)
    try:
        return ladder.climb()
    except EdgekitError as failed:
        why = "the device failed" if isinstance(failed, DeviceFailed) else "stopped"
        return ladder.told(None, f"{why}: {failed.message}; the artifact that failed stays as it is"), None


class _Run:
    """One climb of the ladder."""

    def __init__(
        self, begun: Made, session: Session, minutes: float, proposed: Recovery, taken: Collection[str]
    ) -> None:
        self._begun, self._minutes, self._taken, self._began = begun, minutes, taken, time.monotonic()
        self._until = self._began + 60 * minutes
        self._base = replace(session, fresh=False)
        self._session = replace(self._base, listener=_Watched(session.listener, self._until))
        # Where speed is what failed, no rung is judged without it.
        self._times = "speed" in proposed.failures
        self._failures, self._rungs = proposed.failures, proposed.rungs
        self._start, self._tried, self._ran_out = Tried(name="as it is", seconds=0.0), list[Tried](), False

    def climb(self) -> tuple[Recovery, Made | None]:
        """Judge what failed, then rung by rung. Raises EdgekitError where what failed cannot be judged, and DeviceFailed."""
        begun, session = self._begun, self._session
        report = self._judge(begun, self._base)
        self._start = _seen("as it is", self._spent(self._began), report)
        failures = find_failures(report, lambda check: not _holds(check))
        if not failures:
            told = (
                "what failed is not seen there, so that nothing can be chosen by it: give more prompts (data.recover)"
            )
            return self.told(None, told), None
        found = rungs(begun.plan, find_changes(begun.plan, report, failures, begun.prompts), begun.prompts, session)
        if found:
            self._failures, self._rungs = failures, tuple(rung for _, rung in found)
        made: dict[str, tuple[Change, Made]] = {}
        for change, rung in found:
            entry, product = self._try(change)
            self._tried.append(entry)
            if product is not None:
                made[rung.name] = (change, product)
            if entry.holds:
                break
        chosen, why = _choose(self._tried, ran_out=self._ran_out)
        return self.told(made[chosen][0] if chosen else None, why), made[chosen][1] if chosen else None

    def told(self, chosen: Change | None, stopped: str) -> Recovery:
        """What was found and tried so far."""
        plan = self._begun.plan
        return Recovery(
            failures=self._failures,
            rungs=self._rungs,
            ladder=Ladder(
                minutes=self._minutes,
                prompts=int(self._begun.prompts.facts["rows"][RECOVER]),
                start=self._start,
                tried=tuple(self._tried),
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
            self._check_name(plan)
            needed, left = self._needed(change, plan, prompts), self._until - began
            if needed > left:
                self._ran_out = True
                told = f"not begun: {needed} s are estimated, {max(left, 0):.0f} s were left"
                return Tried(name=change.name, seconds=0.0, reason=told), None
            self._session.listener.say(f"recovery: {change.name}")
            made = make(plan, prompts, self._session)
            report = self._judge(made, self._session)
            return _seen(change.name, self._spent(began), report), made
        except TimeSpentError as stopped:
            self._ran_out = True
            return Tried(name=change.name, seconds=self._spent(began), reason=str(stopped)), None
        except DeviceFailed:
            raise
        except EdgekitError as failed:
            return Tried(name=change.name, seconds=self._spent(began), reason=failed.message), None

    def _check_name(self, plan: Plan) -> None:
        """Refuse what would be shipped where another bundle of this build is, or something that edgekit did not write."""
        if plan.name == self._begun.plan.name:
            return
        if plan.name in self._taken:
            raise EdgekitError(f"{plan.name}: is another bundle of this build")
        check_places(plan, self._session)

    def _needed(self, change: Change, plan: Plan, prompts: Product) -> int:
        """The seconds that a rung takes, without the steps that are there from an earlier run."""
        kept = kept_steps(plan, prompts, self._session)
        wanted = {step for step in change.steps(plan) if step == "verify" or not kept.get(step)}
        return sum(time for step, time in seconds(plan.estimate).items() if step in wanted)

    def _judge(self, made: Made, session: Session) -> Report:
        """An artifact on the recovery split. Times are judged where they are what failed."""
        plan = made.plan
        target = _without(plan.target, plan.recipe.task, () if self._times else SPEED)
        prompts = judged_by(made.prompts, RECOVER, "judged on the recovery split", session)
        reference = record(plan.settings, made.teacher, made.student, prompts, session)
        return rehearse(replace(plan, target=target), made.artifact, reference, prompts, session)


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
    """The arguments that make the same artifact again: without the train rows that were held out, which also count for labels."""
    share = plan.recipe.data.recover
    held = ("--set", f"data.recover={share}") if isinstance(share, float) else ()
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
    """What a report on the recovery split says, by the check that is worst: of those that do not hold, where there are any."""
    counted = [check for check in report.checks if _counts(check) or check.verdict == "fail"]
    worst = max(counted, key=lambda check: (check.verdict == "fail", not _holds(check), _ratio(check)), default=None)
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
