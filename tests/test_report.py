"""Report: the same figures as a table and as a page that fetches nothing, runs nothing and cannot be broken out of."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from artifacts import make_artifact, report_of

from edgekit.errors import EdgekitError
from edgekit.report import flips, human_bytes, number, read_report, terminal_table, write_html

VOID = {"meta", "circle", "rect", "line"}
EVIL = "<script>alert('x')</script>\" onload=\"x"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of(make_artifact(tmp_path_factory.mktemp("report") / "artifact"), "not proven")


class Page(HTMLParser):
    """Counts tags and checks that they close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def page(report: dict[str, Any], folder: Path) -> Page:
    write_html(report, folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def full(report: dict[str, Any]) -> dict[str, Any]:
    models = {
        name: {"bytes": 9e7, "latency_ms": {"p50": 12.0, "p95": 13.0}, "memory_mb": 300}
        for name in ("teacher", "student")
    }
    return report | {
        "models": models,
        "layers": [{"name": f"layer.{place}", "error": place / 100} for place in range(40)],
        "confusion": [
            {"from": "on", "to": "off", "gained": 2, "lost": 1},
            {"from": "a", "to": "b", "gained": 0, "lost": 0},
        ],
        "scope": {"auroc": 0.96},
        "notes": ["measured on another machine"],
    }


def test_the_table_holds_the_figures(report: dict[str, Any]) -> None:
    lines = terminal_table(report)
    text = "\n".join(lines)
    assert re.search(r"teacher +94\.1 % +- +- +- +-", text)
    assert re.search(r"artifact +93\.0 % +\d+ B +1\.5 ms +2\.5 ms +88 MB", text)
    assert "batch 1, sequence 64, threads 1, onnxruntime 1.31.1, measured on A test CPU" in text
    assert re.search(r"latency p95, ms .*\[2\.4, 2\.7\] +not proven", text)
    assert "\x1b" not in text
    assert text.isascii()


def test_the_page_is_self_contained_well_formed_and_the_same_each_time(report: dict[str, Any], tmp_path: Path) -> None:
    found = page(full(report), tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    assert found.tags.count("svg") == 4
    assert {"script", "link", "img", "iframe"}.isdisjoint(found.tags)
    assert {"src", "href", "onload"}.isdisjoint(found.attributes)
    assert b"prefers-color-scheme:dark" in first
    assert b"http" not in first
    for shown in (
        "not proven",
        "measure on the board itself",
        "94.1 %",
        "on → off",
        "and 10 layers",
        "auroc",
        "another machine",
    ):
        assert shown in found.text
    write_html(json.loads(json.dumps(full(report))), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == first


def test_nothing_breaks_out_of_the_page(report: dict[str, Any], tmp_path: Path) -> None:
    evil = full(report) | {
        "recipe": EVIL,
        "target": EVIL,
        "notes": [EVIL],
        "device": {EVIL: EVIL},
        "scope": {EVIL: EVIL},
    }
    evil["checks"] = [check | {"name": EVIL, "remedy": EVIL} for check in report["checks"]]
    evil["layers"] = [{"name": EVIL, "error": 0.5}]
    evil["confusion"] = [{"from": EVIL, "to": EVIL, "gained": 1, "lost": 0}]
    evil["comparisons"] = [
        entry | {"reference": EVIL, "metric": EVIL, "flips": {EVIL: 1}} for entry in report["comparisons"]
    ]
    found = page(evil, tmp_path)
    assert "script" not in found.tags
    assert "onload" not in found.attributes
    assert EVIL in found.text


def test_absent_figures_leave_sections_out(report: dict[str, Any], tmp_path: Path) -> None:
    bare = report | {"checks": [], "comparisons": [], "accuracy": {}, "latency_ms": {}, "memory_mb": None, "shape": {}}
    bare |= {"device": {}, "runtime": {}}
    found = page(bare, tmp_path)
    assert "svg" not in found.tags
    assert "Error of each layer" not in found.text
    assert terminal_table(bare)


def test_extreme_losses_stay_inside_the_picture(report: dict[str, Any], tmp_path: Path) -> None:
    check = report["checks"][0] | {"loss": 0.9, "interval": [-0.9, 1.0], "limit": 0.01}
    write_html(report | {"checks": [check]}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    places = [float(place) for place in re.findall(r' (?:cx|x1|x2|x)="(-?[\d.]+)"', text)]
    assert places
    assert all(0 <= place <= 860 for place in places)


def test_reading_refuses_what_verify_did_not_write(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert read_report(tmp_path) == read_report(path) == report
    for broken, reason in (
        (report | {"verdict": "maybe"}, "verdict: expected"),
        ({"verdict": "pass"}, "missing key"),
        ([], "missing key"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(EdgekitError, match=reason):
            read_report(tmp_path)


def test_figures_in_words() -> None:
    assert [human_bytes(count) for count in (None, 12, 1_500, 12_600_000, 999_999_999, 2.5e9)] == [
        "-",
        "12 B",
        "1.5 kB",
        "12.6 MB",
        "1000 MB",
        "2.5 GB",
    ]
    assert [number(value) for value in (None, True, 3, 0.123456, 123456.7, "x")] == [
        "-",
        "True",
        "3",
        "0.1235",
        "123457",
        "x",
    ]
    assert flips({"lost": 3, "gained": 1}) == "lost 3, gained 1"
    assert flips([3, 1]) == "3 / 1"
    assert flips(4) == "4"
