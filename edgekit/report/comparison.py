"""One table of several artifacts of a recipe, and which of them to ship to each target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.evidence import Report
from edgekit.report.figures import MISSING, human_bytes, number, percent

HEAD = (
    "target",
    "format",
    "scheme",
    "size",
    "right",
    "KL",
    "top-1",
    "cosine",
    "neighbours",
    "first token",
    "tokens/s",
    "p95",
    "memory",
    "verdict",
)
_ORDER = {"pass": 0, "not proven": 1, "fail": 2}
_OF_TIME = frozenset({"p50_ms", "p95_ms", "p99_ms", "ttft_ms", "tokens_per_second"})
_OF_MACHINE = _OF_TIME | {"memory_mb", "plausibility", "provider", "offload"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to ship to a target, and why; `index` is the report's among those compared."""

    index: int
    target: str
    format: str
    scheme: str
    verdict: str
    reason: str

    def facts(self) -> dict[str, str]:
        """The entry of `ship` in `build --json`, less where it lies."""
        return {key: value for key, value in vars(self).items() if key != "index"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A report in the table: sizes in bytes, times in ms, memory in MiB, shares as fractions; None where it has no such figure.

    first: time to the first token behind the longest prompt timed. rate: new tokens per second. answers: the worst verdict of
    the checks that no machine bears on. is_timed: whether all checks of speed came to a verdict.
    """

    target: str
    format: str
    scheme: str
    bytes: int
    right: float | None
    kl: float | None
    top1: float | None
    cosine: float | None
    neighbours: float | None
    first: float | None
    rate: float | None
    p95: float
    memory: float | None
    verdict: str
    answers: str
    is_timed: bool

    @property
    def proven(self) -> tuple[int, int]:
        """How well it is proven, the best first: as a whole, and of its answers."""
        return _ORDER[self.verdict], _ORDER[self.answers]

    def cells(self) -> tuple[str, ...]:
        """The figures below HEAD."""
        return (
            self.target,
            self.format,
            self.scheme,
            human_bytes(self.bytes),
            percent(self.right),
            number(self.kl, 3),
            percent(self.top1),
            number(self.cosine, 4),
            percent(self.neighbours),
            MISSING if self.first is None else f"{number(self.first, 3)} ms",
            number(self.rate, 3),
            f"{number(self.p95, 3)} ms",
            MISSING if self.memory is None else f"{self.memory:.0f} MB",
            self.verdict,
        )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The reports as rows, and what to ship for each target that has one."""

    rows: Sequence[Row]
    ship: Sequence[Choice]

    def cells(self) -> list[list[str]]:
        """The head and a row for each report; a column that no row fills is left out."""
        filled = [row.cells() for row in self.rows]
        shown = [column for column in range(len(HEAD)) if any(cells[column] != MISSING for cells in filled)]
        return [[cells[column] for column in shown] for cells in (HEAD, *filled)]


def compare(reports: Sequence[Report], written: Sequence[bool] | None = None) -> Compared:
    """Put reports of verify side by side. written: of each, whether its archive was; without it all were.

    To ship is the one with the best verdict; of those, the one whose answers are proven best (a machine that is not the target
    leaves all verdicts open, and says nothing of that); of those, the one that answers fastest (of decoders: writes the most
    tokens a second; else: the lowest p95). What fails is never shipped, nor
    what was not written.
    """
    rows = [_row(report) for report in reports]
    ships = [row.verdict != "fail" and (written is None or written[index]) for index, row in enumerate(rows)]
    chosen = []
    for target in dict.fromkeys(row.target for row in rows):
        among = [index for index, row in enumerate(rows) if row.target == target and ships[index]]
        if among:
            chosen.append(_choose(rows, among))
    return Compared(rows=rows, ship=chosen)


def _choose(rows: Sequence[Row], among: Sequence[int]) -> Choice:
    """The best of the rows at these indices."""
    index = min(among, key=lambda index: (*rows[index].proven, -(rows[index].rate or 0.0), rows[index].p95))
    best = rows[index]
    does = "passes" if best.verdict == "pass" else "does not fail"
    rivals = [rows[rival] for rival in among if rows[rival].verdict == best.verdict]
    fastest = "the fastest" if best.is_timed else "on this machine the fastest"
    if any(row.proven != best.proven for row in rivals):
        reason = "its answers are the best proven"
    else:
        reason = f"{fastest} that {does}" if len(rivals) > 1 else f"the only one that {does}"
    return Choice(
        index=index,
        target=best.target,
        format=best.format,
        scheme=best.scheme,
        verdict=best.verdict,
        reason=reason if len(rows) > 1 else best.verdict,
    )


def _row(report: Report) -> Row:
    judged = {check.name: check.verdict for check in report.checks}
    answers = [verdict for name, verdict in judged.items() if name not in _OF_MACHINE]
    first = report.ttft_ms or {}
    longest = max(first, key=int, default=None)
    kept = {(entry.metric, entry.reference, entry.candidate): entry.score for entry in report.comparisons}
    return Row(
        target=report.target,
        format=report.artifact.format,
        scheme=report.artifact.scheme,
        bytes=report.artifact.bytes,
        right=report.accuracy.get("artifact"),
        kl=report.kl.mean if report.kl else None,
        top1=report.top1,
        cosine=kept.get(("cosine", "student", "artifact")),
        neighbours=kept.get(("neighbours", "student", "artifact")),
        first=first[longest] if longest else None,
        rate=report.tokens_per_second.decode if report.tokens_per_second else None,
        p95=report.latency_ms.p95,
        memory=report.memory_mb,
        verdict=report.verdict,
        answers=max(answers, key=_ORDER.__getitem__, default="pass"),
        is_timed=all(judged[name] != "not proven" for name in _OF_TIME & judged.keys()),
    )
