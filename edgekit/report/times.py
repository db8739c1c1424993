"""What a report says of times beside the judged ones, in lines of text."""

from __future__ import annotations

from edgekit.evidence import Report
from edgekit.report.figures import number
from edgekit.times import Comparable, Conditions, Moment, Roofline, Sustained, Tuning


def times_lines(report: Report) -> list[str]:
    """The bounds, the start, what was asked for beside the limits, and whether all that may be compared with others' times."""
    lines = []
    latency = report.latency_ms
    if latency.bounds is not None and any(end is not None for ends in latency.bounds.values() for end in ends):
        bounds = ", ".join(
            f"{key} {number(getattr(latency, key), 3)} ms [{', '.join(number(end, 3) for end in ends)}]"
            for key, ends in latency.bounds.items()
        )
        lines.append(f"with bounds over the processes: {bounds}")
    if latency.first_ten:
        cold = (
            ""
            if latency.cold is None
            else f"; {number(latency.cold, 3)} ms from the process's start to its first answer"
        )
        shown = ", ".join(number(time, 3) for time in latency.first_ten)
        lines.append(f"opened in {number(latency.load, 3)} ms; the first ten calls: {shown} ms{cold}")
    call = "a new token" if report.tokens_per_second else "a call"
    for what, roofline in ((call, report.roofline), ("the longest prompt", report.roofline_prompt)):
        if roofline is not None and roofline.note is not None:
            lines.append(roofline_line(what, roofline))
    if report.sustained is not None:
        lines.append(sustained_line(report.sustained))
    if report.tuning is not None:
        lines.append(tuning_line(report.tuning))
    if report.comparable is not None:
        lines += comparable_lines(report.comparable)
    return lines


def roofline_line(what: str, roofline: Roofline) -> str:
    """What the machine's own speeds predict, what was measured, and why both differ."""
    limit = {"compute": "its products", "memory": "reading its weights", "dispatch": "calling its operators"}
    return (
        f"{what} at {roofline.ratio:.2f} x the speed that the machine's own predict: {number(roofline.predicted_ms, 3)} ms for"
        f" {limit[roofline.bound]}, {number(roofline.measured_ms, 3)} ms measured ({roofline.note})"
    )


def sustained_line(sustained: Sustained) -> str:
    """How calls without a pause held out, against those after a rest."""
    heat = [moment.temperature_c for moment in sustained.curve if moment.temperature_c is not None]
    clock = [moment.clock_mhz for moment in sustained.curve if moment.clock_mhz is not None]
    told = f", {heat[0]:.0f} to {max(heat):.0f} °C" if heat else ", no temperature told"
    told += f", {clock[0]:.0f} to {clock[-1]:.0f} MHz" if clock else ""
    told += "; heat or the power supply lowered its clock" if sustained.throttled else ""
    return (
        f"sustained for {number(sustained.seconds, 3)} s: p50 {number(sustained.last_p50, 3)} ms at the end,"
        f" {sustained.slowdown:.2f} x that of a burst after rest ({number(sustained.burst_p50, 3)} ms){told}"
    )


def tuning_line(tuning: Tuning) -> str:
    """The best setting, and what the others take."""
    tried = ", ".join(f"{_setting(it.threads, it.cpus)} {number(it.p50, 3)} ms" for it in tuning.tried)
    return f"best setting here: {_setting(tuning.best.threads, tuning.best.cpus)} (p50: {tried})"


def comparable_lines(found: Comparable) -> list[str]:
    """Whether the times may be compared with others', and the record that answers for it."""
    ran = "not told" if found.sha256 is None else f"sha256 {found.sha256[:12]}..."
    record = [found.start, f"spread over processes {found.spread:.2f} x", f"what ran: {ran}"]
    if (shown := _conditions(found.before)) != "nothing told":
        record.append(f"before {shown}, after {_conditions(found.after)}")
    load = {key: value for key, value in found.load.items() if value is not None}
    record += [f"{key} {value:.2f}" for key, value in load.items() if key != "stepped"]
    if found.answers is not None:
        record.append(
            f"{found.answers.tokens} tokens answered, {found.answers.stopped} answers ended by themselves, {found.answers.cut} by"
            " their limit; no seed, the likeliest token"
        )
    answer = "yes" if found.comparable == "yes" else f"no ({'; '.join(found.reasons)})"
    return [f"comparable with other measurements: {answer}", f"its record: {', '.join(record)}"]


def curve_cells(sustained: Sustained) -> list[list[str]]:
    """The curve as a table: seconds, calls, p50, p95, temperature, clock."""

    def cells(moment: Moment) -> list[str]:
        heat, clock = moment.temperature_c, moment.clock_mhz
        figures = [moment.seconds, moment.calls, moment.p50, moment.p95, heat, clock]
        return [number(figure, 3) for figure in figures]

    return [cells(moment) for moment in sustained.curve]


def _setting(threads: int, cpus: tuple[int, ...] | None) -> str:
    where = "" if cpus is None else f" on cores {', '.join(map(str, cpus))}"
    return f"{threads} thread{'s' if threads > 1 else ''}{where}"


def _conditions(state: Conditions | None) -> str:
    if state is None:
        return "nothing told"
    told = [
        None if state.temperature_c is None else f"{state.temperature_c:.0f} °C",
        None if state.clock_mhz is None else f"{state.clock_mhz:.0f} MHz",
        state.governor,
        state.power,
    ]
    return " ".join(word for word in told if word) or "nothing told"
