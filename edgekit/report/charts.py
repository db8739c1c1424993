"""The charts of a report as inline SVG; an empty text where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from edgekit.evidence import Check, Confusion, LayerError
from edgekit.report import ModelFigures
from edgekit.report.figures import human_bytes, number, percent, share

MOST_ROWS = 30
# The CSS class of each verdict.
KINDS = {"pass": "pass", "fail": "fail", "not proven": "open"}
# The width of a letter of 13 pixels, on the wide side.
LETTER = 7.2

# left, top, right, bottom
Box = tuple[float, float, float, float]


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 860 {height:g}" role="img" aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between low and high: steps of 1, 2 or 5 times a power of ten."""
    rough = max(high - low, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [count * step for count in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between low and high."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for factor in (1, 2, 5) if low <= (tick := factor * 10.0**power) <= high]


def scatter(models: Sequence[ModelFigures], latency: str, *, powers: bool = False) -> str:
    """Size to the right, accuracy up; a disc's area is the p50 latency.

    models: those without accuracy or bytes are left out. latency: what p50 is of. powers: whether sizes are drawn by their
    logarithm, for models of which one is a hundred times another.
    """
    points = [(model.bytes, model.accuracy, model) for model in models if model.accuracy is not None and model.bytes]
    if len(points) < 2:
        return ""
    left, right, top, bottom = 70.0, 830.0, 40.0, 270.0
    sizes = [size for size, _, _ in points]
    least, widest = min(sizes) / 1.5, max(sizes) * 1.25
    scores = [accuracy for _, accuracy, _ in points]
    room = max(max(scores) - min(scores), 0.01)
    low, high = max(0.0, min(scores) - 0.6 * room), min(1.0, max(scores) + 0.6 * room)
    slowest = max(model.p50 or 0.0 for _, _, model in points)

    def across(count: float) -> float:
        share = math.log(count / least) / math.log(widest / least) if powers else count / widest
        return left + (right - left) * share

    def up(score: float) -> float:
        return bottom - (bottom - top) * (score - low) / (high - low)

    parts = []
    for tick in _ticks(low, high):
        parts += [
            _line(left, up(tick), right, up(tick), "grid"),
            _text(left - 8, up(tick) + 4, percent(tick), "soft end"),
        ]
    for tick in _powers(least, widest) if powers else _ticks(0, widest, 6):
        parts.append(_text(across(tick), bottom + 20, human_bytes(tick) if tick else "0", "soft mid"))
    parts += [
        _line(left, bottom, right, bottom, "axis"),
        _text(left, bottom + 44, f"to the right: size{' (logarithm)' if powers else ''}; upwards: accuracy", "soft"),
        _text(right, bottom + 44, f"area of a disc: {latency}" if slowest else "latency: see the table", "soft end"),
    ]
    discs = [
        (across(size), up(accuracy), _radius(model.p50, slowest), model)
        for size, accuracy, model in sorted(points, key=lambda point: -(point[2].p50 or 0.0))
    ]
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{model.role} disc"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" class="{model.role}"/>'
        for x, y, radius, model in discs
    ]
    parts += _labels(discs, (left, top - 30, right, bottom))
    return _svg(bottom + 54, parts, "size, accuracy and latency of the models")


def _radius(p50: float | None, slowest: float) -> float:
    return max(6.0, 24.0 * (p50 / slowest) ** 0.5) if p50 and slowest else 7.0


def _labels(discs: Sequence[tuple[float, float, float, ModelFigures]], frame: Box) -> list[str]:
    """A label beside each disc, or where another label or disc is in its way, above or below with a line to it."""
    taken: list[Box] = [(x - radius, y - radius, x + radius, y + radius) for x, y, radius, _ in discs]
    parts = []
    for x, y, radius, model in discs:
        label = f"{model.name}, {number(model.p50, 3)} ms" if model.p50 else model.name
        width = LETTER * len(label)
        positions = [
            (x + side * (radius + 8 + abs(rise) / 3) - (width if side < 0 else 0.0), y + rise, side)
            for rise in sorted(range(-200, 201, 10), key=lambda rise: (abs(rise), -rise))
            for side in ((-1, 1) if x > (frame[0] + frame[2]) / 2 else (1, -1))
        ]
        begin, middle, side = next(
            (
                position
                for position in positions
                if _fits((position[0], position[1] - 9, position[0] + width, position[1] + 9), taken, frame)
            ),
            positions[0],
        )
        taken.append((begin, middle - 9, begin + width, middle + 9))
        if middle != y:
            end = begin - 4 if side > 0 else begin + width + 4
            parts.append(_line(x, y, end, middle, "axis"))
        parts.append(_text(begin + width if side < 0 else begin, middle + 4, label, "end" if side < 0 else ""))
    return parts


def _fits(box: Box, taken: Sequence[Box], frame: Box) -> bool:
    inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )


def margins(checks: Sequence[Check]) -> str:
    """Each paired loss and its interval, on an axis in units of the check's own limit."""
    shown = [(check, *share) for check in checks if (share := _shares(check))]
    if not shown:
        return ""
    spans = [value for _, *values in shown for value in values]
    low, high = max(-3.0, min([-0.5, *spans])), min(4.0, max([1.5, *spans]))
    left, right, row, top = 270.0, 830.0, 34.0, 30.0
    bottom = top + row * len(shown)

    def across(share: float) -> float:
        return left + (right - left) * (min(max(share, low), high) - low) / (high - low)

    parts = [
        _line(across(0), top - 6, across(0), bottom, "axis"),
        _line(across(1), top - 6, across(1), bottom, "limit"),
    ]
    parts += [_text(across(0), top - 12, "no loss", "soft mid"), _text(across(1), top - 12, "limit", "soft mid")]
    for index, (check, low_end, high_end, loss) in enumerate(shown):
        y, kind = top + row * (index + 0.5), KINDS[check.verdict]
        middle = across(loss)
        parts.append(_text(left - 14, y + 4, _short(check.name, 36), "end"))
        parts.append(f'<g class="{kind}">{_line(across(low_end), y, across(high_end), y, f"range {kind}")}')
        parts.append(f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="5.5" class="dot mark"/></g>')
    return _svg(bottom + 8, parts, "measured losses with their intervals, against their limits")


def _shares(check: Check) -> tuple[float, float, float] | None:
    """The ends of a loss's interval and the loss itself, as shares of the check's limit; None where one of them is not there."""
    lo, hi = check.interval or (None, None)
    if lo is None or hi is None or check.loss is None or not check.limit or isinstance(check.limit, str):
        return None
    return lo / check.limit, hi / check.limit, check.loss / check.limit


def layers(errors: Sequence[LayerError]) -> str:
    """A bar for each layer's error, the worst first."""
    worst = sorted(errors, key=lambda layer: (-layer.error, layer.name))[:MOST_ROWS]
    if not worst:
        return ""
    left, right, row = 330.0, 780.0, 22.0
    largest = max(layer.error for layer in worst) or 1.0
    shared = _shared([layer.name for layer in worst])
    parts = []
    for index, layer in enumerate(worst):
        y, width = 6 + row * index, max(1.0, (right - left) * layer.error / largest)
        parts.append(_text(left - 10, y + 14, _short(layer.name[shared:].removesuffix("#0"), 46), "end"))
        parts.append(
            f'<rect x="{left}" y="{y + 3:.1f}" width="{width:.1f}" height="{row - 8}" rx="3" class="artifact" />'
        )
        parts.append(_text(left + width + 8, y + 14, share(layer.error), "soft"))
    hidden = len(errors) - len(worst)
    more = f"<p class=note>and {hidden} layers with less error</p>" if hidden else ""
    return _svg(12 + row * len(worst), parts, "error of each layer") + more


def confusion(changes: Sequence[Confusion]) -> str:
    """Mistakes that are gone to the left, new ones to the right."""
    ranked = sorted(changes, key=lambda entry: (-entry.gained - entry.lost, entry.label, entry.answer))
    worst = [entry for entry in ranked if entry.gained or entry.lost][:MOST_ROWS]
    if not worst:
        return ""
    zero, reach, row = 640.0, 160.0, 22.0
    largest = max(max(entry.gained, entry.lost) for entry in worst)
    parts = []
    for index, entry in enumerate(worst):
        y = 6 + row * index
        parts.append(_text(zero - reach - 40, y + 14, _short(f"{entry.label} → {entry.answer}", 56), "end"))
        for count, kind, side in ((entry.lost, "good", -1), (entry.gained, "bad", 1)):
            if not count:
                continue
            width = reach * count / largest
            begin = zero - width if side < 0 else zero
            parts.append(
                f'<rect x="{begin:.1f}" y="{y + 3:.1f}" width="{width:.1f}" height="{row - 8}" class="{kind}" />'
            )
            anchor = "soft end" if side < 0 else "soft"
            parts.append(_text(zero + side * (width + 8), y + 14, number(count), anchor))
    parts.append(_line(zero, 4, zero, 8 + row * len(worst), "axis"))
    return _svg(14 + row * len(worst), parts, "confusions that changed")


def _short(text: str, most: int) -> str:
    """The end of a long name says most: the beginning gives way."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _shared(names: Sequence[str]) -> int:
    """How many letters of dotted names are one beginning, up to a dot."""
    end = names[0].rfind(".") if len(names) > 1 else -1
    while end >= 0 and not all(name.startswith(names[0][: end + 1]) for name in names):
        end = names[0].rfind(".", 0, end)
    return end + 1
