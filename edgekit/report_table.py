"""The checks of a report on a terminal: their table, and why one did not pass, in lines of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from edgekit.report_figures import MISSING, check_figures

WIDTH = 80
# Loss and interval are in the page and in report.json only.
TERMINAL_HEAD = ("check", "measured", "bound", "limit", "verdict")
CHECK_NOTE = "bound: the worst that the measurement leaves possible; a check passes where its bound is within its limit"

Row = Mapping[str, Any]


def check_lines(checks: Sequence[Row]) -> list[str]:
    """The table of the checks and what its bounds mean; its head alone where there are none."""
    rows = [TERMINAL_HEAD, *(_short_cells(check) for check in checks)]
    lines = columns(_narrowed(rows, WIDTH), left=1)
    return [*lines, *wrap(CHECK_NOTE, WIDTH)] if checks else lines


def reason_lines(checks: Sequence[Row]) -> list[str]:
    """Of each check that did not pass: its verdict and figures, then in words why and what to do; each remedy once."""
    lines: list[str] = []
    said: set[str] = set()
    for check in checks:
        if check["verdict"] == "pass":
            continue
        _, measured, bound, limit, verdict = _short_cells(check)
        cells = {"measured": measured, "bound": bound, "limit": limit}
        figures = ", ".join(f"{key} {cell}" for key, cell in cells.items() if cell != MISSING)
        lines += _wrapped(f"{check['name']}: {verdict}{f' ({figures})' if figures else ''}", "  ")
        # Of a floor the detail is the "at least" that its limit says.
        if check.get("detail") and check["detail"] not in limit:
            lines += _wrapped(str(check["detail"]), "      ")
        if check.get("remedy") and check["remedy"] not in said:
            said.add(check["remedy"])
            lines += _wrapped(str(check["remedy"]), "   -> ")
    return lines


def columns(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Rows of cells as aligned text; the first `left` columns are flush left, the others right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    """Lines of a text; commands and paths in it stay whole."""
    rest = " " * max(len(indent), 4)
    return wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def _short_cells(check: Row) -> list[str]:
    """A check's row on the terminal."""
    measured, _, bound, limit, _ = check_figures(check)
    look = f" (look {check['looks']})" if check.get("looks") not in (None, 0, 1) else ""
    return [str(check["name"]), measured, bound, limit, f"{check['verdict']}{look}"]


def _narrowed(rows: Sequence[Sequence[str]], width: int) -> list[Sequence[str]]:
    """The same rows with their widest cells on several lines, so that two spaces between columns leave `width` at most.

    A word is never broken, and the table is wider where one is too long.
    """
    places = range(len(rows[0]))
    widths = [max(len(row[place]) for row in rows) for place in places]
    least = [max(len(word) for row in rows for word in [*row[place].split(), ""]) for place in places]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        wrappable = [place for place in places if widths[place] > max(least[place], 1)]
        if not wrappable:
            break
        widths[max(wrappable, key=widths.__getitem__)] -= 1
    found: list[Sequence[str]] = []
    for row in rows:
        cells = [
            wrap(cell, max(most, 1), break_long_words=False, break_on_hyphens=False)
            for cell, most in zip(row, widths, strict=True)
        ]
        found += zip_longest(*cells, fillvalue="")
    return found
