"""What may be done about a failure, and what was done, in lines of text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from edgekit.evidence import Check, Report
from edgekit.recovery import FAILURES, Ladder, Tried
from edgekit.report.figures import MISSING, check_figures, number

RUNG_HEAD = ("what", "estimated", "expected", "the same command with")
TRIED_HEAD = ("on the recovery split", "took", "check", "seen", "interval", "limit", "")


def recovery_heading(report: Report) -> str:
    """What failed, in words; "" of a report that passed."""
    found = report.recovery
    return "; ".join(FAILURES[name] for name in found.failures) if found else ""


def rung_cells(report: Report) -> list[list[str]]:
    """The rows below RUNG_HEAD, the cheapest first."""
    rungs = report.recovery.rungs if report.recovery else ()
    told = [(rung, f"{shlex.join(rung.arguments)}{_instead(rung.arguments)}") for rung in rungs]
    return [[rung.name, duration(rung.seconds), rung.gain, arguments] for rung, arguments in told]


def _instead(arguments: Sequence[str]) -> str:
    """Of which arguments a command has to be rid, where they would build more than what is told."""
    return " (instead of every --format and --scheme)" if {"--format", "--scheme"} & {*arguments} else ""


def tried_cells(ladder: Ladder) -> list[list[str]]:
    """The rows below TRIED_HEAD: the artifact that failed, then each rung in its turn."""
    return [_tried(entry) for entry in (ladder.start, *ladder.tried)]


def ladder_lines(ladder: Ladder) -> list[str]:
    """What came of it, and the arguments that keep the choice, where there is one: a line to copy."""
    lines = [f"{ladder.prompts} prompts of the recovery split, {number(ladder.minutes, 3)} minutes; {ladder.stopped}"]
    if ladder.keep:
        told = "to keep the choice, build with these arguments instead of --recover"
        lines += [f"{told}{_instead(ladder.keep)}:", shlex.join(ladder.keep)]
    return lines


def duration(seconds: float) -> str:
    """Seconds, or minutes of what takes long."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _tried(entry: Tried) -> list[str]:
    if entry.check is None:
        return [entry.name, duration(entry.seconds), *[MISSING] * 4, entry.reason or ""]
    check = Check(
        name=entry.check,
        measured=entry.measured,
        limit=entry.limit,
        verdict="pass" if entry.holds else "not proven" if entry.within else "fail",
        loss=entry.loss,
        interval=entry.interval,
    )
    measured, loss, _, limit, interval = check_figures(check)
    holds = "passes" if entry.holds else "within the limit" if entry.within else "does not pass"
    seen = measured if loss == MISSING else loss
    return [entry.name, duration(entry.seconds), entry.check, seen, interval, limit, entry.reason or holds]
