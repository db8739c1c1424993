"""Report: what verify measured, in rows and lines of text, which the terminal (cli) and the page (report.page) show.

Beside the stable names of report.json these keys are shown where they are there:
recipe, target: names. models: {teacher | student: {bytes, at: [{sequence, threads, p50, p95}], memory_mb, busy}}: their
latency is shown where they were timed at the artifact's shape; busy, also at the top for the artifact: the load average then.
scope: figures of out-of-scope detection by model. layers: [{name, error}], each layer's squared error as a share of its
output's power. confusion: [{from, to, gained, lost}], `from` being the right label and `to` the answer: mistakes that the
artifact makes and its float student does not, and the other way round. notes: [text].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.report.figures import MISSING, human_bytes, number, percent
from edgekit.schema import read_json

if TYPE_CHECKING:
    from pathlib import Path

VERDICTS = ("pass", "fail", "not proven")
NAMES = {"teacher": "teacher", "student": "float student", "artifact": "artifact"}
REQUIRED = ("verdict", "checks", "accuracy", "comparisons", "latency_ms", "shape", "memory_mb", "artifact", "device")
CHECK_NOTE = "bound: the worst that the measurement leaves possible; a check passes where its bound is within its limit"
MODEL_HEAD = ("", "accuracy", "size", "p50", "p95", "memory")
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


def verdict_text(report: Row) -> str:
    """The verdict, and where the target states no latency limit, that it is of the accuracy only."""
    return f"{report['verdict']} ({ACCURACY_ONLY})" if report.get("accuracy_only") else str(report["verdict"])


def model_facts(report: Row) -> list[dict[str, Any]]:
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


def model_cells(report: Row) -> list[list[str]]:
    """The rows below MODEL_HEAD."""
    rows = []
    for model in model_facts(report):
        times = [model["latency_ms"].get(key) for key in ("p50", "p95")]
        shown = [MISSING if time is None else f"{number(time, 3)} ms" for time in times]
        memory = MISSING if model.get("memory_mb") is None else f"{model['memory_mb']:.0f} MB"
        rows.append([model["name"], percent(model["accuracy"]), human_bytes(model["bytes"]), *shown, memory])
    return rows


def generation_lines(report: Row) -> list[str]:
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


def _conditions(report: Row) -> str:
    shape, runtime = report["shape"] or {}, report.get("runtime") or {}
    device = report["device"]
    where = next(
        (str(device[key]) for key in ("cpu", "name", "model", "host", "machine") if device.get(key)), "this machine"
    )
    told = ", ".join(f"{key} {shape[key]}" for key in ("batch", "sequence", "threads") if shape.get(key) is not None)
    engine = f", {runtime['name']} {runtime.get('version', '')}".rstrip() if runtime.get("name") else ""
    return f"latency and memory: {told}{engine}, measured on {where}"


def conditions_lines(report: Row) -> list[str]:
    """Of what shape, process and machine the times are, and who may vouch for the target."""
    lines = [_conditions(report)]
    models = [model for model in model_facts(report) if model["role"] != "artifact"]
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
    busy = [model for model in model_facts(report) if (model.get("busy") or 0.0) > (model.get("threads") or 1) + BUSY]
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
