"""The trend of what was measured as a picture: an SVG file of its own, a panel for each line of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgekit.report.figures import number

WIDTH, PANEL, TOP = 860, 190, 20
# The words' classes, and what is drawn: light and dark, as the reader's screen is.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .soft { fill: #667 } .title { font-weight: 600 } .end { text-anchor: end }
.mid { text-anchor: middle } .grid { stroke: #dde } .axis { stroke: #99a } .trend { fill: none; stroke: #36c; stroke-width: 2 }
.range { stroke: #36c; stroke-width: 2; opacity: .35 } .dot { fill: #36c } .worse { fill: #c22 } .back { fill: #fff }
.apart { fill: none; stroke: #99a; stroke-width: 2 }
@media (prefers-color-scheme: dark) { .back { fill: #16181d } text { fill: #e6e6ea } .soft { fill: #99a }
.grid { stroke: #2c2f38 } .trend, .range { stroke: #7aa2ff } .dot { fill: #7aa2ff } .worse { fill: #ff7b7b } }
"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: its time in ms with the fastest and the slowest process's, below it a label, and why it is worse.

    apart: it may not be compared with the others, and the trend passes it by.
    """

    ms: float
    low: float
    high: float
    label: str
    worse: str = ""
    apart: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of measurements, oldest first."""

    title: str
    points: Sequence[Point]


def draw(lines: Sequence[Line]) -> str:
    """The SVG of these lines, one below the other."""
    height = TOP + PANEL * len(lines)
    body = "".join(_panel(line, TOP + PANEL * index) for index, line in enumerate(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="trend of measured times"><style>{_STYLE}</style>'
        f'<rect class="back" width="{WIDTH}" height="{height}"/>{body}</svg>\n'
    )


def _panel(line: Line, top: float) -> str:
    left, right, high, bottom = 70.0, WIDTH - 30.0, top + 26, top + PANEL - 44
    most = 1.08 * max(point.high for point in line.points)

    def up(ms: float) -> float:
        return bottom - (bottom - high) * ms / most

    count = len(line.points)
    places = [left + (right - left) * (index + 0.5) / count for index in range(count)]
    parts = [_text(left, top + 10, line.title, "title")]
    for share in (0.0, 0.5, 1.0):
        y = up(share * most)
        parts.append(
            f'<line class="{"grid" if share else "axis"}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(left - 8, y + 4, f"{number(share * most, 3)} ms" if share else "0", "soft end"))
    path = " ".join(
        f"{x:.1f},{up(point.ms):.1f}" for x, point in zip(places, line.points, strict=True) if not point.apart
    )
    parts.append(f'<polyline class="trend" points="{path}"/>')
    every = -(-count // 8)
    for index, (x, point) in enumerate(zip(places, line.points, strict=True)):
        y = up(point.ms)
        told = [f"{point.label}: {number(point.ms, 4)} ms", *filter(None, [point.worse])]
        title = "; ".join([*told, "not comparable"] if point.apart else told)
        parts.append(
            f'<line class="range" x1="{x:.1f}" x2="{x:.1f}" y1="{up(point.low):.1f}" y2="{up(point.high):.1f}"/>'
        )
        kind, size = ("worse", 6) if point.worse else ("apart", 4) if point.apart else ("dot", 4)
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"><title>{escape(title)}</title></circle>'
        )
        if index % every == 0 or point.worse:
            parts.append(_text(x, bottom + 18, point.label, "soft mid"))
    return f"<g>{''.join(parts)}</g>"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
