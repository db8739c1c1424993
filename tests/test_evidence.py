"""report.json: what is written is read back as it was, and what is not whole is refused by the name of its key."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgekitError
from edgekit.evidence import Check, Comparison, Report, read_report, whole_verdict
from edgekit.typed_json import read_table, to_table
from tests.artifacts import bare_report, check_entry, comparison_entry, make_artifact, make_report

TEXTS, COUNTS = st.text(max_size=8), st.integers(0, 2**40)
FIGURES = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | COUNTS | FIGURES | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
SCALARS: dict[object, st.SearchStrategy[Any]] = {
    str: TEXTS, int: COUNTS, float: FIGURES, bool: st.booleans(), type(None): st.none(), object: JSON
}  # fmt: skip


def any_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type, as JSON can hold it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{field.name: any_of(hints[field.name]) for field in dataclasses.fields(hint)})
    if hint in SCALARS:
        return SCALARS[hint]
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin is tuple:
        return st.lists(any_of(parts[0]), max_size=2).map(tuple) if ... in parts else st.tuples(*map(any_of, parts))
    if origin is Mapping:
        return st.dictionaries(TEXTS, any_of(parts[1]), max_size=2)
    return st.one_of(*map(any_of, parts))


@given(report=any_of(Report))
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_back(report: Report) -> None:
    text = report.to_json()
    found = read_table(Report, json.loads(text), "report.json")
    assert found == report
    assert found.to_json() == text


MACHINE = {
    "temperature_c": 50.0,
    "clock_mhz": 2400.0,
    "governor": "ondemand",
    "driver": None,
    "power": None,
    "limit_cores": None,
}


def whole() -> dict[str, Any]:
    """A report in which every key is there, and no list or table is empty."""
    times = {"p50": 1.0, "p95": 2.0}
    rates = {"decode": 9.0, "prefill": 90.0}
    model = {
        "bytes": 9,
        "latency_ms": times,
        "at": [{"sequence": 64, "threads": 1, **times}],
        "memory_mb": None,
        "threads": 1,
        "busy": 0.5,
        "ttft_ms": 3.0,
        "tokens_per_second": rates,
    }
    return bare_report() | {
        "checks": [check_entry("p95_ms", measured=2.5, interval=[1.0, None])],
        "comparisons": [comparison_entry("student", "accuracy", flips={"lost": 1})],
        "latency_processes_ms": [times],
        "latency_ms": {
            "first": 9.0, "load": 9.0, **times, "p99": 3.0, "bounds": {"p50": [1.0, None]}, "first_ten": [9.0, 1.0], "cold": 99.0,
        },
        "models": {"student": model},
        "layers": [{"name": "a", "error": 0.5}],
        "coverage": {
            "seen": 9,
            "held_out": 9,
            "length": {"seen": [1, 2], "held_out": [1, 2], "longer_share": 0.5},
            "vocabulary": {"words": 9, "new_share": 0.5},
            "labels": {"seen": 3, "unseen": ["a"], "fewest": 1},
            "truncated": 0,
            "outside_ranges": {"a": 0.5},
        },
        "data": {"rows": {"verify": 9}, "labels": 3, "dropped": {"verify": {"empty texts": 1}}, "unusual": {}, "notes": []},
        "comparable": {
            "comparable": "no",
            "reasons": ["it ran on a battery"],
            "start": "warm",
            "before": MACHINE,
            "after": None,
            "load": {"others": 0.1},
            "sha256": "a" * 64,
            "processes": 8,
            "spread": 1.01,
            "answers": {"tokens": 9, "stopped": 1, "cut": 2, "seed": None},
        },
        "sustained": {
            "asked_s": 9.0, "seconds": 9.1, "burst_p50": 1.0, "burst_p95": 2.0, "last_p50": 1.5, "last_p95": 2.5, "slowdown": 1.5,
            "throttled": True, "cold": 99.0,
            "curve": [{"seconds": 1.0, "calls": 9, **times, "temperature_c": 60.0, "clock_mhz": None, "slowed": 1}],
        },
        "tuning": {
            "artifact": "a" * 64, "runtime": "onnxruntime", "version": "1", "device": "local", "cpu": "A CPU", "sequence": 64,
            "best": {"threads": 2, "cpus": [2, 3], "p50": 1.0}, "tried": [{"threads": 1, "cpus": None, "p50": 2.0}],
        },
        "latency_real": times | {"mean_tokens": 9.0},
        "scope": {"student": {"auroc": 0.5}},
        "confusion": [{"from": "on", "to": "off", "gained": 1, "lost": 0}],
        "kl": {"mean": 0.1, "p99": None},
        "top1": 0.5,
        "perplexity": {"student": 9.0},
        "tokens": 9,
        "ttft_ms": {"64": 3.0},
        "tokens_per_second": rates,
        "host": {
            "cpu": "N100",
            "exact": True,
            "unit": "squared distance",
            "ratio": 1.0,
            "interval": [0.9, 1.1],
            "prompts": 9,
            "moved": 1,
            "diagnosis": None,
            "predicted": None,
            "recall": None,
            "precision": None,
            "verdict": "pass",
        },
        "baseline": {
            "accuracy": 0.9,
            "bytes": 9,
            "p50_ms": None,
            "difference": 0.01,
            "interval": [-0.01, 0.03],
            "prompts": 9,
            "note": "ship the linear one",
        },
        "generation": {
            "bytes_per_token": 9.0,
            "memory_mb": {"peak_mb": 9.0},
            "roofline_share": 0.5,
            "threads": {},
            "ttft_cold_ms": {"64": 9.0},
        },
    }  # fmt: skip


# Tables whose keys name something of the user's or of the machine's.
FREE = {
    "device",
    "work",
    "accuracy",
    "margins",
    "models",
    "scope",
    "scope.student",
    "perplexity",
    "ttft_ms",
    "data.rows",
}
FREE |= {"data.dropped", "data.dropped.verify", "data.unusual", "comparisons.0.flips", "comparisons.0.divergence"}
FREE |= {"latency_ms.bounds", "comparable.load"}
FREE |= {"coverage.outside_ranges", "generation.threads", "generation.memory_mb", "generation.ttft_cold_ms"}
ABSENT = {field.name for field in dataclasses.fields(Report) if field.metadata}
ABSENT |= {f"latency_ms.{key}" for key in ("p99", "bounds", "first_ten", "cold")} | {"comparable.answers"}


def tables(value: Any, path: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """Every table whose keys are edgekit's own, with its path."""
    if isinstance(value, dict):
        if path.removesuffix(".") not in FREE:
            yield value, path
        for key, inner in value.items():
            yield from tables(inner, f"{path}{key}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from tables(inner, f"{path}{index}.")


def refused(content: Any, folder: Path) -> str:
    (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EdgekitError) as error:
        read_report(folder)
    return error.value.message


def test_a_key_that_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    content, count = json.loads(json.dumps(whole())), 0
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    assert to_table(read_report(tmp_path)) == content
    for table, path in tables(content):
        for key in list(table):
            if path + key in ABSENT or (path.startswith("models") and key in ABSENT):
                continue
            value = table.pop(key)
            assert refused(content, tmp_path).startswith(f"{tmp_path / 'report.json'}: {path}{key}: missing key; not a")
            table[key] = value
            count += 1
        table["p999"] = 1.0
        assert refused(content, tmp_path).startswith(f"{tmp_path / 'report.json'}: {path}p999: unknown key")
        del table["p999"]
    assert count > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "maybe"}, "verdict: expected one of pass, fail, not proven, got 'maybe'"),
        ({"prompts": True}, "prompts: expected a whole number, got True"),
        ({"prompts": 1.5}, "prompts: expected a whole number, got 1.5"),
        ({"memory_mb": "much"}, "memory_mb: expected a number or null, got 'much'"),
        ({"top1": math.inf}, "top1: expected a number or null, got inf"),
        ({"notes": "one"}, "notes: expected a list, got 'one'"),
        ({"notes": [1]}, "notes.0: expected a text, got 1"),
        ({"checks": [[]]}, "checks.0: expected a table, got []"),
        ({"models": []}, "models: expected a table, got []"),
        ({"data": 3}, "data: expected a table, got 3"),
        ({"vouches": {"scales": [1.0], "foreign": [], "told": ""}}, "vouches.scales: expected a list, got [1.0]"),
    ],
)
def test_a_value_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    told = refused(bare_report() | changes, tmp_path)
    assert told == f"{tmp_path / 'report.json'}: {message}; not a report that edgekit verify wrote"


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    assert "expected a table, got []; not a report that edgekit verify wrote" in refused([], tmp_path)
    assert "missing key; not a report" in refused({"verdict": "pass"}, tmp_path)


def test_a_folder_and_its_file_are_one_report(tmp_path: Path) -> None:
    folder = make_report(tmp_path / "report", make_artifact(tmp_path / "artifact"))
    assert read_report(folder) == read_report(folder / "report.json")


def test_what_json_cannot_hold_is_none_there() -> None:
    check = Check(
        name="kl_vs_student", measured=math.nan, limit=0.1, verdict="fail", bound=math.inf, interval=(0.0, math.inf)
    )
    assert check.finite() == replace(check, measured=None, bound=None, interval=None)
    half = replace(check, measured="NaN", bound=1.0, interval=(None, 1.0))
    assert half.finite() == half
    found = Comparison(
        **comparison_entry("student", "kl", loss=math.nan, lo=-math.inf, bound=math.inf, score=1.0)
    ).finite()
    assert (found.loss, found.lo, found.bound, found.score) == (None, None, None, 1.0)


@pytest.mark.parametrize(
    ("verdicts", "whole_one"),
    [("pass pass", "pass"), ("pass fail open", "fail"), ("pass open", "not proven"), ("", "not proven")],
)
def test_the_worst_check_decides(verdicts: str, whole_one: str) -> None:
    names: dict[str, Any] = {"open": "not proven"}
    checks = [Check(name="a", measured=1, limit=2, verdict=names.get(word, word)) for word in verdicts.split()]
    assert whole_verdict(checks) == whole_one
