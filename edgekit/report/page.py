"""The page of a report: one HTML file with inline SVG and its style in it, which fetches and runs nothing.

page.html.jinja says what stands where, page.css how it looks; here is what they show. Texts are escaped by
jinja2, charts (report_charts) come escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.report import (
    ACCURACY_ONLY,
    CHECK_NOTE,
    MODEL_HEAD,
    SCOPE_HEAD,
    VERDICTS,
    conditions_lines,
    model_cells,
    model_facts,
    scope_cells,
    verdict_text,
)
from edgekit.report.charts import KINDS, confusion, layers, margins, scatter
from edgekit.report.figures import (
    MISSING,
    check_figures,
    flips,
    human_bytes,
    lost,
    number,
    pair,
    percent,
    share,
    words,
)
from edgekit.workspace import write_atomically

TEMPLATE, STYLE = "page.html.jinja", "page.css"
CHECK_HEAD = ("check", "measured", "loss", "bound", "limit", "interval", "verdict")
COMPARED_HEAD = ("compared", "metric", "loss", "bound", "margin", "flips", "verdict")
SIGNS = {"pass": "✓ pass", "fail": "✕ fail", "not proven": "? not proven"}
# CPU features that INT8 and half-precision products use.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "asimdhp", "sve", "sve2")

Row = Mapping[str, Any]


def write_html(report: Row, path: Path) -> None:
    """Write the report as one self-contained HTML file, light and dark; equal reports are equal bytes."""
    write_atomically(path, draw(report))


def draw(report: Row) -> str:
    """The page of a report."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    pages = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    told = {name: Markup(picture) for name, picture in _charts(report).items()}  # noqa: S704 - escaped where it is drawn
    style = Markup((folder / STYLE).read_text(encoding="utf-8"))  # noqa: S704 - edgekit's own file
    return pages.get_template(TEMPLATE).render(_shown(report), charts=told, style=style)


def _charts(report: Row) -> dict[str, str]:
    points = [model | {"p50": model["latency_ms"].get("p50")} for model in model_facts(report)]
    return {
        "sizes": scatter(points, "p50 latency"),
        "margins": margins(report["checks"]),
        "layers": layers(report.get("layers")),
        "confusion": confusion(report.get("confusion")),
    }


def _shown(report: Row) -> dict[str, Any]:
    """The texts of the page, by the names that the template uses."""
    return {
        "version": __version__,
        "kinds": KINDS,
        "signs": SIGNS,
        "missing": MISSING,
        "title": _title(report),
        "verdict": str(report["verdict"]),
        "verdict_text": verdict_text(report),
        "only": ACCURACY_ONLY if report.get("accuracy_only") else "",
        "summary": _summary(report),
        "models": {"head": MODEL_HEAD, "rows": [_row(cells) for cells in model_cells(report)]},
        "conditions": conditions_lines(report),
        "checks": {
            "head": CHECK_HEAD,
            "rows": [_check_row(check) for check in report["checks"]],
            "note": f"{CHECK_NOTE}; edgekit explain CHECK says what a check proves",
        },
        "generation": _facts(_generated(report)),
        "compared": {"head": COMPARED_HEAD, "rows": [_compared_row(entry) for entry in report["comparisons"]]},
        "scope": {"head": SCOPE_HEAD, "rows": [_row(cells) for cells in scope_cells(report)]},
        "coverage": _facts(_coverage(report.get("coverage"))),
        "data": _facts(_data(report.get("data"))),
        "notes": [str(note) for note in report.get("notes") or ()],
        "artifact": _facts(report["artifact"]),
        "device": _facts(report["device"] | _runtime(report)),
    }


def _title(report: Row) -> str:
    recipe, target = (str(report[key]) if report.get(key) else "" for key in ("recipe", "target"))
    if recipe and target:
        return f"{recipe} for {target}"
    return recipe or (f"edgekit report for {target}" if target else "edgekit report")


def _summary(report: Row) -> str:
    counts = {verdict: sum(check["verdict"] == verdict for check in report["checks"]) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    artifact = report["artifact"]
    kind = " ".join(str(artifact[key]) for key in ("format", "scheme") if artifact.get(key))
    return f"{kind}, {human_bytes(artifact.get('bytes'))}. {len(report['checks'])} checks: {told or 'none'}."


def _row(cells: Sequence[str], verdict: str | None = None, remedy: str = "") -> dict[str, Any]:
    """A row of a table; with a verdict ("" where there is none) it has a badge as its last cell."""
    return {"cells": cells, "verdict": verdict, "remedy": remedy}


def _check_row(check: Row) -> dict[str, Any]:
    *cells, interval = check_figures(check)
    if check.get("looks") not in (None, 0, 1):
        interval += f" (look {check['looks']})"
    remedy = str(check["remedy"]) if check.get("remedy") else ""
    return _row([str(check["name"]), *cells, interval], str(check["verdict"]), remedy)


def _compared_row(entry: Row) -> dict[str, Any]:
    metric = str(entry.get("metric"))
    figures = [lost(metric, entry.get(key), " points") for key in ("loss", "bound", "margin")]
    verdict = str(entry["verdict"]) if entry.get("verdict") else ""
    return _row([pair(entry), metric, *figures, flips(entry.get("flips")) or MISSING], verdict)


def _facts(facts: Row) -> list[dict[str, str]]:
    """Entries of a list of facts: name, value and, of a long list of CPU features, the ones that count as `short`."""
    return [
        {"name": words(key), "value": _value(key, value), "short": _features(value) if key == "features" else ""}
        for key, value in facts.items()
        if value is not None
    ]


def _features(features: Any) -> str:
    """The CPU features that count for products of integers."""
    if not isinstance(features, list):
        return ""
    first = [name for name in FEATURES if name in features]
    return f"{', '.join(first) or 'none for INT8'} ({len(features)} in all)"


def _value(key: str, value: Any) -> str:
    if key == "bytes" and isinstance(value, int | float):
        return f"{value:,} ({human_bytes(value)})"
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {_value(inner, value[inner])}" for inner in value) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(_value("", item) for item in value) or MISSING
    return number(value)


def _generated(report: Row) -> dict[str, Any]:
    """What a decoder's report has besides: likelihoods, speed of prompts and of new tokens."""
    keys = ("kl", "top1", "perplexity", "ttft_ms", "tokens_per_second")
    return {key: report[key] for key in keys if key in report} | dict(report.get("generation") or {})


def _runtime(report: Row) -> dict[str, Any]:
    runtime = report.get("runtime") or {}
    return {"runtime": f"{runtime.get('name', '')} {runtime.get('version', '')}".strip()} if runtime else {}


def _data(data: Row | None) -> dict[str, Any]:
    """The rows of each split, and what was left out of them, in words; empty where nobody knows."""
    if not data:
        return {}
    rows = {
        "rows": ", ".join(f"{count} {name}" for name, count in data["rows"].items()),
        "labels": data["labels"] or None,
    }
    return rows | {"left out or unusual": "; ".join(data["notes"]) or "nothing"}


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
    return told | {f"outside, {name.removesuffix('#0')}": share(part) for name, part in outside[:5]}
