"""One table of several artifacts of a recipe, and which of them to ship to each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
_OF_TIME = frozenset({"p50_ms", "p95_ms", "ttft_ms", "tokens_per_second"})
_OF_MACHINE = _OF_TIME | {"memory_mb", "plausibility", "provider", "offload"}

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to ship to a target, and why; `place` is the report's among those compared."""

    place: int
    target: str
    format: str
    scheme: str
    verdict: str
    reason: str

    def facts(self) -> dict[str, str]:
        """The entry of `ship` in `build --json`, less where it lies."""
        return {key: value for key, value in vars(self).items() if key != "place"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The reports as rows, and what to ship for each target that has one."""

    rows: Sequence[Row]
    ship: Sequence[Choice]

    def cells(self) -> list[list[str]]:
        """The head and a row for each report; a column that no row fills is left out."""
        filled = [_cells(row) for row in self.rows]
        shown = [place for place in range(len(HEAD)) if any(row[place] != MISSING for row in filled)]
        return [[row[place] for place in shown] for row in (HEAD, *filled)]


def compare(reports: Sequence[Row], written: Sequence[bool] | None = None) -> Compared:
    """Put reports of verify side by side. written: of each, whether its archive was; without it all were.

    To ship is the one with the best verdict; of those, the one whose answers are proven best (a machine that is not the target
    leaves all verdicts open, and says nothing of that); of those, the one that answers fastest (of decoders: writes the most
    tokens a second; else: the lowest p95). What fails is never shipped, nor
    what was not written.
    """
    rows = [_row(report) for report in reports]
    ship = []
    there = [row["verdict"] != "fail" and (written is None or written[place]) for place, row in enumerate(rows)]
    for target in dict.fromkeys(row["target"] for row in rows):
        among = [row for row, ships in zip(rows, there, strict=True) if row["target"] == target and ships]
        if among:
            best = min(among, key=lambda row: (*_proven(row), -(row["rate"] or 0.0), row["p95"]))
            does = "passes" if best["verdict"] == "pass" else "does not fail"
            rivals = [row for row in among if row["verdict"] == best["verdict"]]
            fastest = "the fastest" if best["timed"] else "on this machine the fastest"
            if any(_proven(row) != _proven(best) for row in rivals):
                reason = "its answers are the best proven"
            else:
                reason = f"{fastest} that {does}" if len(rivals) > 1 else f"the only one that {does}"
            facts = {key: str(best[key]) for key in ("target", "format", "scheme", "verdict")}
            place = next(place for place, row in enumerate(rows) if row is best)
            ship.append(Choice(place=place, reason=reason if len(rows) > 1 else best["verdict"], **facts))
    return Compared(rows=rows, ship=ship)


def _proven(row: Row) -> tuple[int, int]:
    return _ORDER[row["verdict"]], _ORDER[row["answers"]]


def _row(report: Row) -> dict[str, Any]:
    judged = {check["name"]: str(check["verdict"]) for check in report["checks"]}
    answers = [verdict for name, verdict in judged.items() if name not in _OF_MACHINE]
    kl, first = report.get("kl") or {}, report.get("ttft_ms") or {}
    longest = max(first, key=int, default=None)
    kept = {(one["metric"], one["reference"], one["candidate"]): one["score"] for one in report["comparisons"]}
    return {
        "target": report["target"],
        "format": report["artifact"]["format"],
        "scheme": report["artifact"]["scheme"],
        "bytes": report["artifact"]["bytes"],
        "right": (report["accuracy"] or {}).get("artifact"),
        "kl": kl.get("mean"),
        "top1": report.get("top1"),
        "cosine": kept.get(("cosine", "student", "artifact")),
        "neighbours": kept.get(("neighbours", "student", "artifact")),
        "first": first[longest] if longest else None,
        "rate": (report.get("tokens_per_second") or {}).get("decode"),
        "p95": report["latency_ms"]["p95"],
        "memory": report["memory_mb"],
        "verdict": report["verdict"],
        "answers": max(answers, key=_ORDER.__getitem__, default="pass"),
        "timed": all(judged[name] != "not proven" for name in _OF_TIME & judged.keys()),
    }


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row["target"]),
        str(row["format"]),
        str(row["scheme"]),
        human_bytes(row["bytes"]),
        percent(row["right"]),
        number(row["kl"], 3),
        percent(row["top1"]),
        number(row["cosine"], 4),
        percent(row["neighbours"]),
        MISSING if row["first"] is None else f"{number(row['first'], 3)} ms",
        number(row["rate"], 3),
        f"{number(row['p95'], 3)} ms",
        MISSING if row["memory"] is None else f"{row['memory']:.0f} MB",
        str(row["verdict"]),
    )
