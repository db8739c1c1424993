"""The page of a report: one HTML file with inline SVG and its style in it, which fetches and runs nothing.

page.html.jinja says what stands where, page.css how it looks; here is what they show. Texts are escaped by
jinja2, charts (report_charts) come escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from edgekit import __version__
from edgekit.evidence import Check, Comparison, Coverage, PromptFacts, Report
from edgekit.report import (
    ACCURACY_ONLY,
    CHECK_NOTE,
    MODEL_HEAD,
    SCOPE_HEAD,
    VERDICTS,
    baseline_lines,
    conditions_lines,
    control_lines,
    model_cells,
    model_figures,
    runtime_text,
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
from edgekit.report.recovery import RUNG_HEAD, TRIED_HEAD, ladder_lines, recovery_heading, rung_cells, tried_cells
from edgekit.typed_json import to_table
from edgekit.workspace import write_atomically

TEMPLATE, STYLE = "page.html.jinja", "page.css"
CHECK_HEAD = ("check", "measured", "loss", "bound", "limit", "interval", "verdict")
COMPARED_HEAD = ("compared", "metric", "loss", "bound", "margin", "flips", "verdict")
SIGNS = {"pass": "✓ pass", "fail": "✕ fail", "not proven": "? not proven"}
# CPU features that INT8 and half-precision products use.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "asimdhp", "sve", "sve2")


class Row(TypedDict):
    """A row of a table; with a verdict ("" where there is none) it has a badge as its last cell."""

    cells: Sequence[str]
    verdict: str | None
    remedy: str


class Fact(TypedDict):
    """An entry of a list of facts; of a long list of CPU features, `short` has the ones that count."""

    name: str
    value: str
    short: str


def write_html(report: Report, path: Path, *, recipe: str | None = None) -> None:
    """Write the report as one self-contained HTML file, light and dark; equal reports are equal bytes.

    recipe: the name of the recipe that it is about, for the title.
    """
    write_atomically(path, draw(report, recipe=recipe))


def draw(report: Report, *, recipe: str | None = None) -> str:
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
    charts = {name: Markup(picture) for name, picture in _charts(report).items()}  # noqa: S704 - escaped where it is drawn
    style = Markup((folder / STYLE).read_text(encoding="utf-8"))  # noqa: S704 - edgekit's own file
    return pages.get_template(TEMPLATE).render(_shown(report, recipe), charts=charts, style=style)


def _charts(report: Report) -> dict[str, str]:
    return {
        "sizes": scatter(model_figures(report), "p50 latency"),
        "margins": margins(report.checks),
        "layers": layers(report.layers),
        "confusion": confusion(report.confusion or ()),
    }


def _shown(report: Report, recipe: str | None) -> dict[str, object]:
    """The texts of the page, by the names that the template uses."""
    return {
        "version": __version__,
        "kinds": KINDS,
        "signs": SIGNS,
        "missing": MISSING,
        "title": _title(report, recipe),
        "verdict": report.verdict,
        "verdict_text": verdict_text(report),
        "only": ACCURACY_ONLY if report.accuracy_only else "",
        "summary": _summary(report),
        "first": [*baseline_lines(report), *control_lines(report)],
        "models": {"head": MODEL_HEAD, "rows": [_row(cells) for cells in model_cells(report)]},
        "conditions": conditions_lines(report),
        "checks": {
            "head": CHECK_HEAD,
            "rows": [_check_row(check) for check in report.checks],
            "note": f"{CHECK_NOTE}; edgekit explain CHECK says what a check proves",
        },
        "recovery": _recovery(report),
        "generation": _facts(_generated(report)),
        "compared": {"head": COMPARED_HEAD, "rows": [_compared_row(entry) for entry in report.comparisons]},
        "scope": {"head": SCOPE_HEAD, "rows": [_row(cells) for cells in scope_cells(report)]},
        "coverage": _facts(_coverage(report.coverage)),
        "data": _facts(_data(report.data)),
        "notes": report.notes,
        "artifact": _facts(to_table(report.artifact)),
        "device": _facts({**report.device, "runtime": runtime_text(report)}),
    }


def _title(report: Report, recipe: str | None) -> str:
    if recipe and report.target:
        return f"{recipe} for {report.target}"
    return recipe or (f"edgekit report for {report.target}" if report.target else "edgekit report")


def _summary(report: Report) -> str:
    counts = {verdict: sum(check.verdict == verdict for check in report.checks) for verdict in VERDICTS}
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    artifact = report.artifact
    kind = f"{artifact.format} {artifact.scheme}, {human_bytes(artifact.bytes)}"
    return f"{kind}. {len(report.checks)} checks: {verdicts or 'none'}."


def _recovery(report: Report) -> dict[str, object]:
    """What may be done about a failure, and what was; no rows of other reports."""
    ladder = report.recovery.ladder if report.recovery else None
    return {
        "note": recovery_heading(report),
        "head": RUNG_HEAD,
        "rows": [_row(cells) for cells in rung_cells(report)],
        "tried_head": TRIED_HEAD,
        "tried": [_row(cells) for cells in tried_cells(ladder)] if ladder else [],
        "lines": ladder_lines(ladder) if ladder else [],
    }


def _row(cells: Sequence[str], verdict: str | None = None, remedy: str = "") -> Row:
    return {"cells": cells, "verdict": verdict, "remedy": remedy}


def _check_row(check: Check) -> Row:
    *cells, interval = check_figures(check)
    if check.looks > 1:
        interval += f" (look {check.looks})"
    return _row([check.name, *cells, interval], check.verdict, check.remedy or "")


def _compared_row(entry: Comparison) -> Row:
    figures = [lost(entry.metric, value, " points") for value in (entry.loss, entry.bound, entry.margin)]
    return _row([pair(entry), entry.metric, *figures, flips(entry.flips) or MISSING], entry.verdict or "")


def _facts(facts: Mapping[str, object]) -> list[Fact]:
    return [
        {"name": words(key), "value": _value(key, value), "short": _features(value) if key == "features" else ""}
        for key, value in facts.items()
        if value is not None
    ]


def _features(features: object) -> str:
    """The CPU features that count for products of integers."""
    if not isinstance(features, list):
        return ""
    first = [name for name in FEATURES if name in features]
    return f"{', '.join(first) or 'none for INT8'} ({len(features)} in all)"


def _value(key: str, value: object) -> str:
    if key == "bytes" and isinstance(value, int | float):
        return f"{value:,} ({human_bytes(value)})"
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {_value(inner, value[inner])}" for inner in value) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(_value("", item) for item in value) or MISSING
    return number(value)


def _generated(report: Report) -> dict[str, object]:
    """What a decoder's report has besides: likelihoods, speed of prompts and of new tokens."""
    figures = {
        "kl": to_table(report.kl) if report.kl else None,
        "top1": report.top1,
        "perplexity": report.perplexity,
        "ttft_ms": report.ttft_ms,
        "tokens_per_second": to_table(report.tokens_per_second) if report.tokens_per_second else None,
    }
    return figures | (to_table(report.generation) if report.generation else {})


def _data(data: PromptFacts | None) -> dict[str, object]:
    """The rows of each split, and what was left out of them, in words; empty where nobody knows."""
    if data is None:
        return {}
    return {
        "rows": ", ".join(f"{count} {name}" for name, count in data.rows.items()),
        "labels": data.labels or None,
        "left out or unusual": "; ".join(data.notes) or "nothing",
    }


def _coverage(coverage: Coverage | None) -> dict[str, object]:
    """The figures of calibrate.cover in words; empty where there are none."""
    if coverage is None:
        return {}
    lengths = coverage.length
    outside = sorted(coverage.outside_ranges.items(), key=lambda entry: (-entry[1], entry[0]))
    figures = {
        "prompts": f"{coverage.seen} calibrate, {coverage.held_out} verify",
        "tokens (quartiles)": f"calibrate {list(lengths.seen)}, verify {list(lengths.held_out)}",
        "verify prompts longer than all others": percent(lengths.longer_share),
        "verify words that are new": percent(coverage.vocabulary.new_share),
        "labels without a calibrate prompt": ", ".join(coverage.labels.unseen) or "none",
        "layers with activations outside their range": len(outside),
    }
    return figures | {f"outside, {name.removesuffix('#0')}": share(part) for name, part in outside[:5]}
