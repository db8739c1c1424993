"""The command `history`: what was measured of each artifact over time, and where it became worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.options import json_option

if TYPE_CHECKING:
    from edgekit.history import Entry
    from edgekit.report.trend import Line
    from edgekit.verify.baseline import Against

    Trend = Sequence[tuple[Entry, Against | None]]


HEAD = ("measured", "artifact", "size", "p50", "p95", "accuracy", "memory", "runtime", "change")


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--recipe", help="Only of the recipe of this name.")
@click.option("-t", "--target", help="Only of the target of this name.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Also draw the trends into this file.")
@json_option
def history(paths: tuple[Path, ...], recipe: str | None, target: str | None, svg: Path | None, as_json: bool) -> None:
    """Show what was measured of each artifact over time, and where it became slower or less accurate.

    `build` and `verify` add a line to a file of the user's state for each measurement. PATHS are other such files, or folders of
    them. A point is worse where `--baseline` would have refused it: compared with the artifact before. A time that may not be
    compared (another program worked, the clock was lowered, ...) is shown as such and counts in no trend.

    \b
    Examples:
      edgekit history
      edgekit history --recipe assistant --svg trend.svg
    """
    from edgekit.cli.terminal import print_json
    from edgekit.history import by_line, folder, read
    from edgekit.report.trend import draw
    from edgekit.typed_json import to_table
    from edgekit.verify.baseline import against
    from edgekit.workspace import write_atomically

    own = [folder()] if any(folder().glob("*.jsonl")) else []
    entries = [entry for path in paths or own for entry in read(path)]
    shown = [one for one in entries if recipe in {None, one.recipe} and target in {None, one.target}]
    lines: dict[str, Trend] = {
        name: [(entry, against(entry, found[:index])) for index, entry in enumerate(found)]
        for name, found in by_line(shown).items()
    }
    if svg is not None:
        write_atomically(svg, draw([drawn for drawn in map(_drawn, lines.values()) if drawn.points]))
    if as_json:
        told = [
            [{**to_table(entry), "against": to_table(change) if change else None} for entry, change in trend]
            for trend in lines.values()
        ]
        print_json({"lines": told, "svg": str(svg) if svg else None})
        return
    if not lines:
        click.echo(f"nothing measured yet: edgekit build and edgekit verify write into {folder()}")
    for index, trend in enumerate(lines.values()):
        if index:
            click.echo()
        show(trend)


def title(entry: Entry) -> str:
    """What a line of measurements is of."""
    device = entry.device.get("cpu") or entry.device.get("arch")
    return f"{entry.recipe} for {entry.target}: {entry.format} {entry.scheme} in {entry.runtime.name} on {device}"


def show(trend: Trend) -> None:
    """A table of one line's measurements, and below it what became worse."""
    from edgekit.cli.tables import table_lines, wrapped
    from edgekit.report.figures import MISSING, human_bytes, number, percent

    click.echo(title(trend[0][0]))
    rows: list[tuple[str, ...]] = [HEAD]
    reasons = []
    for entry, change in trend:
        times = [f"{number(ms, 3)} ms" if ms else MISSING for ms in (_centre(entry.p50_ms), _centre(entry.p95_ms))]
        memory = f"{entry.memory_mb:.0f} MB" if entry.memory_mb else MISSING
        rows.append(
            (entry.at[:16].replace("T", " "), entry.sha256[:8], human_bytes(entry.bytes), *times, percent(entry.accuracy),
             memory, entry.runtime.version, _word(entry, change))
        )  # fmt: skip
        if not entry.counts:
            why = "; ".join((*entry.disturbed, *(entry.incomparable or ())))
            reasons.append(f"{entry.at[:16].replace('T', ' ')} {entry.sha256[:8]}: not comparable: {why}")
        if change is not None and change.verdict == "fail":
            reasons.append(
                f"{entry.at[:16].replace('T', ' ')} {entry.sha256[:8]}: {_failed(change)}{_newer(trend, entry)}"
            )
    for line in table_lines(rows, right=range(2, 7)):
        click.echo(line)
    for reason in reasons:
        for line in wrapped(reason, "  ", "    "):
            click.echo(line)


def _newer(trend: Trend, entry: Entry) -> str:
    """Which tools changed since the entry before."""
    entries = [one for one, _ in trend]
    before = entries[max(entries.index(entry) - 1, 0)]
    changed = [
        f"{name} {before.tools.get(name, 'none')} to {version}"
        for name, version in entry.tools.items()
        if before.tools.get(name) != version
    ]
    return f"; since then changed: {', '.join(changed)}" if changed else ""


def _failed(change: Against) -> str:
    return "; ".join(f"{one.name}: {one.detail}" for one in change.changes if one.verdict == "fail")


def _word(entry: Entry, change: Against | None) -> str:
    if change is None:
        return "" if entry.counts else "not comparable"
    ratio = next((one.ratio for one in change.changes if one.ratio is not None), None)
    moved = "not comparable" if not entry.counts else f"{ratio:.2f}x" if ratio is not None else "time not proven"
    return f"{moved}, worse" if change.verdict == "fail" else moved


def _centre(times: Sequence[float]) -> float | None:
    from edgekit.verify.latency import centre

    return centre(times) if times else None


def _drawn(trend: Trend) -> Line:
    from edgekit.report.trend import Line, Point

    points = [
        Point(
            ms=_centre(entry.p50_ms) or 0.0,
            low=min(entry.p50_ms),
            high=max(entry.p50_ms),
            label=f"{entry.at[:10]} {entry.sha256[:6]}",
            worse=_failed(change) if change is not None and change.verdict == "fail" else "",
            apart=not entry.counts,
        )
        for entry, change in trend
        if entry.p50_ms
    ]
    return Line(title=title(trend[0][0]), points=points)
