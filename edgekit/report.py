"""Report: what verify measured, as a terminal table and as one HTML file with inline SVG, without scripts.

Beside the stable names of report.json these keys are shown where they are there:
recipe, target: names. models: {teacher | student: {bytes, at: [{sequence, threads, p50, p95}], memory_mb, busy}}: their
latency is shown where they were timed at the artifact's shape; busy, also at the top for the artifact: the load average then.
scope: figures of out-of-scope detection by model. layers: [{name, error}], each layer's squared error as a share of its
output's power. confusion: [{from, to, gained, lost}], `from` being the right label and `to` the answer: mistakes that the
artifact makes and its float student does not, and the other way round. notes: [text].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from edgekit import __version__
from edgekit.errors import EdgekitError
from edgekit.report_charts import KINDS, confusion, layers, margins, scatter
from edgekit.report_figures import (
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
from edgekit.report_table import CHECK_NOTE, WIDTH, check_lines, columns
from edgekit.schema import read_json
from edgekit.workspace import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "flips",
    "human_bytes",
    "number",
    "pair",
    "percent",
    "read_report",
    "scope_cells",
    "terminal_table",
    "verdict_text",
    "write_html",
]

VERDICTS = ("pass", "fail", "not proven")
NAMES = {"teacher": "teacher", "student": "float student", "artifact": "artifact"}
REQUIRED = ("verdict", "checks", "accuracy", "comparisons", "latency_ms", "shape", "memory_mb", "artifact", "device")
CHECK_HEAD = ("check", "measured", "loss", "bound", "limit", "interval", "verdict")
MODEL_HEAD = ("", "accuracy", "size", "p50", "p95", "memory")
COMPARED_HEAD = ("compared", "metric", "loss", "bound", "margin", "flips", "verdict")
SCOPE_HEAD = ("", "in-scope accuracy", "out-of-scope recall", "AUROC")
ACCURACY_ONLY = "accuracy only: the target states no latency limit"
# A load average this far above a measurement's own threads is other programs' work.
BUSY = 0.5
# What is equal where teacher and float student are one model.
SAME = ("bytes", "accuracy", "latency_ms")

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
    """The models and the checks in lines of plain text, at most `WIDTH` wide but for long names."""
    lines = columns([MODEL_HEAD, *_model_cells(report)], left=1)
    for told in [*_generation_lines(report), *_conditions_lines(report)]:
        lines += wrap(told, WIDTH, subsequent_indent="  ")
    for told in scope_lines(report):
        lines += wrap(told, WIDTH, subsequent_indent="  ")
    return [*lines, "", *check_lines(report["checks"])]


def verdict_text(report: Row) -> str:
    """The verdict, and where the target states no latency limit, that it is of the accuracy only."""
    return f"{report['verdict']} ({ACCURACY_ONLY})" if report.get("accuracy_only") else str(report["verdict"])


def write_html(report: Row, path: Path) -> None:
    """Write the report as one self-contained HTML file, light and dark; equal reports are equal bytes."""
    title = _title(report)
    page = (
        '<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,'
        f' initial-scale=1"><meta name=color-scheme content="light dark">'
        f'<meta name=generator content="edgekit {escape(__version__)}">\n'
        f"<title>{escape(title)}: {escape(verdict_text(report))}</title>\n<style>{_STYLE}</style>\n<main>\n"
        + "\n".join(part for part in _parts(report, title) if part)
        + f"\n<footer>edgekit {escape(__version__)}</footer>\n</main></html>\n"
    )
    write_atomically(path, page)


# --- what the terminal and the page share


def _models(report: Row) -> list[dict[str, Any]]:
    """What is known of each model; teacher and float student are one where no student was made."""
    accuracy, others = report["accuracy"] or {}, report.get("models") or {}
    own = {
        "bytes": report["artifact"].get("bytes"),
        "latency_ms": report["latency_ms"],
        "memory_mb": report["memory_mb"],
        "busy": report.get("busy"),
        "threads": (report["shape"] or {}).get("threads"),
    }
    found = []
    for role, name in NAMES.items():
        facts = own if role == "artifact" else _alike(others.get(role) or {}, report["shape"] or {})
        if facts or accuracy.get(role) is not None:
            facts |= {"accuracy": accuracy.get(role), "latency_ms": facts.get("latency_ms") or {}}
            found.append(facts | {"role": role, "name": name, "bytes": facts.get("bytes")})
    floats = [model for model in found if model["role"] != "artifact"]
    if len(floats) == 2 and floats[0]["bytes"] and all(floats[0][key] == floats[1][key] for key in SAME):
        found = [floats[1] | {"name": "float model"}, *found[2:]]
    return found


def _alike(facts: Row, shape: Row) -> dict[str, Any]:
    """A float model's figures with its latency at the artifact's shape, and without any where it was not timed at that."""
    keys = ("sequence", "threads")
    at = [one for one in facts.get("at") or () if all(one.get(key) == shape.get(key) for key in keys)]
    return {**facts, "latency_ms": {key: at[0][key] for key in ("p50", "p95")} if at else {}}


def _model_cells(report: Row) -> list[list[str]]:
    rows = []
    for model in _models(report):
        times = [model["latency_ms"].get(key) for key in ("p50", "p95")]
        shown = [MISSING if time is None else f"{number(time, 3)} ms" for time in times]
        memory = MISSING if model.get("memory_mb") is None else f"{model['memory_mb']:.0f} MB"
        rows.append([model["name"], percent(model["accuracy"]), human_bytes(model["bytes"]), *shown, memory])
    return rows


def _generation_lines(report: Row) -> list[str]:
    """Of a decoder: speed and perplexity, in words; nothing of others."""
    if "tokens_per_second" not in report:
        return []
    rates, first = report["tokens_per_second"], report["ttft_ms"]
    ordered = sorted(first.items(), key=lambda one: int(one[0]))
    told = ", ".join(f"{number(time, 3)} ms after {length} tokens" for length, time in ordered)
    likely = ", ".join(f"{name} {number(value, 4)}" for name, value in report["perplexity"].items())
    return [
        f"p50 and p95 are of one new token; {number(rates['decode'], 3)} tokens/s written, {number(rates['prefill'], 3)} read",
        f"first token: {told}; perplexity: {likely}",
    ]


def scope_cells(report: Row) -> list[list[str]]:
    """Of each model that rejects texts of no class: its name, in-scope accuracy, recall of those texts, and AUROC."""
    return [
        [
            NAMES[role],
            percent(figures["in_scope_accuracy"]),
            percent(figures["out_of_scope_recall"]),
            number(figures["auroc"], 3),
        ]
        for role, figures in (report.get("scope") or {}).items()
        if figures
    ]


def scope_lines(report: Row) -> list[str]:
    """The same in words, a line for each model."""
    return [
        f"{name}: {inside} right of what has a class, {recall} of what has none rejected, AUROC {auroc}"
        for name, inside, recall, auroc in scope_cells(report)
    ]


def _check_cells(check: Row) -> list[str]:
    *cells, interval = check_figures(check)
    if check.get("looks") not in (None, 0, 1):
        interval += f" (look {check['looks']})"
    return [str(check["name"]), *cells, interval, str(check["verdict"])]


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
    models = [model for model in _models(report) if model["role"] != "artifact"]
    timed, others = ([model["name"] for model in models if bool(model["latency_ms"]) is has] for has in (True, False))
    if timed:
        lines.append(
            f"{_and(timed)}: fp32 in torch (its memory included), one process where the build ran, as many tokens and threads"
        )
    if others:
        lines.append(f"{_and(others)}: not timed with as many tokens and threads")
    real = report.get("latency_real") or {}
    if real.get("p50") is not None:
        mean = f" (mean {real['mean_tokens']:.0f} tokens)" if real.get("mean_tokens") else ""
        lines.append(f"at the texts' own lengths{mean} the artifact's p50 is {number(real['p50'], 3)} ms")
    lines += _processes(report)
    busy = [model for model in _models(report) if (model.get("busy") or 0.0) > (model.get("threads") or 1) + BUSY]
    if busy:
        names = _and(f"{model['name']} (load {model['busy']:.1f})" for model in busy)
        verb = "was" if len(busy) == 1 else "were"
        lines.append(f"the machine was busy when {names} {verb} measured: times are upper bounds")
    return lines


def _processes(report: Row) -> list[str]:
    """How many processes the artifact's times are of, and what machine may vouch for the target."""
    own, several = report.get("latency_processes_ms") or [], int(report.get("measurement") or 1)
    found = []
    if own:
        told = f"{len(own)} processes" if len(own) > 1 else "one process: its times are shown and not judged"
        more = f", judged together with those of {several - 1} earlier measurement(s)" if several > 1 else ""
        found.append(f"the artifact's times are of {told}{more}")
    if report.get("disturbed"):
        found.append(f"the machine was busy or slowed: {'; '.join(report['disturbed'])}")
    if told_ := (report.get("vouches") or {}).get("told"):
        found.append(str(told_))
    return found


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _summary(report: Row) -> str:
    counts = {verdict: sum(check["verdict"] == verdict for check in report["checks"]) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    artifact = report["artifact"]
    kind = " ".join(str(artifact[key]) for key in ("format", "scheme") if artifact.get(key))
    return f"{kind}, {human_bytes(artifact.get('bytes'))}. {len(report['checks'])} checks: {told or 'none'}."


def _runtime(report: Row) -> dict[str, Any]:
    runtime = report.get("runtime") or {}
    return {"runtime": f"{runtime.get('name', '')} {runtime.get('version', '')}".strip()} if runtime else {}


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
footer{color:var(--soft);font-size:13px}
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
dl{display:grid;grid-template-columns:minmax(0,max-content) minmax(45%,1fr);gap:3px 16px;
margin:8px 0 0;font-size:14px}dt{color:var(--soft);overflow-wrap:anywhere}
summary{cursor:pointer}header .note{margin:0}table~.note{margin:8px 0 0}
dd{margin:0;overflow-wrap:anywhere}svg{display:block;width:100%;min-width:600px;height:auto;margin:12px 0;font-size:13px}
svg text{fill:var(--ink)}svg .soft{fill:var(--soft)}svg .end{text-anchor:end}svg .mid{text-anchor:middle}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}.limit{stroke:var(--bad);stroke-dasharray:4 3}
.teacher{fill:var(--teacher)}.student{fill:var(--student)}.artifact{fill:var(--artifact)}.good{fill:var(--good)}
.bad{fill:var(--bad)}
.disc{fill-opacity:.3;stroke-width:2}.disc.teacher{stroke:var(--teacher)}.disc.student{stroke:var(--student)}
.disc.artifact{stroke:var(--artifact)}.mark{stroke:var(--card);stroke-width:2}.range{stroke-width:6;stroke-linecap:round;opacity:.45}
.range.pass,.range.fail,.range.open{stroke:currentColor}g.pass,g.fail,g.open{background:none}.dot{fill:currentColor}
.wide{overflow-x:auto}
@media (max-width:600px){main{padding:20px 12px 48px}section{padding:14px 12px}table,tbody,tr,td{display:block}
tr{border-top:1px solid var(--line);padding:6px 0}tr:first-child{display:none}tr.remedy{border-top:0;padding-top:0}
td,td:first-child{display:flex;justify-content:space-between;gap:12px;border:0;padding:2px 0;white-space:normal;
overflow-wrap:anywhere;text-align:right}td:first-child{font-weight:600}td[data-head]::before{content:attr(data-head);
color:var(--soft);font-weight:400}tr.remedy td{display:block;text-align:left;font-weight:400}}
@media print{section{break-inside:avoid}}
"""
_CHECKS_NOTE = "the loss and its interval on the same prompts, in units of each check's own limit"
_SIGNS = {"pass": "✓ pass", "fail": "✕ fail", "not proven": "? not proven"}
# CPU features that INT8 and half-precision products use.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "asimdhp", "sve", "sve2")


def _title(report: Row) -> str:
    recipe, target = (str(report[key]) if report.get(key) else "" for key in ("recipe", "target"))
    if recipe and target:
        return f"{recipe} for {target}"
    return recipe or (f"edgekit report for {target}" if target else "edgekit report")


def _parts(report: Row, title: str) -> list[str]:
    models = _models_table(report) + "".join(f"<p class=note>{escape(told)}</p>" for told in _conditions_lines(report))
    only = f"<span class=note>{ACCURACY_ONLY}</span>" if report.get("accuracy_only") else ""
    return [
        f"<header><h1>{escape(title)}</h1>{_badge(str(report['verdict']))}{only}</header>",
        f"<p class=lead>{escape(_summary(report))}</p>",
        _section("Size, accuracy, latency", models + _wide(scatter(_points(report), "p50 latency"))),
        _section("Checks", _wide(margins(report["checks"])) + _checks_table(report["checks"]), _CHECKS_NOTE),
        _section("Generation", _facts(_generated(report))),
        _section("Compared on the same prompts", _comparisons_table(report["comparisons"])),
        _section("Out of scope", _scope_table(report)),
        _section(
            "Error of each layer",
            _wide(layers(report.get("layers"))),
            "share of the output's power that the layer gets wrong (its inputs' errors included), worst first",
        ),
        _section(
            "Changed confusions",
            _wide(confusion(report.get("confusion"))),
            "right label → answer, in prompts: mistakes of the float student that are gone (left), new ones (right)",
        ),
        _section("How the calibration covers these prompts", _facts(_coverage(report.get("coverage")))),
        _section("The data", _facts(_data(report.get("data")))),
        _section("Notes", "".join(f"<p>{escape(str(note))}</p>" for note in report.get("notes") or ())),
        "<div class=pair>",
        _section("Artifact", _facts(report["artifact"])),
        _section("Device that measured", _facts(report["device"] | _runtime(report))),
        "</div>",
    ]


def _generated(report: Row) -> dict[str, Any]:
    """What a decoder's report has besides: likelihoods, speed of prompts and of new tokens."""
    keys = ("kl", "top1", "perplexity", "ttft_ms", "tokens_per_second")
    return {key: report[key] for key in keys if key in report} | dict(report.get("generation") or {})


def _points(report: Row) -> list[dict[str, Any]]:
    """The models for the chart; their latencies are of one shape."""
    return [model | {"p50": model["latency_ms"].get("p50")} for model in _models(report)]


def _badge(verdict: str) -> str:
    return f'<span class="badge {KINDS.get(verdict, "open")}">{escape(_SIGNS.get(verdict, verdict))}</span>'


def _section(title: str, body: str, note: str = "") -> str:
    told = f"<p class=note>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{told}{body}</section>" if body else ""


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{''.join(rows)}</table>"


def _cells(cells: Sequence[str], head: Sequence[str]) -> str:
    """Cells that name their column, which a narrow screen shows beside each of them."""
    return "".join(
        f'<td data-head="{escape(name)}">{escape(cell)}</td>' for name, cell in zip(head, cells, strict=False)
    )


def _wide(picture: str) -> str:
    """A picture that scrolls in a box of its own where the screen is narrower."""
    return picture and f"<div class=wide>{picture}</div>"


def _facts(facts: Any) -> str:
    if not facts:
        return ""
    shown = "".join(
        f"<dt>{escape(words(key))}</dt><dd>{_features(value) if key == 'features' else escape(_value(key, value))}</dd>"
        for key, value in facts.items()
        if value is not None
    )
    return f"<dl>{shown}</dl>"


def _features(features: Any) -> str:
    """The CPU features that count for products of integers; all of them on a click."""
    if not isinstance(features, list):
        return escape(_value("features", features))
    first = [name for name in _FEATURES if name in features]
    told = f"{', '.join(first) or 'none for INT8'} ({len(features)} in all)"
    return f"<details><summary>{escape(told)}</summary>{escape(_value('features', features))}</details>"


def _value(key: str, value: Any) -> str:
    if key == "bytes" and isinstance(value, int | float):
        return f"{value:,} ({human_bytes(value)})"
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {_value(inner, value[inner])}" for inner in value) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(_value("", item) for item in value) or MISSING
    return number(value)


def _models_table(report: Row) -> str:
    rows = [f"<tr>{_cells(cells, MODEL_HEAD)}</tr>" for cells in _model_cells(report)]
    return _table(MODEL_HEAD, rows)


def _scope_table(report: Row) -> str:
    rows = [f"<tr>{_cells(cells, SCOPE_HEAD)}</tr>" for cells in scope_cells(report)]
    return _table(SCOPE_HEAD, rows) if rows else ""


def _checks_table(checks: Sequence[Row]) -> str:
    rows = []
    for check in checks:
        *cells, verdict = _check_cells(check)
        rows.append(f"<tr>{_cells(cells, CHECK_HEAD)}<td data-head=verdict>{_badge(verdict)}</td></tr>")
        if check.get("remedy"):
            rows.append(f"<tr class=remedy><td colspan=7>↳ {escape(str(check['remedy']))}</td></tr>")
    return _table(CHECK_HEAD, rows) + f"<p class=note>{CHECK_NOTE}</p>" if rows else ""


def _comparisons_table(comparisons: Sequence[Row]) -> str:
    rows = []
    for entry in comparisons:
        metric = str(entry.get("metric"))
        figures = [lost(metric, entry.get(key), " points") for key in ("loss", "bound", "margin")]
        cells = _cells([pair(entry), metric, *figures, flips(entry.get("flips"))], COMPARED_HEAD)
        verdict = _badge(str(entry["verdict"])) if entry.get("verdict") else MISSING
        rows.append(f"<tr>{cells}<td data-head=verdict>{verdict}</td></tr>")
    return _table(COMPARED_HEAD, rows) if rows else ""


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
