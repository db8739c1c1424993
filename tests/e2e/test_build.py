"""A build as a whole: what it makes, what it keeps, and that the stage commands are the same thing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.e2e.conftest import SLOWEST, STEPS, Project

pytestmark = pytest.mark.timeout(SLOWEST)

SUMMARY = {"target", "format", "scheme", "verdict", "bundle", "archive", "report"}
REPORT = {
    "verdict",
    "checks",
    "accuracy",
    "comparisons",
    "latency_ms",
    "shape",
    "memory_mb",
    "artifact",
    "device",
    "runtime",
}
CHECK = {"name", "measured", "limit", "loss", "bound", "interval", "looks", "verdict", "remedy"}


def test_a_build_has_the_stable_names(tiny: Project, built: Mapping[str, Any]) -> None:
    report = json.loads((tiny.folder / built["report"]).read_text())
    assert set(built) >= SUMMARY
    assert set(report) >= REPORT
    assert all(set(check) >= CHECK for check in report["checks"])
    assert set(report["accuracy"]) >= {"teacher", "student", "artifact"}
    assert set(report["latency_ms"]) >= {"p50", "p95", "first", "load"}
    assert set(report["shape"]) == {"batch", "sequence", "threads"}
    assert set(report["artifact"]) >= {"format", "scheme", "file", "bytes", "sha256"}
    assert report["verdict"] in {"pass", "not proven"}
    assert report["accuracy"]["artifact"] > 0.8
    line = report["baseline"]
    assert line == built["baseline"]
    assert 0.5 < line["accuracy"] <= 1.0
    assert line["p50_ms"] > 0.0
    assert line["interval"][0] <= line["difference"] <= line["interval"][1]
    assert (line["note"] is None) == (line["interval"][0] > 0.0)


def test_a_second_build_makes_nothing(tiny: Project, built: Mapping[str, Any]) -> None:
    before = tiny.sha256(built["archive"])
    again = tiny.run("build", "--target", "first")
    made = [step for step in STEPS[:-1] if f"{step:<10} done, kept" not in again.stderr]
    assert made == []
    assert tiny.sha256(built["archive"]) == before


@pytest.mark.parametrize("more", [(), ("--target", "second", "--target", "third", "--dry-run")])
def test_what_makes_nothing_loads_no_torch(tiny: Project, built: Mapping[str, Any], more: tuple[str, ...]) -> None:
    """Importing it takes longer than all else that a build does in which nothing changed."""
    assert built
    ran = warm.alone(
        ["-X", "importtime", "-m", "edgekit", "build", "--target", "first", *more], tiny.folder, tiny.environment()
    )
    _, told = ran.communicate()
    assert ran.returncode == 0, told
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
    assert "edgekit.pipeline.resolve" in loaded
    assert not {"torch", "transformers", "onnxruntime"} & loaded


def test_a_second_target_shares_all_but_the_measurement(tiny: Project, built: Mapping[str, Any]) -> None:
    done = tiny.run("build", "--target", "second")
    kept = [step for step in STEPS if f"{step:<10} done, kept" in done.stderr]
    assert kept == ["finetune", "distill", "linear", "record", "calibrate", "export"]


def test_another_scheme_shares_the_student(tiny: Project, built: Mapping[str, Any]) -> None:
    done = tiny.run("build", "--target", "third")
    kept = [step for step in STEPS if f"{step:<10} done, kept" in done.stderr]
    assert kept == ["finetune", "distill", "linear", "record", "calibrate"]
    assert "tracing the float graph" not in done.stderr, "it is kept of the first scheme"


def test_two_schemes_are_paired_by_what_their_verdicts_kept(tiny: Project, built: Mapping[str, Any]) -> None:
    """diff asks neither; the shares of right answers are those of the reports, and no text of the set is in the file."""
    (other,) = json.loads(tiny.run("build", "--target", "third", "--json").stdout)["bundles"]
    found = json.loads(tiny.run("diff", built["bundle"], other["bundle"], "--no-ask", "--json").stdout)["verified"]
    reports = [json.loads((tiny.folder / one["report"]).read_text()) for one in (built, other)]
    right = found["right"]
    assert (right["a"], right["b"]) == pytest.approx([report["accuracy"]["artifact"] for report in reports])
    assert (right["prompts"], found["why_not"]) == (reports[0]["prompts"], [])
    assert right["gained"] - right["lost"] == pytest.approx(right["difference"] * right["prompts"])
    assert right["interval"][0] <= right["difference"] <= right["interval"][1]
    assert found["changed"] >= right["lost"] + right["gained"]


def test_a_damaged_graph_is_traced_again(tiny: Project, built: Mapping[str, Any]) -> None:
    (graph,) = tiny.cache.glob("trace/*/float.onnx")
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = tiny.run("build", "--target", "first", "--scheme", "fp32", "--out", "other")
    assert "tracing the float graph" in done.stderr
    assert graph.read_bytes() == whole


def test_a_changed_margin_only_judges_again(tiny: Project, built: Mapping[str, Any]) -> None:
    done = tiny.run("build", "--target", "first", "--set", "accuracy.teacher_margin=0.05", "--out", "other")
    kept = [step for step in STEPS if f"{step:<10} done, kept" in done.stderr]
    assert kept == ["finetune", "distill", "linear", "record", "calibrate", "export"]


def test_stage_commands_are_the_build(tiny: Project, built: Mapping[str, Any], tmp_path: Path) -> None:
    alone = tiny.with_cache(tmp_path / "cache")
    work = tmp_path / "work"
    recipe = ("--recipe", "recipe.toml")
    target = ("--target", "first")
    alone.run("finetune", *recipe, "--out", work / "teacher")
    alone.run("distill", work / "teacher", *recipe, "--out", work / "student")
    alone.run("record", work / "teacher", work / "student", *recipe, "--out", work / "reference")
    alone.run("calibrate", work / "student", *recipe, "--out", work / "calibration")
    alone.run("export", work / "student", work / "calibration", *target, *recipe, "--out", work / "artifact")
    alone.run("verify", work / "artifact", work / "reference", *target, *recipe, "--out", work / "report")
    assert "<h1>" in (work / "report" / "report.html").read_text(encoding="utf-8")
    assert "report.html" not in (work / "report" / "verify.json").read_text(encoding="utf-8")
    alone.run("package", work / "artifact", work / "report", *target, *recipe, "--out", work / "dist")
    assert alone.sha256(work / "dist" / Path(built["archive"]).name) == tiny.sha256(built["archive"])
    # A verdict about something else does not ship.
    tight = tmp_path / "tight.toml"
    tight.write_text((tiny.folder / "targets" / "first.toml").read_text() + "\n[budget]\nbytes = 10\n")
    ask = ("--recipe", "recipe.toml", "--out", work / "other", "--target")
    refused = alone.run("package", work / "artifact", work / "report", *ask, tight, code=1)
    assert "its verdict is about another" in refused.stderr
    report = work / "report" / "report.json"
    report.write_text(report.read_text().replace('"verdict": "pass"', '"verdict": "fail"'))
    refused = alone.run("package", work / "artifact", work / "report", *ask, "first", code=1)
    assert "report.json: its sha256 is not the manifest's" in refused.stderr
    assert not (work / "other").exists()


def test_a_control_run_is_a_step_of_its_own(tiny: Project, built: Mapping[str, Any], tmp_path: Path) -> None:
    """Turned on, nothing is trained again but the control; the report then has what the teacher added, and before how to ask."""
    assert built["control"] is None
    offered = json.loads((tiny.folder / built["report"]).read_text())
    assert "control" not in offered
    assert "--set distill.control=true" in offered["control_offer"]
    asked = ("--target", "first", "--set", "distill.control=true", "--out", tmp_path / "dist")
    done = tiny.run("build", *asked, "--json")
    assert re.search(r"^  control +done, [\d.]+ s$", done.stderr, re.MULTILINE)
    kept = [step for step in STEPS if f"{step:<10} done, kept" in done.stderr]
    assert kept == ["finetune", "distill", "linear", "record", "calibrate", "export"]
    (bundle,) = json.loads(done.stdout)["bundles"]
    report = json.loads((tiny.folder / bundle["report"]).read_text())
    added = bundle["control"]
    assert report["control"] == added
    assert "control_offer" not in report
    assert added["difference"] == pytest.approx(added["student"] - added["control"])
    assert added["student"] == report["accuracy"]["student"]
    assert added["interval"][0] <= added["difference"] <= added["interval"][1]
    assert report["models"]["control"]["bytes"] == report["models"]["student"]["bytes"]
    assert bundle["sha256"] == built["sha256"]
    (plan,) = json.loads(tiny.run("build", *asked, "--dry-run", "--json").stdout)["plans"]
    assert plan["kept"] == {step: step != "package" for step in plan["steps"]}
    assert "control" in plan["steps"]


def test_a_student_of_ngrams_is_taken_like_any_other(tiny: Project, built: Mapping[str, Any], tmp_path: Path) -> None:
    """Its table is eight bits in the bundle, its answers are the teacher's labels; the teacher and the linear model are shared."""
    done = tiny.run("build", "--target", "first", "--student", "ngrams", "--out", tmp_path / "dist", "--json")
    kept = [step for step in STEPS if f"{step:<10} done, kept" in done.stderr]
    assert kept == ["finetune", "linear"]
    (bundle,) = json.loads(done.stdout)["bundles"]
    report = json.loads((tiny.folder / bundle["report"]).read_text())
    assert {check["name"]: check["verdict"] for check in report["checks"]}["as_original"] == "pass"
    assert report["accuracy"]["artifact"] > 0.8
    # 20,000 rows of 32 numbers in a byte each and a scale; graph, head and characters are small beside them.
    assert 20000 * 36 < report["artifact"]["bytes"] < 20000 * 36 + 20_000
    said = json.loads(tiny.run("run", bundle["bundle"], "please turn the light on", "--json").stdout)
    assert len(said["answers"][0]["answer"]["scores"]) == 5


def test_two_builds_at_once_both_succeed(tiny: Project, built: Mapping[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(tiny.cache, cache, ignore=shutil.ignore_patterns("export", "verify", "calibrate"))
    both = tiny.with_cache(cache)
    processes = [both.start("build", "--target", "first", "--out", tmp_path / "dist") for _ in range(2)]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert both.sha256(tmp_path / "dist" / Path(built["archive"]).name) == tiny.sha256(built["archive"])


def test_a_dropped_in_file_is_a_target(tiny: Project, built: Mapping[str, Any]) -> None:
    text = (tiny.folder / "targets" / "first.toml").read_text()
    (tiny.folder / "targets" / "my-board.toml").write_text(text.replace("A test machine", "My board"))
    assert "my-board" in tiny.run("targets", "list").stdout
    assert tiny.build("--target", "my-board")["bundles"][0]["target"] == "my-board"


def test_several_targets_are_all_tried(tiny: Project, built: Mapping[str, Any]) -> None:
    slow = (tiny.folder / "targets" / "first.toml").read_text() + "\n[budget]\nbytes = 10\n"
    (tiny.folder / "targets" / "impossible.toml").write_text(slow)
    bundles = tiny.build("--target", "impossible", "--target", "first", code=3)["bundles"]
    assert [one["target"] for one in bundles] == ["impossible", "first"]
    assert bundles[0]["verdict"] == "fail"
    assert bundles[0]["archive"] is None
    assert Path(tiny.folder / bundles[0]["report"]).is_file()
    assert bundles[1]["archive"] is not None


def test_dry_run_builds_nothing(tiny: Project, tmp_path: Path) -> None:
    fresh = tiny.with_cache(tmp_path / "cache")
    plan = json.loads(fresh.run("build", "--target", "first", "--dry-run", "--json", "--out", tmp_path / "d").stdout)
    assert plan["plans"][0]["estimate"]["memory_mb"] > 0
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("strict", [True, False])
def test_not_proven_ships_unless_strict(tiny: Project, built: Mapping[str, Any], strict: bool, tmp_path: Path) -> None:
    """Twenty prompts cannot prove a point."""
    data = tmp_path / "data"
    shutil.copytree(tiny.folder / "data", data)
    few = (data / "verify.jsonl").read_text().splitlines(keepends=True)[:20]
    (data / "verify.jsonl").write_text("".join(few))
    options = ["--target", "first", "--set", f"data.path={data}", "--out", str(tmp_path / "dist")]
    bundle = tiny.build(*options, *(["--strict"] if strict else []), code=3 if strict else 0)["bundles"][0]
    assert bundle["verdict"] == "not proven"
    assert (bundle["archive"] is None) == strict


def test_a_probed_machine_passes(tiny: Project) -> None:
    """The build's own accuracy is proven; its speed is where the machine is as fast as when it was probed."""
    tiny.run("targets", "probe", "--name", "here", "--p95-ms", "500", "--memory-mb", "2000", "--force", "--busy")
    bundle = tiny.build("--target", "here")["bundles"][0]
    report = json.loads((tiny.folder / bundle["report"]).read_text())
    verdicts = {check["name"]: check for check in report["checks"]}
    busy = {name: verdicts.pop(name) for name in ("p95_ms", "memory_mb") if verdicts[name]["verdict"] != "pass"}
    assert {name: check["verdict"] for name, check in verdicts.items()} == dict.fromkeys(verdicts, "pass")
    reasons = ("not within a factor of two", "busy or slowed", "processes")
    assert all(any(reason in check["remedy"] for reason in reasons) for check in busy.values())
    assert bundle["verdict"] == ("not proven" if busy else "pass")


def test_what_was_measured_is_history_and_holds_the_next_build(tiny: Project, built: Mapping[str, Any]) -> None:
    """A build adds a line where it measures and none where nothing changed; one that fell behind a baseline ends with 3."""
    del built
    tiny.build("--target", "first", "--fresh")
    (line,) = json.loads(tiny.run("history", "--json").stdout)["lines"]
    assert tiny.build("--target", "first")["bundles"][0]["exit_code"] == 0
    assert json.loads(tiny.run("history", "--json").stdout)["lines"] == [line]
    (entry,) = line
    del entry["against"]
    # Half the time: the new one is slower or, on a machine that is busy, not proven to be as fast.
    faster = {**entry, "sha256": "0" * 64, "disturbed": [], "p50_ms": [ms / 2 for ms in entry["p50_ms"]]}
    baseline = tiny.folder / "baseline.jsonl"
    baseline.write_text(json.dumps(faster) + "\n")
    worse = tiny.build("--target", "first", "--strict", "--baseline", str(baseline), code=3)["bundles"][0]
    assert worse["archive"] is None
    assert re.match(
        r"a project-first: (fail|not proven) against the baseline \(000000000000, measured .*p50_ms: ", worse["error"]
    )
    assert worse["against"]["changes"][0]["old"] == pytest.approx(worse["against"]["changes"][0]["new"] / 2)
    same = tiny.build("--target", "first", "--baseline", str(tiny.folder / "none.jsonl"), code=1)
    assert "none.jsonl: cannot be read" in same["error"]
