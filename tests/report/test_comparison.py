"""Several artifacts side by side: what is shown, and which one is shipped."""

from __future__ import annotations

from typing import Any

from edgekit.cli.reported import compared_lines
from edgekit.evidence import Report
from edgekit.report.comparison import HEAD, Compared
from edgekit.report.comparison import compare as compare_reports
from edgekit.typed_json import read_table
from tests.artifacts import bare_report, check_entry, comparison_entry

TIMES = {"p50": 9.0, "first": 9.0, "load": 40.0}


def report(scheme: str, verdict: str, *, target: str = "board", **more: Any) -> dict[str, Any]:
    """What compare reads of a report of an encoder; `more` replaces it."""
    bare, format_ = bare_report(), "gguf" if "_" in scheme else "onnx"
    return {
        **bare,
        "target": target,
        "artifact": bare["artifact"] | {"format": format_, "scheme": scheme, "bytes": 2_500_000},
        "accuracy": {"artifact": 0.931},
        "latency_ms": TIMES | {"p95": 12.5},
        "memory_mb": 88.4,
        "verdict": verdict,
    } | more


def decoder(scheme: str, verdict: str, rate: float, **more: Any) -> dict[str, Any]:
    """And of a decoder."""
    figures = {"kl": {"mean": 0.0123, "p99": 0.1}, "top1": 0.97, "tokens_per_second": {"decode": rate, "prefill": 1.0}}
    first = {"ttft_ms": {"64": 20.0, "256": 71.0, "16": 9.0}, "accuracy": {}}
    return report(scheme, verdict, **(figures | first | more))


def compare(reports: list[dict[str, Any]], written: list[bool] | None = None) -> Compared:
    return compare_reports([read_table(Report, content, "report.json") for content in reports], written)


def told(compared: Compared) -> dict[str, str]:
    return {one.target: f"{one.format} {one.scheme} ({one.reason})" for one in compared.ship}


def test_the_fastest_of_the_best_verdict_is_shipped() -> None:
    slow, fast, failed = decoder("q8_0", "pass", 20.0), decoder("q4_0", "pass", 31.0), decoder("q4_1", "fail", 99.0)
    assert told(compare([slow, fast, failed])) == {"board": "gguf q4_0 (the fastest that passes)"}
    open_ = decoder("q4_k_m", "not proven", 50.0)
    assert told(compare([slow, open_])) == {"board": "gguf q8_0 (the only one that passes)"}
    assert told(compare([open_, failed])) == {"board": "gguf q4_k_m (the only one that does not fail)"}
    assert told(compare([open_, decoder("q5_k_m", "not proven", 60.0)])) == {
        "board": "gguf q5_k_m (the fastest that does not fail)"
    }
    assert told(compare([slow])) == {"board": "gguf q8_0 (pass)"}
    assert told(compare([failed])) == {}
    assert told(compare([])) == {}


def checks(**verdicts: str) -> list[dict[str, Any]]:
    return [check_entry(name, verdict=verdict) for name, verdict in verdicts.items()]


def test_another_machines_speed_does_not_outweigh_what_is_proven_of_the_answers() -> None:
    """Off the target every verdict is open; a file that is 2 % faster on the wrong machine is not the one to ship for that."""
    proven = decoder("q4_0", "not proven", 50.0, checks=checks(kl_vs_student="pass", p95_ms="not proven"))
    other = decoder("int8-dynamic", "not proven", 51.0, checks=checks(kl_vs_student="not proven", p95_ms="not proven"))
    assert told(compare([proven, other])) == {"board": "gguf q4_0 (its answers are the best proven)"}
    slower = decoder("q8_0", "not proven", 40.0, checks=checks(kl_vs_student="pass", tokens_per_second="not proven"))
    assert told(compare([proven, slower])) == {"board": "gguf q4_0 (on this machine the fastest that does not fail)"}


def test_of_encoders_the_lowest_p95_is_the_fastest() -> None:
    quick, slow = report("int8-static", "pass", latency_ms=TIMES | {"p95": 4.0}), report("q8_0", "pass")
    assert told(compare([slow, quick])) == {"board": "onnx int8-static (the fastest that passes)"}


def test_each_target_has_its_own() -> None:
    rows = [decoder("q4_0", "pass", 9.0, target=target) for target in ("pi", "laptop")]
    found = compare([*rows, decoder("q8_0", "pass", 10.0, target="laptop")])
    assert told(found) == {
        "pi": "gguf q4_0 (the only one that passes)",
        "laptop": "gguf q8_0 (the fastest that passes)",
    }
    assert compared_lines(found)[-2:] == [f"ship to {target}: {what}" for target, what in told(found).items()]


def test_the_table_shows_what_there_is() -> None:
    compared = compare([decoder("q4_0", "pass", 31.25), decoder("int8-dynamic", "fail", 8.0, memory_mb=None)])
    head, first, second = compared.cells()
    assert head == [name for name in HEAD if name not in {"right", "cosine", "neighbours"}]
    for told in ("2.5 MB", "0.0123", "97.0 %", "71 ms", "31.2", "12.5 ms", "88 MB", "pass"):
        assert told in first, told
    assert second[-1] == "fail"
    lines = compared_lines(compared)
    assert max(map(len, lines)) <= 80, "too wide as an artifact a line: a figure a line"
    assert [line.split("  ")[0] for line in lines[: len(head)]] == head
    assert lines[len(head) - 1].split() == ["verdict", "pass", "fail"]


def test_embedders_show_what_they_keep() -> None:
    kept = [
        comparison_entry("student", metric, score=score)
        for metric, score in (("cosine", 0.99871), ("neighbours", 0.953))
    ]
    other = [one | {"reference": "teacher", "score": 0.1} for one in kept]
    lines = compared_lines(compare([report("q8_0", "pass", accuracy={}, comparisons=[*other, *kept])]))
    assert "cosine" in lines[0]
    assert "KL" not in lines[0]
    assert "right" not in lines[0]
    assert "0.9987" in lines[1]
    assert "95.3 %" in lines[1]


def test_what_was_not_written_is_not_to_ship() -> None:
    """--strict writes nothing of what is not proven: then the other is the choice, or nothing."""
    first, second = decoder("q8_0", "not proven", 50.0), decoder("q4_0", "not proven", 60.0)
    assert [one.index for one in compare([first, second]).ship] == [1]
    assert [one.index for one in compare([first, second], [True, False]).ship] == [0]
    assert compare([first, second], [False, False]).ship == []
