"""Report: the same figures as a table and as a page that fetches nothing, runs nothing and cannot be broken out of."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgekit import __version__
from edgekit.cli import reported
from edgekit.evidence import Check, Report
from edgekit.report import ModelFigures, baseline_lines, control_lines, verdict_text
from edgekit.report import page as report_page
from edgekit.report.charts import scatter
from edgekit.report.figures import flips, human_bytes, number
from edgekit.typed_json import read_table
from tests.artifacts import bare_report, check_entry, make_artifact, report_of

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


def read(report: dict[str, Any]) -> Report:
    """The report of a report.json with this content."""
    return read_table(Report, json.loads(json.dumps(report, sort_keys=True)), "report.json")


def report_lines(report: dict[str, Any]) -> list[str]:
    return reported.report_lines(read(report))


def reason_lines(checks: list[dict[str, Any]]) -> list[str]:
    return reported.reason_lines([read_table(Check, check, "a check") for check in checks])


def write_html(report: dict[str, Any], path: Path, recipe: str | None = None) -> None:
    report_page.write_html(read(report), path, recipe=recipe)


def page(report: dict[str, Any], folder: Path, recipe: str | None = None) -> Page:
    write_html(report, folder / "report.html", recipe)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


AT = {"sequence": 64, "threads": 1, "p50": 12.0, "p95": 13.0}


def full(report: dict[str, Any]) -> dict[str, Any]:
    models = {
        name: {
            "bytes": 90_000_000,
            "latency_ms": {"p50": 1.0, "p95": 2.0},
            "at": [AT, AT | {"threads": 9, "p50": 99.0}],
            "memory_mb": 300,
            "threads": 2,
            "busy": None,
        }
        for name in ("teacher", "student")
    }
    return report | {
        "models": models,
        "layers": [{"name": f"layer.{place}", "error": place / 100} for place in range(40)],
        "confusion": [
            {"from": "on", "to": "off", "gained": 2, "lost": 1},
            {"from": "a", "to": "b", "gained": 0, "lost": 0},
        ],
        "scope": {"artifact": {"in_scope_accuracy": 0.937, "out_of_scope_recall": 0.59, "auroc": 0.96}},
        "notes": ["measured on another machine"],
    }


def test_the_table_holds_the_figures(report: dict[str, Any]) -> None:
    lines = report_lines(report)
    text = "\n".join(lines)
    assert re.search(r"teacher +94\.1 % +- +- +- +-", text)
    assert re.search(r"artifact +93\.0 % +\d+ B +1\.5 ms +2\.5 ms +88 MB", text)
    assert "batch 1, sequence 64, threads 1, onnxruntime 1.31.1, measured on A test CPU" in " ".join(text.split())
    assert re.search(r"latency p95, ms +2\.5 ms +2\.7 ms +10 ms +not proven", text)
    assert "\x1b" not in text
    assert text.isascii()


LINE = {
    "accuracy": 0.915, "bytes": 900_000, "p50_ms": 0.125, "difference": 0.015, "interval": [-0.002, 0.032],
    "prompts": 400, "note": "not proven better: ship the linear one",
}  # fmt: skip


def test_the_line_of_the_linear_model_is_in_table_chart_and_first_lines(report: dict[str, Any], tmp_path: Path) -> None:
    """Where a report has one; its time is left out where the device is another machine."""
    drawn = full(report) | {"baseline": LINE}
    text = "\n".join(report_lines(drawn))
    assert re.search(r"linear baseline +91\.5 % +900 kB +0\.125 ms", text)
    assert "one thread, where the build ran" in " ".join(text.split())
    above, advice = baseline_lines(read(drawn))
    assert above == "+1.50 points against the linear baseline, interval [-0.20, 3.20]"
    assert advice == LINE["note"]
    shown = page(drawn, tmp_path)
    assert advice in shown.text
    assert 'class="linear disc"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    away = drawn | {"baseline": LINE | {"p50_ms": None, "note": None}}
    assert "not timed on the device" in " ".join(" ".join(report_lines(away)).split())
    assert len(baseline_lines(read(away))) == 1
    assert baseline_lines(read(full(report))) == []
    page(full(report), tmp_path)
    assert 'class="linear disc"' not in (tmp_path / "report.html").read_text(encoding="utf-8")


ADDED = {
    "metric": "accuracy", "student": 0.931, "control": 0.905, "difference": 0.026, "interval": [0.008, 0.044], "prompts": 400,
    "note": None,
}  # fmt: skip


def test_what_the_teacher_added_is_in_table_chart_and_first_lines(report: dict[str, Any], tmp_path: Path) -> None:
    """Of a classifier and of a decoder; of a build without a control run, how to have one."""
    drawn = full(report)
    drawn |= {"control": ADDED, "models": drawn["models"] | {"control": drawn["models"]["student"]}}
    assert re.search(r"control, no teacher +90\.5 % +\d", "\n".join(report_lines(drawn)))
    told = "float student 93.1 %, the same without teacher 90.5 %"
    assert control_lines(read(drawn)) == [f"+2.60 points by the teacher, interval [+0.80, +4.40]: {told}"]
    assert told in page(drawn, tmp_path).text
    assert 'class="control disc"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    worse = drawn | {"control": ADDED | {"note": "the teacher made it worse: drop it"}}
    assert control_lines(read(worse))[1] == "the teacher made it worse: drop it"
    nats = {"metric": "nats", "student": 1.95, "control": 2.0, "difference": 0.05, "interval": [0.01, None]}
    (line,) = control_lines(read(drawn | {"control": ADDED | nats}))
    assert line.startswith("+0.0500 nats a token by the teacher, interval [+0.0100, open]: float student 1.95,")
    assert control_lines(read(full(report) | {"control_offer": "train it without"})) == ["train it without"]
    assert control_lines(read(full(report))) == []


def test_figures_of_checks_have_units(report: dict[str, Any], tmp_path: Path) -> None:
    """A loss stands beside its bound and limit: in points, but for a cosine's."""
    loss = {"loss": 0.002, "bound": 0.0073, "interval": [-0.0032, 0.0073], "limit": 0.01}
    checks = [
        check_entry("accuracy_vs_student", measured=0.874, looks=2, **loss),
        check_entry("neighbours_vs_student", measured=0.937, **(loss | {"limit": 0.1})),
        check_entry("cosine_vs_student", measured=0.9987, **(loss | {"loss": 4e-17})),
        check_entry("p95_ms", measured=7.321, bound=None, interval=[7.24, None], limit=30.0),
        check_entry("memory_mb", measured=84.3, limit=256.0),
        check_entry("p50_ms", measured=7.0, interval=[None, None], limit=30.0),
        check_entry("bytes", measured=18149463, limit=64000000),
        check_entry("provider", measured=1.0, limit=0.8),
        check_entry("plausibility", measured="possible", limit=None),
    ]
    lines = report_lines(report | {"checks": checks})
    assert max(map(len, lines)) <= 80
    text = re.sub(" {2,}", " | ", "\n".join(lines))
    for told in (
        "accuracy_vs_student | 87.4 % | 0.73 points | 1.00 points | pass (look 2)",
        "neighbours_vs_student | 93.7 % | 0.73 points | 10.00 points | pass",
        "cosine_vs_student | 0.9987 | 0.0073 | 0.0100 | pass",
        "p95_ms | 7.32 ms | - | 30 ms | pass",
        "memory_mb | 84.3 MB | - | 256 MB | pass",
        "bytes | 18.1 MB | - | 64 MB | pass",
        "provider | 100 % | - | at least 80 % | pass",
        "plausibility | possible | - | - | pass",
    ):
        assert told in text
    shown = page(report | {"checks": checks}, tmp_path).text
    assert "[-, -]" not in shown
    assert "accuracy_vs_student87.4 %0.20 points0.73 points1.00 points[-0.32, 0.73] (look 2)" in shown


def test_a_long_figure_is_wrapped_in_its_column(report: dict[str, Any]) -> None:
    """The table is 80 columns wide whatever a check measured, and every word of it is there."""
    measured = "another model as the teacher of both"
    lost = {"loss": 0.1, "bound": 0.5, "limit": 0.2, "looks": 3, "verdict": "not proven"}
    checks = [check_entry("reference", measured=measured), check_entry("perplexity_vs_student", measured=0.5, **lost)]
    checks.append(check_entry("neighbours_vs_teacher", measured=0.5, **lost))
    lines = report_lines(report | {"checks": checks})
    assert max(map(len, lines)) <= 80
    head = next(place for place, line in enumerate(lines) if line.startswith("check "))
    start = next(line for line in lines if line.startswith("reference "))
    assert set(measured.split()) <= set(" ".join(lines[head:]).split())
    assert start.endswith("pass")
    assert measured not in start


def test_the_reasons_of_what_did_not_pass_are_told() -> None:
    """Verdict, figures, detail and remedy, each remedy once; what passed is not named; a command stays whole."""
    command = "edgekit verify work/a-rather-long-name/artifact work/reference --target raspberrypi"
    remedy = f"measure where nothing else runs, and again: {command}"
    late = {"measured": 12.0, "bound": 14.0, "limit": 10.0, "verdict": "not proven", "remedy": remedy}
    lines = reason_lines(
        [
            check_entry("bytes", measured=10, limit=20, remedy="never shown"),
            check_entry("p50_ms", **late, detail="the machine was busy"),
            check_entry("p95_ms", **late | {"looks": 2}),
            check_entry("finite_outputs", measured="NaN or infinite", limit="finite", verdict="fail"),
        ]
    )
    text = " ".join(" ".join(lines).split())
    assert "p50_ms: not proven (measured 12 ms, bound 14 ms, limit 10 ms) the machine was busy -> measure where" in text
    assert "p95_ms: not proven (look 2) (measured 12 ms, bound 14 ms, limit 10 ms) finite_outputs: fail" in text
    assert text.endswith("finite_outputs: fail (measured NaN or infinite, limit finite)")
    assert text.count("->") == 1
    assert command in text
    assert "bytes" not in text
    assert max(map(len, lines)) <= 80
    assert reason_lines([check_entry("bytes", measured=10, limit=20)]) == []


def test_what_a_narrow_screen_needs_is_in_the_page(report: dict[str, Any], tmp_path: Path) -> None:
    """Cells name their column, which the style for narrow screens shows beside them; pictures scroll on their own."""
    found = page(full(report), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@media (max-width: 600px)" in text
    assert "content: attr(data-head)" in text
    assert text.count("<div class=wide><svg") == found.tags.count("svg")
    checked = re.findall(r"<td data-head=verdict>", text)
    assert len(checked) >= len(report["checks"])
    for cells in re.findall(r"<tr>(<td.*?)</tr>", text):
        assert "<td>" not in cells, "each cell names its column"


def test_a_teacher_that_is_the_student_is_one_row(report: dict[str, Any], tmp_path: Path) -> None:
    twice = full(report) | {"accuracy": {"teacher": 0.932, "student": 0.932, "artifact": 0.93}}
    text = "\n".join(report_lines(twice))
    assert re.search(r"^float model +93\.2 % +90 MB", text, re.MULTILINE)
    assert "teacher" not in text
    assert page(twice, tmp_path).text.count("float model") >= 2
    assert "float model" not in "\n".join(report_lines(full(report)))


def test_a_busy_machine_and_conditions_are_told(report: dict[str, Any], tmp_path: Path) -> None:
    busy = full(report) | {"busy": 1.4, "latency_real": {"p50": 0.5, "p95": 0.6, "mean_tokens": 9.2}}
    assert "busy" not in "\n".join(report_lines(busy))
    busy["models"]["teacher"] |= {"busy": 3.21}
    busy["models"]["student"] |= {"busy": 2.4}
    told = "the machine was busy when teacher (load 3.2) was measured: times are upper bounds"
    text = " ".join("\n".join(report_lines(busy)).split())
    assert told in text
    assert "teacher and float student: fp32 in torch (its memory included), one process where the build ran" in text
    assert "at the texts' own lengths (mean 9 tokens) the artifact's p50 is 0.5 ms" in text
    shown = page(busy | {"busy": 6.0}, tmp_path).text
    assert "teacher (load 3.2) and artifact (load 6.0) were measured" in shown


def test_the_table_compares_times_of_one_shape_only(report: dict[str, Any]) -> None:
    alike = full(report)
    text = "\n".join(report_lines(alike))
    assert re.search(r"^float student .* 12 ms +13 ms", text, re.MULTILINE)
    assert "99" not in text
    alike["models"]["student"] |= {"at": [AT | {"sequence": 7}]}
    text = "\n".join(report_lines(alike))
    assert re.search(r"^float student .* - +- ", text, re.MULTILINE), "not the time of other lengths"
    assert "float student: not timed with as many tokens and threads" in text


def test_processes_measurements_and_who_may_vouch_are_told(report: dict[str, Any]) -> None:
    more = {"latency_processes_ms": [{"p50": 1.0, "p95": 2.0}] * 8, "measurement": 3, "disturbed": ["load 9"]}
    more["vouches"] = {"told": "a machine with it", "foreign": [], "scales": [1.0, 1.0]}
    text = " ".join("\n".join(report_lines(report | more)).split())
    assert "the artifact's times are of 8 processes, judged together with those of 2 earlier measurement(s)" in text
    assert "the machine was busy or slowed: load 9" in text
    assert "a machine with it" in text


def test_a_verdict_of_accuracy_only_says_so(report: dict[str, Any], tmp_path: Path) -> None:
    assert verdict_text(read(report)) == "not proven"
    only = report | {"accuracy_only": True, "verdict": "pass"}
    assert verdict_text(read(only)) == "pass (accuracy only: the target states no latency limit)"
    assert "✓ pass accuracy only: the target states no latency limit" in " ".join(page(only, tmp_path).text.split())


@pytest.mark.parametrize(
    ("recipe", "target", "title"),
    [
        ("demo", "board", "demo for board"),
        (None, "board", "edgekit report for board"),
        ("demo", "", "demo"),
        (None, "", "edgekit report"),
    ],
)
def test_the_title_names_recipe_and_target(
    report: dict[str, Any], tmp_path: Path, recipe: str | None, target: str, title: str
) -> None:
    text = page(report | {"target": target}, tmp_path, recipe).text
    assert f"{title}: not proven" in text
    assert f"edgekit {__version__}" in text


def test_labels_of_the_chart_are_apart(report: dict[str, Any], tmp_path: Path) -> None:
    alike = full(report) | {"accuracy": {"teacher": 1.0, "student": 0.999, "artifact": 0.999}}
    alike["models"]["student"] = alike["models"]["student"] | {"bytes": 89_000_000}
    alike["artifact"] = alike["artifact"] | {"bytes": 88_000_000}
    write_html(alike, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    chart = text[text.index("<svg") : text.index("</svg>")]
    assert "100.0 %" in chart
    assert "100.1 %" not in chart
    labels = re.findall(r'y="([\d.]+)" class="(?:end)?">([a-z ]+), [\d.]+ ms<', chart)
    assert len(labels) == 3
    heights = sorted(float(height) for height, _ in labels)
    assert min(after - before for before, after in itertools.pairwise(heights)) >= 18


def test_small_errors_and_features_are_readable(report: dict[str, Any], tmp_path: Path) -> None:
    names = ["model.layer.0.query#0", "model.layer.1.query#0", "model.pooler#1"]
    errors = [{"name": name, "error": error} for name, error in zip(names, (0.00643, 9.07e-05, 1e-7), strict=True)]
    text = page(report | {"layers": errors}, tmp_path).text
    for shown in ("0.643 %", "0.00907 %", "< 0.001 %", "avx2, avx512_vnni (2 in all)"):
        assert shown in text
    assert "model.layer" not in text
    assert "layer.0.query" in text


def test_the_page_is_self_contained_well_formed_and_the_same_each_time(report: dict[str, Any], tmp_path: Path) -> None:
    found = page(full(report), tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    assert found.tags.count("svg") == 4
    assert {"script", "link", "img", "iframe"}.isdisjoint(found.tags)
    assert {"src", "href", "onload"}.isdisjoint(found.attributes)
    assert first.startswith(b"<!doctype html>\n<html lang=en>")
    assert b"prefers-color-scheme: dark" in first
    assert b"http" not in first
    for shown in (
        "not proven",
        "measure on the board itself",
        "94.1 %",
        "on → off",
        "and 10 layers",
        "AUROC",
        "59.0 %",
        "another machine",
    ):
        assert shown in found.text
    write_html(json.loads(json.dumps(full(report))), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == first


def test_nothing_breaks_out_of_the_page(report: dict[str, Any], tmp_path: Path) -> None:
    evil = full(report) | {
        "target": EVIL,
        "notes": [EVIL],
        "device": {EVIL: EVIL},
        "data": {"labels": 3, "rows": {EVIL: 9}, "dropped": {}, "unusual": {}, "notes": [EVIL]},
    }
    evil["checks"] = [check | {"name": EVIL, "remedy": EVIL} for check in report["checks"]]
    evil["layers"] = [{"name": EVIL, "error": 0.5}]
    evil["confusion"] = [{"from": EVIL, "to": EVIL, "gained": 1, "lost": 0}]
    evil["comparisons"] = [
        entry | {"reference": EVIL, "metric": EVIL, "flips": {EVIL: 1}} for entry in report["comparisons"]
    ]
    found = page(evil, tmp_path, recipe=EVIL)
    assert "script" not in found.tags
    assert "onload" not in found.attributes
    assert EVIL in found.text


def spoiled(value: Any) -> Any:
    """The same with something that would break out of a page behind every text, but those that choose what is drawn."""
    if isinstance(value, str):
        return value if value in {"pass", "fail", "not proven", "student", "accuracy"} else f"{value}{EVIL}"
    if isinstance(value, dict):
        return {key: spoiled(inner) for key, inner in value.items()}
    return [spoiled(inner) for inner in value] if isinstance(value, list) else value


def test_every_text_of_a_report_is_escaped(report: dict[str, Any], tmp_path: Path) -> None:
    """Whatever key a text stands under; and every check and its remedy is on the page."""
    data = {"labels": 3, "rows": {"train": 9}, "dropped": {}, "unusual": {}, "notes": ["3 rows dropped"]}
    ran = {
        "bytes_per_token": 1.0,
        "roofline_share": 0.5,
        "memory_mb": {},
        "threads": {"stop": "eos"},
        "ttft_cold_ms": {},
    }
    whole = spoiled(full(report) | {"data": data, "generation": ran})
    found = page(whole, tmp_path)
    assert "script" not in found.tags
    assert "onload" not in found.attributes
    for check in whole["checks"]:
        for key in ("name", "remedy"):
            assert not check[key] or check[key] in found.text
    for told in ("3 rows dropped", "eos", "measured on another machine", "A test CPU"):
        assert f"{told}{EVIL}" in found.text


def test_the_style_has_rules_for_narrow_screens() -> None:
    """Below 600 pixels a table is a list of its rows; charts scroll in a box of their own, the page does not."""
    style = (Path(report_page.__file__).parent / report_page.STYLE).read_text(encoding="utf-8")
    narrow = style[style.index("@media (max-width: 600px)") :]
    for rule in ("table, tbody, tr, td { display: block; }", "thead { display: none; }", "overflow-wrap: anywhere"):
        assert rule in narrow
    assert ".wide { overflow-x: auto; }" in style
    assert style.count("{") == style.count("}")
    used = set(re.findall(r"var\((--[a-z-]+)\)", style))
    light, dark = (set(re.findall(r"(--[a-z-]+):", part)) for part in style.split("prefers-color-scheme: dark")[:2])
    assert used <= light
    assert light == dark, "each colour has one for the dark"


def test_absent_figures_leave_sections_out(report: dict[str, Any], tmp_path: Path) -> None:
    bare = bare_report() | {"memory_mb": None, "device": {}}
    found = page(bare, tmp_path)
    assert "svg" not in found.tags
    assert "Error of each layer" not in found.text
    assert report_lines(bare)


def test_extreme_losses_stay_inside_the_picture(report: dict[str, Any], tmp_path: Path) -> None:
    check = report["checks"][0] | {"loss": 0.9, "interval": [-0.9, 1.0], "limit": 0.01}
    write_html(report | {"checks": [check]}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    places = [float(place) for place in re.findall(r' (?:cx|x1|x2|x)="(-?[\d.]+)"', text)]
    assert places
    assert all(0 <= place <= 860 for place in places)


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
    assert flips({}) == ""


def test_a_chart_by_powers_of_ten_is_a_file_of_its_own() -> None:
    """What a benchmark writes as .svg is XML, and models of which one is a hundred times another do not lie upon each other."""
    from xml.etree import ElementTree

    models = [
        ModelFigures(role="teacher", name="teacher <1>", accuracy=0.93, bytes=90_971_444),
        ModelFigures(role="artifact", name="student", accuracy=0.92, bytes=3_000_000, p50=0.9),
        ModelFigures(role="linear", name="linear", accuracy=0.90, bytes=900_000, p50=0.04),
    ]
    places = {}
    for powers in (False, True):
        drawn = ElementTree.fromstring(scatter(models, "p50", powers=powers))
        found = sorted({float(disc.attrib["cx"]) for disc in drawn.iter("circle")})
        places[powers] = [(place - found[0]) / (found[-1] - found[0]) for place in found]
        assert "teacher <1>" in [text.text for text in drawn.iter("text")]
    assert places[False][1] == pytest.approx(2.1 / 90.07, abs=0.002)
    # log(3 / 0.9) / log(90.97 / 0.9)
    assert places[True][1] == pytest.approx(0.2608, abs=0.002)
