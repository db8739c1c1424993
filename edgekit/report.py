"""Report: what verify measured, as a terminal table and as one HTML file with inline SVG, without scripts.

Beside the stable names of report.json these keys are shown where they are there:
recipe, target: names. models: {teacher | student: {bytes, latency_ms: {p50, p95}, memory_mb}}. scope: figures of
out-of-scope detection by name. layers: [{name, error}], each layer's squared error as a share of its output's power. confusion:
[{from, to, gained, lost}], `from` being the right label and `to` the answer: mistakes that the artifact makes and its float
student does not, and the other way round. notes: [text].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.schema import read_json
from edgekit.workspace import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

VERDICTS = ("pass", "fail", "not proven")
NAMES = {"teacher": "teacher", "student": "float student", "artifact": "artifact"}
REQUIRED = ("verdict", "checks", "accuracy", "comparisons", "latency_ms", "shape", "memory_mb", "artifact", "device")
MISSING = "-"
MOST_ROWS = 30

Row = Mapping[str, Any]


def read_report(folder: Path) -> dict[str, Any]:
    """The content of a verify step's report.json; EdgekitError where it is not one."""
    path = folder / "report.json" if folder.is_dir() else folder
    content = read_json(path)
    absent = [key for key in REQUIRED if not isinstance(content, dict) or key not in content]
    if absent:
        raise EdgekitError(f"{path}: {absent[0]}: missing key; not a report that edgekit verify wrote")
    if content["verdict"] not in VERDICTS:
        raise EdgekitError(f"{path}: verdict: expected one of {', '.join(VERDICTS)}, got {content['verdict']!r:.80}")
    return dict(content)


def terminal_table(report: Row) -> list[str]:
    """The models and the checks in lines of plain text."""
    head = ["", "accuracy", "size", "p50", "p95", "memory"]
    lines = _columns([head, *([NAMES[name], *cells] for name, cells in _model_cells(report))], left=1)
    lines += [*_conditions_lines(report), ""]
    head = ["check", "measured", "limit", "loss", "bound", "interval", "verdict"]
    return lines + _columns([head, *(_check_cells(check) for check in report["checks"])], left=1)


def write_html(report: Row, path: Path) -> None:
    """Write the report as one self-contained HTML file, light and dark; equal reports are equal bytes."""
    title = " on ".join(str(report[key]) for key in ("recipe", "target") if report.get(key)) or "edgekit report"
    verdict = str(report["verdict"])
    sections = [
        f"<header><h1>{escape(title)}</h1>{_badge(verdict)}</header>",
        f"<p class=lead>{escape(_summary(report))}</p>",
        _section(
            "Size, accuracy, latency", _models_table(report) + _scatter(report), "; ".join(_conditions_lines(report))
        ),
        _section("Checks", _margins(report["checks"]) + _checks_table(report["checks"]), _CHECKS_NOTE),
        _section("Compared on the same prompts", _comparisons_table(report["comparisons"])),
        _section("Out of scope", _facts(report.get("scope"))),
        _section(
            "Error of each layer",
            _layers(report.get("layers")),
            "share of the output's power that the layer gets wrong (its inputs' errors included), worst first",
        ),
        _section(
            "Changed confusions",
            _confusion(report.get("confusion")),
            "right label → answer, in prompts: mistakes of the float student that are gone (left), new ones (right)",
        ),
        _section("How the calibration covers these prompts", _facts(_coverage(report.get("coverage")))),
        _section("Notes", "".join(f"<p>{escape(str(note))}</p>" for note in report.get("notes") or ())),
        "<div class=pair>",
        _section("Artifact", _facts(report["artifact"])),
        _section("Device that measured", _facts(report["device"] | _runtime(report))),
        "</div>",
    ]
    page = (
        '<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,'
        ' initial-scale=1"><meta name=color-scheme content="light dark">\n'
        f"<title>{escape(title)}: {escape(verdict)}</title>\n<style>{_STYLE}</style>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main></html>\n"
    )
    write_atomically(path, page)


def human_bytes(count: float | None) -> str:
    """A number of bytes with its unit: 1 MB is 10^6 bytes."""
    if count is None:
        return MISSING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def pair(comparison: Row) -> str:
    """Which two models a comparison compares: "artifact to float student"."""
    return f"{_words(comparison.get('candidate', 'artifact'))} to {_words(comparison['reference'])}"


def number(value: Any, digits: int = 4) -> str:
    """A value as a table shows it: a number to so many significant digits, None as a dash, anything else as text."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def percent(fraction: float | None) -> str:
    """A fraction as percent with one decimal."""
    return MISSING if fraction is None else f"{100 * fraction:.1f} %"


def flips(value: Any) -> str:
    """Flips in words, whatever their shape: a count, or counts by direction."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(count)}" for key, count in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " / ".join(number(count) for count in value)
    return number(value)


# --- what the terminal and the page share


def _models(report: Row) -> list[tuple[str, dict[str, Any]]]:
    accuracy, others = report["accuracy"] or {}, report.get("models") or {}
    own = {
        "bytes": report["artifact"].get("bytes"),
        "latency_ms": report["latency_ms"],
        "memory_mb": report["memory_mb"],
    }
    found = []
    for name in NAMES:
        facts = own if name == "artifact" else dict(others.get(name) or {})
        if facts or accuracy.get(name) is not None:
            found.append((name, facts | {"accuracy": accuracy.get(name)}))
    return found


def _model_cells(report: Row) -> list[tuple[str, list[str]]]:
    rows = []
    for name, facts in _models(report):
        latency = facts.get("latency_ms") or {}
        times = [f"{number(latency[key], 3)} ms" if latency.get(key) is not None else MISSING for key in ("p50", "p95")]
        memory = MISSING if facts.get("memory_mb") is None else f"{facts['memory_mb']:.0f} MB"
        rows.append((name, [percent(facts["accuracy"]), human_bytes(facts.get("bytes")), *times, memory]))
    return rows


def _check_cells(check: Row) -> list[str]:
    interval = check.get("interval")
    shown = f"[{number(interval[0], 3)}, {number(interval[1], 3)}]" if interval else MISSING
    if check.get("looks") not in (None, 0, 1):
        shown += f" (look {check['looks']})"
    cells = [number(check.get(key), 3) for key in ("measured", "limit", "loss", "bound")]
    return [str(check["name"]), *cells, shown, str(check["verdict"])]


def _conditions(report: Row) -> str:
    shape, runtime = report["shape"] or {}, report.get("runtime") or {}
    device = report["device"]
    where = next(
        (str(device[key]) for key in ("cpu", "name", "model", "host", "machine") if device.get(key)), "this machine"
    )
    told = ", ".join(f"{key} {shape[key]}" for key in ("batch", "sequence", "threads") if shape.get(key) is not None)
    engine = f", {runtime['name']} {runtime.get('version', '')}".rstrip() if runtime.get("name") else ""
    return f"latency and memory: {told}{engine}, measured on {where}"


def _conditions_lines(report: Row) -> list[str]:
    lines = [_conditions(report)]
    real = report.get("latency_real") or {}
    if real.get("p50") is not None and any(model.get("latency_ms") for model in (report.get("models") or {}).values()):
        lines.append(
            "teacher and float student: fp32 in torch (its memory included) where the build ran, at the texts' own"
            f" lengths; there the artifact's p50 is {number(real['p50'], 3)} ms"
        )
    return lines


def _summary(report: Row) -> str:
    counts = {verdict: sum(check["verdict"] == verdict for check in report["checks"]) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    artifact = report["artifact"]
    kind = " ".join(str(artifact[key]) for key in ("format", "scheme") if artifact.get(key))
    return f"{kind}, {human_bytes(artifact.get('bytes'))}. {len(report['checks'])} checks: {told or 'none'}."


def _runtime(report: Row) -> dict[str, Any]:
    runtime = report.get("runtime") or {}
    return {"runtime": f"{runtime.get('name', '')} {runtime.get('version', '')}".strip()} if runtime else {}


def _columns(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
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


# --- the page


_STYLE = """
:root{--bg:#fff;--card:#f6f7f9;--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--teacher:#6e7781;--student:#7fb1f5;
--artifact:#0b62d6;--good:#1a7f4b;--bad:#c62f2f;--open:#9a6300;--good-bg:#dff5e8;--bad-bg:#fde6e4;--open-bg:#fdf0d2}
@media (prefers-color-scheme:dark){:root{--bg:#0f1318;--card:#171d24;--ink:#e4e8ee;--soft:#9aa5b1;--line:#2c353f;
--teacher:#8f9aa6;--student:#3f6ea8;--artifact:#6cb0ff;--good:#4cc38a;--bad:#ff7b72;--open:#e3b341;--good-bg:#12291e;
--bad-bg:#331a1a;--open-bg:#2f2612}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:920px;margin:0 auto;padding:32px 20px 64px}
header{display:flex;gap:14px;align-items:center;flex-wrap:wrap}
h1{font-size:26px;margin:0;line-height:1.2;overflow-wrap:anywhere}h2{font-size:17px;margin:0 0 4px}
.lead{color:var(--soft);margin:6px 0 20px}.note{color:var(--soft);font-size:13px;margin:0 0 10px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0 0 16px;
overflow-x:auto;min-width:0}.pair{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(300px,1fr))}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px 6px 0;text-align:right;border-top:1px solid var(--line);white-space:nowrap}
tr:first-child th{border-top:0;color:var(--soft);font-weight:500;font-size:13px}
th:first-child,td:first-child,td.text,th.text{text-align:left}td.text{white-space:normal}
tr.remedy td{border-top:0;padding-top:0;color:var(--soft);white-space:normal;text-align:left}
.badge{display:inline-block;border-radius:99px;padding:1px 10px;font-size:13px;font-weight:600;white-space:nowrap}
header .badge{font-size:15px;padding:4px 14px}.pass{color:var(--good);background:var(--good-bg)}
.fail{color:var(--bad);background:var(--bad-bg)}.open{color:var(--open);background:var(--open-bg)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 16px;margin:8px 0 0;font-size:14px}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}svg{display:block;width:100%;min-width:600px;height:auto;margin:12px 0;font-size:13px}
svg text{fill:var(--ink)}svg .soft{fill:var(--soft)}svg .end{text-anchor:end}svg .mid{text-anchor:middle}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}.limit{stroke:var(--bad);stroke-dasharray:4 3}
.teacher{fill:var(--teacher)}.student{fill:var(--student)}.artifact{fill:var(--artifact)}.good{fill:var(--good)}
.bad{fill:var(--bad)}.mark{stroke:var(--card);stroke-width:2}.range{stroke-width:6;stroke-linecap:round;opacity:.45}
.range.pass,.range.fail,.range.open{stroke:currentColor}g.pass,g.fail,g.open{background:none}.dot{fill:currentColor}
@media print{section{break-inside:avoid}}
"""
_CHECKS_NOTE = "the paired loss and its interval; every check is drawn in units of its own limit"
_SIGNS = {"pass": ("pass", "✓ pass"), "fail": ("fail", "✕ fail"), "not proven": ("open", "? not proven")}


def _badge(verdict: str) -> str:
    kind, text = _SIGNS.get(verdict, ("open", verdict))
    return f'<span class="badge {kind}">{escape(text)}</span>'


def _section(title: str, body: str, note: str = "") -> str:
    told = f"<p class=note>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{told}{body}</section>" if body else ""


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{''.join(rows)}</table>"


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _facts(facts: Any) -> str:
    if not facts:
        return ""
    shown = "".join(f"<dt>{escape(_words(key))}</dt><dd>{escape(_value(key, facts[key]))}</dd>" for key in facts)
    return f"<dl>{shown}</dl>"


def _words(key: str) -> str:
    return str(key).replace("_", " ")


def _value(key: str, value: Any) -> str:
    if key == "bytes" and isinstance(value, int | float):
        return f"{value:,} ({human_bytes(value)})"
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {_value(inner, value[inner])}" for inner in value) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(_value("", item) for item in value) or MISSING
    return number(value)


def _models_table(report: Row) -> str:
    rows = [f"<tr><td>{escape(NAMES[name])}</td>{_cells(cells)}</tr>" for name, cells in _model_cells(report)]
    return _table(["", "accuracy", "size", "p50", "p95", "memory"], rows)


def _checks_table(checks: Sequence[Row]) -> str:
    rows = []
    for check in checks:
        name, *cells, verdict = _check_cells(check)
        rows.append(f"<tr><td>{escape(name)}</td>{_cells(cells)}<td>{_badge(verdict)}</td></tr>")
        if check.get("remedy"):
            rows.append(f"<tr class=remedy><td colspan=7>↳ {escape(str(check['remedy']))}</td></tr>")
    return _table(["check", "measured", "limit", "loss", "bound", "interval", "verdict"], rows)


def _comparisons_table(comparisons: Sequence[Row]) -> str:
    rows = []
    for entry in comparisons:
        figures = [number(entry.get(key), 3) for key in ("loss", "bound", "margin")]
        cells = _cells([str(entry.get("metric")), *figures, flips(entry.get("flips"))])
        verdict = _badge(str(entry["verdict"])) if entry.get("verdict") else MISSING
        rows.append(f"<tr><td>{escape(pair(entry))}</td>{cells}<td>{verdict}</td></tr>")
    return _table(["compared", "metric", "loss", "bound", "margin", "flips", "verdict"], rows) if rows else ""


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 860 {height:g}" role=img aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between low and high: steps of 1, 2 or 5 times a power of ten."""
    import math

    rough = max(high - low, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _scatter(report: Row) -> str:
    """Size to the right, accuracy up; a disc's area is the p50 latency, a ring has none."""
    points = [(name, facts) for name, facts in _models(report) if facts["accuracy"] is not None and facts.get("bytes")]
    if len(points) < 2:
        return ""
    left, right, top, bottom = 70.0, 830.0, 24.0, 250.0
    widest: float = max(facts["bytes"] for _, facts in points) * 1.25
    scores: list[float] = [facts["accuracy"] for _, facts in points]
    room = max(max(scores) - min(scores), 0.01)
    low, high = max(0.0, min(scores) - 0.5 * room), max(scores) + 0.6 * room
    slowest = max((_p50(facts) or 0.0 for _, facts in points), default=0.0)

    def across(count: float) -> float:
        return left + (right - left) * count / widest

    def up(score: float) -> float:
        return bottom - (bottom - top) * (score - low) / (high - low)

    parts = []
    for tick in _ticks(low, high):
        parts += [
            _line(left, up(tick), right, up(tick), "grid"),
            _text(left - 8, up(tick) + 4, percent(tick), "soft end"),
        ]
    for tick in _ticks(0, widest, 6):
        parts.append(_text(across(tick), bottom + 20, human_bytes(tick) if tick else "0", "soft mid"))
    parts += [
        _line(left, bottom, right, bottom, "axis"),
        _text(left, bottom + 44, "to the right: size; upwards: accuracy", "soft"),
    ]
    parts.append(
        _text(right, bottom + 44, "area of a disc: p50 latency" if slowest else "latency: see the table", "soft end")
    )
    for name, facts in sorted(points, key=lambda point: -(_p50(point[1]) or 0.0)):
        x, y, p50 = across(facts["bytes"]), up(facts["accuracy"]), _p50(facts)
        radius = max(6.0, 24.0 * (p50 / slowest) ** 0.5) if p50 and slowest else 7.0
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{name} mark"/>')
        told = f"{NAMES[name]}, {number(p50, 3)} ms" if p50 else NAMES[name]
        late = x > (left + right) / 2
        parts.append(_text(x - radius - 6 if late else x + radius + 6, y + 4, told, "end" if late else ""))
    return _svg(bottom + 54, parts, "size, accuracy and latency of teacher, float student and artifact")


def _p50(facts: Row) -> float | None:
    value = (facts.get("latency_ms") or {}).get("p50")
    return None if value is None else float(value)


def _margins(checks: Sequence[Row]) -> str:
    """Each paired loss and its interval, on an axis in units of the check's own limit."""
    shown = [
        check for check in checks if check.get("interval") and check.get("loss") is not None and check.get("limit")
    ]
    if not shown:
        return ""
    spans: list[float] = [value / check["limit"] for check in shown for value in (*check["interval"], check["loss"])]
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
    for place, check in enumerate(shown):
        y, kind = top + row * (place + 0.5), _SIGNS.get(check["verdict"], ("open", ""))[0]
        begin, end = (across(value / check["limit"]) for value in check["interval"])
        middle = across(check["loss"] / check["limit"])
        parts.append(_text(left - 14, y + 4, _short(str(check["name"]), 36), "end"))
        parts.append(f'<g class="{kind}">{_line(begin, y, end, y, f"range {kind}")}')
        parts.append(f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="5.5" class="dot mark"/></g>')
    return _svg(bottom + 8, parts, "measured losses with their intervals, against their limits")


def _coverage(coverage: Row | None) -> dict[str, Any]:
    """The figures of calibrate.cover in words; empty where there are none."""
    if not coverage:
        return {}
    lengths = coverage["length"]
    outside = sorted(coverage["outside_ranges"].items(), key=lambda entry: (-entry[1], entry[0]))
    told = {
        "prompts": f"{coverage['seen']} calibrate, {coverage['held_out']} verify",
        "tokens (quartiles)": f"calibrate {lengths['seen']}, verify {lengths['held_out']}",
        "verify prompts longer than all others": percent(lengths["longer_share"]),
        "verify words that are new": percent(coverage["vocabulary"]["new_share"]),
        "labels without a calibrate prompt": ", ".join(coverage["labels"]["unseen"]) or "none",
        "layers with activations outside their range": len(outside),
    }
    return told | {f"outside, {name}": f"{share:.4%}" for name, share in outside[:5]}


def _layers(layers: Sequence[Row] | None) -> str:
    worst = sorted(layers or (), key=lambda layer: (-layer["error"], layer["name"]))[:MOST_ROWS]
    if not worst:
        return ""
    left, right, row = 330.0, 780.0, 22.0
    largest = max(layer["error"] for layer in worst) or 1.0
    parts = []
    for place, layer in enumerate(worst):
        y, width = 6 + row * place, max(1.0, (right - left) * layer["error"] / largest)
        parts.append(_text(left - 10, y + 14, _short(str(layer["name"]), 46), "end"))
        parts.append(
            f'<rect x="{left}" y="{y + 3:.1f}" width="{width:.1f}" height="{row - 8}" rx="3" class=artifact />'
        )
        parts.append(_text(left + width + 8, y + 14, number(layer["error"], 3), "soft"))
    hidden = len(layers or ()) - len(worst)
    more = f"<p class=note>and {hidden} layers with less error</p>" if hidden else ""
    return _svg(12 + row * len(worst), parts, "error of each layer") + more


def _confusion(changes: Sequence[Row] | None) -> str:
    ranked = sorted(changes or (), key=lambda entry: (-entry["gained"] - entry["lost"], entry["from"], entry["to"]))
    worst = [entry for entry in ranked if entry["gained"] or entry["lost"]][:MOST_ROWS]
    if not worst:
        return ""
    zero, reach, row = 640.0, 160.0, 22.0
    largest = max(max(entry["gained"], entry["lost"]) for entry in worst)
    parts = []
    for place, entry in enumerate(worst):
        y = 6 + row * place
        parts.append(_text(zero - reach - 40, y + 14, _short(f"{entry['from']} → {entry['to']}", 56), "end"))
        for key, kind, side in (("lost", "good", -1), ("gained", "bad", 1)):
            if not entry[key]:
                continue
            width = reach * entry[key] / largest
            begin = zero - width if side < 0 else zero
            parts.append(
                f'<rect x="{begin:.1f}" y="{y + 3:.1f}" width="{width:.1f}" height="{row - 8}" class={kind} />'
            )
            anchor = "soft end" if side < 0 else "soft"
            parts.append(_text(zero + side * (width + 8), y + 14, number(entry[key]), anchor))
    parts.append(_line(zero, 4, zero, 8 + row * len(worst), "axis"))
    return _svg(14 + row * len(worst), parts, "confusions that changed")


def _short(text: str, most: int) -> str:
    """The end of a long name says most: the beginning gives way."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
