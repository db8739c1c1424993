"""A report and several of them on a terminal: the models, the checks, why one did not pass, and what to ship."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.cli.tables import table_lines, width, wrapped
from edgekit.cli.terminal import paint_verdict
from edgekit.evidence import Check, Report
from edgekit.report import CHECK_NOTE, MODEL_HEAD, conditions_lines, generation_lines, model_cells, scope_lines
from edgekit.report.comparison import Compared
from edgekit.report.figures import MISSING, check_figures
from edgekit.report.recovery import TRIED_HEAD, ladder_lines, recovery_heading, rung_cells, tried_cells

# Loss and interval are in the page and in report.json only.
HEAD = ("check", "measured", "bound", "limit", "verdict")


def report_lines(report: Report) -> list[str]:
    """The models and the checks."""
    models = table_lines([MODEL_HEAD, *model_cells(report)], right=range(1, len(MODEL_HEAD)), wraps=[0])
    texts = [*generation_lines(report), *conditions_lines(report), *scope_lines(report)]
    about = [line for text in texts for line in wrapped(text, rest="  ")]
    checks = [[*_figures(check), _verdict(check, painted=True)] for check in report.checks]
    table = table_lines([HEAD, *checks], right=(1, 2, 3), wraps=range(len(HEAD)))
    return [*models, *about, "", *table, *(wrapped(CHECK_NOTE) if checks else ())]


def reason_lines(checks: Sequence[Check]) -> list[str]:
    """Of each check that did not pass: its verdict and figures, then in words why and what to do; each remedy once."""
    lines: list[str] = []
    shown: set[str] = set()
    for check in checks:
        if check.verdict == "pass":
            continue
        name, measured, bound, limit = _figures(check)
        cells = {"measured": measured, "bound": bound, "limit": limit}
        figures = ", ".join(f"{key} {cell}" for key, cell in cells.items() if cell != MISSING)
        lines += wrapped(f"{name}: {_verdict(check)}{f' ({figures})' if figures else ''}", "  ", "    ")
        # Of a floor the detail is the "at least" that its limit says.
        if check.detail and check.detail not in limit and check.detail != check.remedy:
            lines += wrapped(check.detail, "      ")
        if check.remedy and check.remedy not in shown:
            shown.add(check.remedy)
            lines += wrapped(check.remedy, "   -> ")
    return lines


def recovery_lines(report: Report) -> list[str]:
    """What may be done about a failure, the cheapest first, and what was done; nothing of other reports."""
    if report.recovery is None:
        return []
    lines = wrapped(f"recovery: {recovery_heading(report)}", rest="  ")
    for name, time, gain, arguments in rung_cells(report):
        lines += wrapped(f"{name} ({time}): {gain}", "  ", "    ")
        lines += [f"   -> the same command with: {arguments}"]
    if report.recovery.rungs and report.recovery.ladder is None:
        lines.append("  edgekit tries them in this order: the same command with --recover MINUTES")
    if ladder := report.recovery.ladder:
        lines += table_lines([TRIED_HEAD, *tried_cells(ladder)], wraps=range(len(TRIED_HEAD)))
        told, *keep = ladder_lines(ladder)
        lines += [*wrapped(told, "  ", "    "), *(f"  {line}" for line in keep)]
    return lines


def compared_lines(compared: Compared) -> list[str]:
    """An artifact a line with what to ship below; where that is too wide, a figure a line."""
    rows = compared.cells()
    lines = table_lines(rows)
    if any(len(line) > width() for line in lines):
        lines = table_lines(list(zip(*rows, strict=True)), wraps=range(1, len(rows)))
    ship = [f"ship to {it.target}: {it.format} {it.scheme} ({it.reason})" for it in compared.ship]
    return [*lines, "", *ship]


def _figures(check: Check) -> list[str]:
    measured, _, bound, limit, _ = check_figures(check)
    return [check.name, measured, bound, limit]


def _verdict(check: Check, *, painted: bool = False) -> str:
    """A check's verdict, and which look at the prompts it is of, where it is not the first."""
    look = f" (look {check.looks})" if check.looks > 1 else ""
    return (paint_verdict(check.verdict) if painted else check.verdict) + look
