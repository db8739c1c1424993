"""Report: what verify measured, in rows and lines of text, which the terminal (cli) and the page (report.page) show.

What a report holds is `evidence.Report`; here is how it reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgekit.evidence import FloatModel, Report, Shape
from edgekit.report.figures import MISSING, human_bytes, lost, number, percent
from edgekit.report.times import times_lines

VERDICTS = ("pass", "fail", "not proven")
NAMES = {
    "teacher": "teacher",
    "student": "float student",
    "control": "control, no teacher",
    "artifact": "artifact",
    "linear": "linear baseline",
}
CHECK_NOTE = "bound: the worst that the measurement leaves possible; a check passes where its bound is within its limit"
MODEL_HEAD = ("", "accuracy", "size", "p50", "p95", "memory")
SCOPE_HEAD = ("", "in-scope accuracy", "out-of-scope recall", "AUROC")
ACCURACY_ONLY = "accuracy only: the target states no latency limit"
# A load average this far above a measurement's own threads is other programs' work.
BUSY = 0.5


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """What is known of teacher, float student, the same without teacher, artifact or linear baseline; None where it is not.

    p50, p95: milliseconds at the artifact's shape. busy: the load average while it was timed, by `threads` of its own.
    """

    role: str
    name: str
    accuracy: float | None
    bytes: int | None = None
    p50: float | None = None
    p95: float | None = None
    memory_mb: float | None = None
    busy: float | None = None
    threads: int | None = None

    @property
    def is_timed(self) -> bool:
        """Whether it was timed at the artifact's shape."""
        return self.p50 is not None

    @property
    def is_busy(self) -> bool:
        """Whether other programs worked while it was timed."""
        return (self.busy or 0.0) > (self.threads or 1) + BUSY

    def is_same(self, other: ModelFigures) -> bool:
        """Whether both are one model: no two have size, accuracy and times in common."""
        mine, theirs = ((it.bytes, it.accuracy, it.p50, it.p95) for it in (self, other))
        return bool(self.bytes) and mine == theirs


def verdict_text(report: Report) -> str:
    """The verdict, and where the target states no latency limit, that it is of the accuracy only."""
    return f"{report.verdict} ({ACCURACY_ONLY})" if report.accuracy_only else report.verdict


def model_figures(report: Report) -> list[ModelFigures]:
    """What is known of each model; teacher and float student are one where no student was made."""
    teacher, student = (_float_figures(role, report) for role in ("teacher", "student"))
    floats = [teacher, student]
    if teacher.is_same(student):
        floats = [replace(student, name="float model")]
    if (beside := report.control) is not None:
        right = beside.control if beside.metric == "accuracy" else None
        floats.append(replace(_float_figures("control", report), accuracy=right))
    artifact = ModelFigures(
        role="artifact",
        name=NAMES["artifact"],
        accuracy=report.accuracy.get("artifact"),
        bytes=report.artifact.bytes,
        p50=report.latency_ms.p50,
        p95=report.latency_ms.p95,
        memory_mb=report.memory_mb,
        busy=report.busy,
        threads=report.shape.threads,
    )
    return [*floats, artifact, *_linear_figures(report)]


def _linear_figures(report: Report) -> list[ModelFigures]:
    """Of the linear model that a classifier must be above; none of other reports."""
    line = report.baseline
    if line is None:
        return []
    return [
        ModelFigures(
            role="linear",
            name=NAMES["linear"],
            accuracy=line.accuracy,
            bytes=line.bytes,
            p50=line.p50_ms,
            threads=1,
        )
    ]


def baseline_lines(report: Report) -> list[str]:
    """The artifact against the linear model, in words, and what to do where it is not proven better; nothing of other reports."""
    line = report.baseline
    if line is None:
        return []
    least, most = (lost("accuracy", end) for end in line.interval)
    against = f"{100 * line.difference:+.2f} points against the linear baseline, interval [{least}, {most}]"
    return [against, *([line.note] if line.note else [])]


def control_lines(report: Report) -> list[str]:
    """What the teacher added, in words, and what to do where that is not proven to be anything; of a build without such a control
    run how to have one; nothing of other reports."""
    beside = report.control
    if beside is None:
        return [report.control_offer] if report.control_offer else []
    least, most = (_gained(beside.metric, end).partition(" ")[0] for end in beside.interval)
    added = f"{_gained(beside.metric, beside.difference)} by the teacher, interval [{least}, {most}]"
    both = (
        percent(value) if beside.metric == "accuracy" else number(value) for value in (beside.student, beside.control)
    )
    told = "float student {}, the same without teacher {}".format(*both)
    return [f"{added}: {told}", *([beside.note] if beside.note else [])]


def _gained(metric: str, value: float | None) -> str:
    """A difference with its sign and unit."""
    if value is None:
        return "open"
    return f"{100 * value:+.2f} points" if metric == "accuracy" else f"{value:+.4f} nats a token"


def _float_figures(role: str, report: Report) -> ModelFigures:
    """A float model's figures with its latency at the artifact's shape, and without any where it was not timed at that."""
    figures = ModelFigures(role=role, name=NAMES[role], accuracy=report.accuracy.get(role))
    model = report.models.get(role)
    if model is None:
        return figures
    p50, p95 = _times_at(model, report.shape)
    return replace(
        figures,
        bytes=model.bytes,
        p50=p50,
        p95=p95,
        memory_mb=model.memory_mb,
        busy=model.busy,
        threads=model.threads,
    )


def _times_at(model: FloatModel, shape: Shape) -> tuple[float | None, float | None]:
    asked = (shape.sequence, shape.threads)
    return next(((at.p50, at.p95) for at in model.at if (at.sequence, at.threads) == asked), (None, None))


def model_cells(report: Report) -> list[list[str]]:
    """The rows below MODEL_HEAD."""
    rows = []
    for model in model_figures(report):
        times = [MISSING if time is None else f"{number(time, 3)} ms" for time in (model.p50, model.p95)]
        memory = MISSING if model.memory_mb is None else f"{model.memory_mb:.0f} MB"
        rows.append([model.name, percent(model.accuracy), human_bytes(model.bytes), *times, memory])
    return rows


def generation_lines(report: Report) -> list[str]:
    """Of a decoder: speed and perplexity, in words; nothing of others."""
    rates, first = report.tokens_per_second, report.ttft_ms or {}
    if rates is None:
        return []
    ordered = sorted(first.items(), key=lambda entry: int(entry[0]))
    times = ", ".join(f"{number(time, 3)} ms after {length} tokens" for length, time in ordered)
    likely = ", ".join(f"{role} {number(value, 4)}" for role, value in (report.perplexity or {}).items())
    return [
        f"p50 and p95 are of one new token; {number(rates.decode, 3)} tokens/s written, {number(rates.prefill, 3)} read",
        f"first token: {times}; perplexity: {likely}",
    ]


def scope_cells(report: Report) -> list[list[str]]:
    """Of each model that rejects texts of no class: its name, in-scope accuracy, recall of those texts, and AUROC."""
    return [
        [
            NAMES[role],
            percent(figures["in_scope_accuracy"]),
            percent(figures["out_of_scope_recall"]),
            number(figures["auroc"], 3),
        ]
        for role, figures in (report.scope or {}).items()
        if figures
    ]


def scope_lines(report: Report) -> list[str]:
    """The same in words, a line for each model."""
    return [
        f"{name}: {inside} right of what has a class, {recall} of what has none rejected, AUROC {auroc}"
        for name, inside, recall, auroc in scope_cells(report)
    ]


def _conditions(report: Report) -> str:
    shape, device = report.shape, report.device
    machine = next(
        (str(device[key]) for key in ("cpu", "name", "model", "host", "machine") if device.get(key)), "this machine"
    )
    figures = {"batch": shape.batch, "sequence": shape.sequence, "threads": shape.threads}
    shown = ", ".join(f"{name} {value}" for name, value in figures.items() if value is not None)
    return f"latency and memory: {shown}, {runtime_text(report)}, measured on {machine}"


def runtime_text(report: Report) -> str:
    """The runtime that answered and its version."""
    return f"{report.runtime.name} {report.runtime.version}".strip()


def conditions_lines(report: Report) -> list[str]:
    """Of what shape, process and machine the times are, and who may vouch for the target."""
    lines = [_conditions(report)]
    models = model_figures(report)
    timed, others = (
        [model.name for model in models if model.role in {"teacher", "student", "control"} and model.is_timed is wanted]
        for wanted in (True, False)
    )
    if timed:
        lines.append(
            f"{_and(timed)}: fp32 in torch (its memory included), one process where the build ran, as many tokens and threads"
        )
    if others:
        lines.append(f"{_and(others)}: not timed with as many tokens and threads")
    if report.baseline is not None:
        timed_at = (
            ", one thread, where the build ran" if report.baseline.p50_ms is not None else ", not timed on the device"
        )
        lines.append(f"linear baseline: n-grams of the train split's labels, int8 in onnxruntime{timed_at}")
    if report.latency_real is not None:
        mean = f" (mean {report.latency_real.mean_tokens:.0f} tokens)" if report.latency_real.mean_tokens else ""
        lines.append(f"at the texts' own lengths{mean} the artifact's p50 is {number(report.latency_real.p50, 3)} ms")
    lines += [*_processes(report), *_energy(report), *times_lines(report)]
    busy = [f"{model.name} (load {model.busy:.1f})" for model in models if model.is_busy]
    if busy:
        verb = "was" if len(busy) == 1 else "were"
        lines.append(f"the machine was busy when {_and(busy)} {verb} measured: times are upper bounds")
    return lines


def _processes(report: Report) -> list[str]:
    """How many processes the artifact's times are of, and what machine may vouch for the target."""
    count, earlier = len(report.latency_processes_ms), report.measurement - 1
    lines = []
    if count:
        processes = f"{count} processes" if count > 1 else "one process: its times are shown and not judged"
        more = f", judged together with those of {earlier} earlier measurement(s)" if earlier > 0 else ""
        lines.append(f"the artifact's times are of {processes}{more}")
    if report.disturbed:
        lines.append(f"the machine was busy or slowed: {'; '.join(report.disturbed)}")
    if report.vouches.rule:
        lines.append(report.vouches.rule)
    return lines


def _energy(report: Report) -> list[str]:
    """What a call costs in energy, or why nobody knows."""
    spent, each = report.energy_j, "a new token" if report.tokens_per_second else "a call"
    if spent is None:
        return [f"energy: {report.no_energy}"] if report.no_energy else []
    return [f"energy: {number(spent.net, 3)} J {each} above idle, {number(spent.gross, 3)} J with it ({spent.method})"]


def _and(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
