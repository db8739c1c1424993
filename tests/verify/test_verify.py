"""Verify on a tiny real model: all three verdicts, each for its own reason, and a report that the other modules read."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.cli.reported import report_lines
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.evidence import read_report
from edgekit.gate import Look
from edgekit.report.page import write_html
from edgekit.runtimes import neighbours
from edgekit.target import Measure, Target
from edgekit.verify import hardware, latency, measurements
from tests.verify.verify_folders import (
    OUTSIDE,
    make_artifact,
    make_graph,
    make_prompts,
    make_reference,
    make_target,
    run_verify,
)

PI = 'arch = "aarch64"\ncpu = "Cortex-A76"\ncores = 4\nfeatures = ["asimddp"]\nmemory_mb = 4096\nbandwidth_gbs = 11.2'
ROOMY = "p95_ms = 1000\nmemory_mb = 4000\nbytes = 100_000_000\nsequence = 6"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Prompts, their reference, and a folder to work in."""

    folder: Path
    prompts: Path
    reference: Path

    def verify(self, artifact: Path, target: Target, **changes: Any) -> dict[str, Any]:
        """The report, with its checks by name."""
        out = self.folder / f"report-{len(list(self.folder.glob('report-*')))}"
        asked = {
            "artifact": artifact,
            "reference": self.reference,
            "prompts": self.prompts,
            "target": target,
            "task": "text-classification",
            "accuracy": {},
            "out_of_scope": OUTSIDE,
        }
        return run_verify(out, **asked | changes)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bench")
    prompts = make_prompts(folder / "prompts")
    return prompts, make_reference(folder / "reference", prompts)


@pytest.fixture
def bench(shared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setitem(measurements.TIMING, "seconds", 1.0)
    monkeypatch.setattr(latency, "PROCESSES", latency.FEWEST)
    # Neighbours slow a shared machine by more than two; the rules themselves are tested with figures of their own.
    monkeypatch.setattr(hardware, "_LIKE", 1e3)
    monkeypatch.setattr(hardware, "scales", lambda *_, **__: (1.0, 1.0))
    monkeypatch.setattr(neighbours, "disturbances", lambda *_: [])
    return Bench(folder=tmp_path, prompts=shared[0], reference=shared[1])


def test_passes_on_the_machine_that_the_target_describes(bench: Bench) -> None:
    report = bench.verify(make_artifact(bench.folder / "artifact"), make_target(bench.folder, ROOMY))
    assert {name: check["verdict"] for name, check in report["by_name"].items()} == dict.fromkeys(
        [
            *("accuracy_vs_student", "accuracy_vs_teacher", "p95_ms", "memory_mb", "bytes"),
            *("plausibility", "provider", "arithmetic", "as_original"),
        ],
        "pass",
    )
    assert report["verdict"] == "pass"
    assert report["accuracy_only"] is False
    assert report["emulated"] is False
    assert report["accuracy"] == {"teacher": 1.0, "student": 1.0, "artifact": 1.0}
    perfect = {"in_scope_accuracy": 1.0, "out_of_scope_recall": 1.0, "auroc": 1.0}
    assert report["scope"] == dict.fromkeys(("teacher", "student", "artifact"), perfect)
    # Ten calibrate prompts of no class, all rejected: 1 - 0.05^(1/10) may still be accepted.
    assert any("rejects 10 of them, so its recall on such texts is 74% at least" in note for note in report["notes"])
    assert report["shape"] == {"batch": 1, "sequence": 6, "threads": 1}
    assert report["memory_mb"] > 10
    assert report["runtime"]["name"] == "onnxruntime"
    assert report["device"]["bandwidth_gbs"] > 0
    roofline = report["roofline"]
    assert roofline["measured_ms"] == report["latency_ms"]["p50"]
    assert roofline["ratio"] == pytest.approx(roofline["predicted_ms"] / roofline["measured_ms"], abs=1e-4)
    assert (roofline["note"] is None) is (0.6 <= roofline["ratio"] <= 1.1)
    assert report["work"]["time_shares"]
    assert len(report["latency_raw_ms"]) == 5 * 200
    assert len(report["latency_processes_ms"]) == 5
    assert report["by_name"]["p95_ms"]["detail"].startswith("5 processes, ")
    check = report["by_name"]["accuracy_vs_student"]
    assert (check["limit"], check["loss"], check["looks"]) == (0.02, 0.0, 1)
    assert check["interval"] == pytest.approx([-0.00746, 0.00746], abs=1e-4)
    assert check["bound"] == check["interval"][1]
    for comparison in report["comparisons"]:
        assert {"reference", "metric", "loss", "bound", "margin", "flips", "verdict"} <= set(comparison)
    assert [entry["verdict"] for entry in report["comparisons"]] == ["pass", "pass", None]
    with np.load(report["out"] / "outputs.npz") as arrays:
        assert arrays["outputs"].shape == (400, 3)
    prompts = [json.loads(line) for line in (bench.prompts / "verify.jsonl").read_text().splitlines()]
    kept = json.loads((report["out"] / "outcomes.json").read_text())
    assert kept["answers"] == [prompt["label"] for prompt in prompts]
    assert kept["right"] == [True] * 400
    assert len(set(kept["prompts"])) == 400, "the same text a second time is another prompt"
    assert kept["artifact"] == report["artifact"]["sha256"]
    assert not any(
        text in (report["out"] / "outcomes.json").read_text() for text in {prompt["text"] for prompt in prompts}
    )
    assert measurements.read_measurements(report["out"]).peak_mb == report["memory_mb"]


def test_other_modules_read_the_report(bench: Bench) -> None:
    make_graph(bench.folder / "flipped.onnx", flip=True)
    artifact = make_artifact(bench.folder / "artifact", bench.folder / "flipped.onnx")
    report = bench.verify(artifact, make_target(bench.folder, ROOMY, PI))
    assert any("accuracy_vs_student" in line for line in report_lines(read_report(report["out"])))
    write_html(read_report(report["out"]), bench.folder / "report.html")
    assert "not within" not in (bench.folder / "report.html").read_text(encoding="utf-8")


def test_a_damaged_model_fails(bench: Bench) -> None:
    make_graph(bench.folder / "flipped.onnx", flip=True)
    artifact = make_artifact(bench.folder / "artifact", bench.folder / "flipped.onnx")
    report = bench.verify(artifact, make_target(bench.folder, "", PI))
    assert report["verdict"] == "fail"
    check = report["by_name"]["accuracy_vs_student"]
    assert check["verdict"] == "fail"
    assert check["interval"][0] > 0.4
    assert "edgekit inspect" in check["remedy"]
    assert report["comparisons"][0]["flips"] == {"lost": 200, "gained": 0}
    assert {entry["gained"] for entry in report["confusion"]} == {100}
    assert report["accuracy_only"] is True
    assert report["notes"][0].startswith("accuracy only")


def test_another_machine_proves_accuracy_only(bench: Bench, state: Path) -> None:
    report = bench.verify(make_artifact(bench.folder / "artifact"), make_target(bench.folder, ROOMY, PI))
    verdicts = {name: check["verdict"] for name, check in report["by_name"].items()}
    assert report["verdict"] == "not proven"
    assert verdicts["accuracy_vs_student"] == verdicts["bytes"] == "pass"
    assert verdicts["p95_ms"] == verdicts["memory_mb"] == "not proven"
    assert "aarch64" in report["by_name"]["p95_ms"]["remedy"]
    assert "targets probe" in report["by_name"]["p95_ms"]["remedy"]
    assert report["by_name"]["p95_ms"]["measured"] > 0
    assert len(report["latency_processes_ms"]) == 1, "what is not judged is timed once"
    assert not list(state.glob("measured/*/*")), "and not kept"


def test_few_prompts_prove_nothing(bench: Bench) -> None:
    prompts = make_prompts(bench.folder / "prompts", verify=20)
    reference = make_reference(bench.folder / "reference", prompts)
    report = bench.verify(
        make_artifact(bench.folder / "artifact"), make_target(bench.folder), prompts=prompts, reference=reference
    )
    check = report["by_name"]["accuracy_vs_student"]
    assert report["verdict"] == check["verdict"] == "not proven"
    assert "about 150" in check["remedy"]


def test_a_later_look_has_what_the_first_left(bench: Bench) -> None:
    report = bench.verify(
        make_artifact(bench.folder / "artifact"), make_target(bench.folder, "", PI), look=Look(index=2, alpha=0.0004)
    )
    check = report["by_name"]["accuracy_vs_student"]
    assert check["looks"] == 2
    assert report["look"] == {"index": 2, "alpha": 0.0004, "stage": 1, "stages": 1}
    assert check["bound"] == pytest.approx(1 - 0.0004 ** (1 / 400))


def test_a_slowdown_and_a_limit_that_is_too_low_fail(bench: Bench) -> None:
    """Six times the layers take several times the time; the limit lies between."""
    make_graph(bench.folder / "plain.onnx", depth=20)
    make_graph(bench.folder / "slow.onnx", depth=120)
    plain = make_artifact(bench.folder / "plain", bench.folder / "plain.onnx")
    slow = make_artifact(bench.folder / "slow", bench.folder / "slow.onnx")
    target = make_target(bench.folder, "p50_ms = 1000")
    p50 = bench.verify(plain, target)["latency_ms"]["p50"]
    target = make_target(bench.folder, f"p50_ms = {1.5 * p50}\np95_ms = {p50 / 10}")
    report = bench.verify(slow, target)
    assert report["verdict"] == "fail"
    assert report["by_name"]["p50_ms"]["verdict"] == "fail"
    assert report["by_name"]["p50_ms"]["interval"][0] > 1.5 * p50
    assert report["by_name"]["p95_ms"]["verdict"] == "fail"
    assert "x the limit" in report["by_name"]["p50_ms"]["remedy"]


def test_limits_of_bytes_and_memory_fail(bench: Bench) -> None:
    target = make_target(bench.folder, "bytes = 100\nmemory_mb = 1")
    report = bench.verify(make_artifact(bench.folder / "artifact"), target)
    assert report["by_name"]["bytes"]["verdict"] == report["by_name"]["memory_mb"]["verdict"] == "fail"
    assert all(check["remedy"] for check in report["checks"] if check["verdict"] != "pass")


def test_an_absent_provider_is_not_proven(bench: Bench) -> None:
    target = make_target(bench.folder, ROOMY, runtime='provider = "QNNExecutionProvider"\nthreads = 1')
    report = bench.verify(make_artifact(bench.folder / "artifact"), target)
    check = report["by_name"]["provider"]
    assert check["verdict"] == report["by_name"]["p95_ms"]["verdict"] == "not proven"
    assert "onnxruntime-qnn" in check["remedy"]


def test_answers_that_are_not_numbers_fail(bench: Bench) -> None:
    make_graph(bench.folder / "nan.onnx")
    model = onnx.load(str(bench.folder / "nan.onnx"))
    (mix,) = (tensor for tensor in model.graph.initializer if tensor.name == "mix")
    mix.CopyFrom(numpy_helper.from_array(np.full((3, 3), np.nan, np.float32), "mix"))
    onnx.save(model, str(bench.folder / "nan.onnx"))
    artifact = make_artifact(bench.folder / "artifact", bench.folder / "nan.onnx")
    report = bench.verify(artifact, make_target(bench.folder, "", PI))
    assert report["verdict"] == "fail"
    assert report["by_name"]["finite_outputs"]["verdict"] == "fail"


def test_a_probe_that_dies_is_a_device_failure(bench: Bench) -> None:
    (bench.folder / "broken.onnx").write_bytes(b"nothing")
    artifact = make_artifact(bench.folder / "artifact", bench.folder / "broken.onnx")
    with pytest.raises(DeviceFailed, match=r"model\.onnx: the probe ended with exit code 1"):
        bench.verify(artifact, make_target(bench.folder, "", PI))


def test_folders_that_do_not_belong_together_are_refused(bench: Bench) -> None:
    artifact = make_artifact(bench.folder / "artifact", classes=["x", "y", "z"])
    with pytest.raises(EdgekitError, match="its classes are not the artifact's"):
        bench.verify(artifact, make_target(bench.folder, "", PI))
    other = make_prompts(bench.folder / "prompts", verify=8)
    with pytest.raises(EdgekitError, match="recorded on other verify prompts"):
        bench.verify(make_artifact(bench.folder / "sound"), make_target(bench.folder, "", PI), prompts=other)


def test_labels_that_the_model_does_not_have_are_refused(bench: Bench) -> None:
    """0 % right before and after would be no loss."""
    artifact = make_artifact(bench.folder / "artifact")
    with pytest.raises(EdgekitError, match=r"have 1 labels that model\.onnx does not know, such as 'none'"):
        bench.verify(artifact, make_target(bench.folder, "", PI), out_of_scope=None)


def test_absolute_accuracy_may_have_a_floor(bench: Bench) -> None:
    make_graph(bench.folder / "flipped.onnx", flip=True)
    sound = make_artifact(bench.folder / "sound")
    flipped = make_artifact(bench.folder / "flipped", bench.folder / "flipped.onnx")
    target = make_target(bench.folder, "", PI)
    for artifact, verdict in ((sound, "pass"), (flipped, "fail")):
        report = bench.verify(artifact, target, accuracy={"at_least": 0.9})
        check = report["by_name"]["accuracy"]
        assert (check["verdict"], check["limit"], check["detail"]) == (verdict, 0.9, "at least")
        assert any(
            line.startswith("accuracy ") and "at least 90 %" in line
            for line in report_lines(read_report(report["out"]))
        )
    assert report["margins"] == {"student_margin": 0.02, "teacher_margin": 0.06, "at_least": 0.9, "stages": 1}


def test_a_reference_of_anything_else_is_refused(bench: Bench) -> None:
    """Equal numbers of prompts in another order, and another student, would prove anything."""
    artifact = make_artifact(bench.folder / "artifact")
    shuffled = make_prompts(bench.folder / "prompts")
    rows = (shuffled / "verify.jsonl").read_text().splitlines()
    (shuffled / "verify.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    with pytest.raises(EdgekitError, match="recorded on other verify prompts"):
        bench.verify(artifact, make_target(bench.folder, "", PI), prompts=shuffled)
    manifest = json.loads((artifact / "export.json").read_text())
    (artifact / "export.json").write_text(json.dumps(manifest | {"inputs": {"student": "another"}}))
    with pytest.raises(EdgekitError, match="what another student answered"):
        bench.verify(artifact, make_target(bench.folder, "", PI))


def test_measuring_again_until_it_passes_is_several_measurements(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was measured of an artifact on a device is judged together, each time at a smaller alpha; a busy time is not."""
    artifact = make_artifact(bench.folder / "artifact")
    target = make_target(bench.folder, ROOMY)
    first = bench.verify(artifact, target)
    assert first["by_name"]["p95_ms"]["looks"] == first["measurement"] == 1
    monkeypatch.setattr(neighbours, "disturbances", lambda *_: ["other programs took 1.0 of 2 cores"])
    busy = bench.verify(artifact, make_target(bench.folder, "p95_ms = 1e-4\nsequence = 6"))
    check = busy["by_name"]["p95_ms"]
    assert (check["verdict"], busy["verdict"], busy["measurement"]) == ("not proven", "not proven", 2)
    assert "other programs took 1.0 of 2 cores" in check["remedy"]
    assert busy["disturbed"] == ["other programs took 1.0 of 2 cores"]
    monkeypatch.setattr(neighbours, "disturbances", lambda *_: [])
    # Another target, whose runtime and shape are the same.
    third = bench.verify(artifact, make_target(bench.folder, "p95_ms = 1e-4\nsequence = 6"))
    check = third["by_name"]["p95_ms"]
    assert (check["verdict"], check["looks"]) == ("fail", 2), "the busy one does not count"
    assert check["detail"].startswith("10 processes of 2 measurements, ")
    other = bench.verify(artifact, make_target(bench.folder, "p95_ms = 1000\nsequence = 5"))
    assert other["measurement"] == 1, "another length is another time"


def test_phases_and_the_record_of_a_measurement(bench: Bench) -> None:
    """All that is asked for beside the limits, of a real artifact: a curve, the best setting, and whether it is comparable."""
    artifact = make_artifact(bench.folder / "artifact")
    target = make_target(bench.folder, "p99_ms = 1000\nsequence = 6")
    report = bench.verify(artifact, target, measure=Measure(sustained_s=0.5, sweep=True))
    times = report["latency_ms"]
    assert times["p50"] <= times["p95"] <= times["p99"]
    assert all(lo <= hi for lo, hi in times["bounds"].values())
    assert len(times["first_ten"]) == 10
    assert times["first_ten"][0] == times["first"]
    assert times["cold"] > times["load"] + times["first"]
    # Its verdict is the machine's: a slow call in a hundred is mostly other programs' doing.
    check = report["by_name"]["p99_ms"]
    assert (check["bound"], check["measured"]) == (times["bounds"]["p99"][1], pytest.approx(times["p99"]))
    sustained = report["sustained"]
    assert sustained["seconds"] >= sustained["asked_s"] == 0.5
    assert 0.5 <= sustained["curve"][-1]["seconds"] <= sustained["seconds"]
    assert sustained["cold"] > 0
    tuning = report["tuning"]
    assert tuning["best"] in tuning["tried"]
    assert tuning["artifact"] == report["artifact"]["sha256"] == report["comparable"]["sha256"]
    assert report["comparable"]["start"].startswith("warm, after ")
    assert report["comparable"]["processes"] == 5
    lines = " ".join(report_lines(read_report(report["out"])))
    for words in (
        "sustained for ",
        "best setting here",
        "comparable with other measurements",
        "the first ten calls",
    ):
        assert words in " ".join(lines.split()), words


def test_a_measurement_ends_at_the_first_look_that_settles_it(bench: Bench) -> None:
    artifact = make_artifact(bench.folder / "artifact")
    far = bench.verify(artifact, make_target(bench.folder, "p50_ms = 1000\nsequence = 6"), measure=Measure(processes=9))
    assert (far["by_name"]["p50_ms"]["verdict"], len(far["latency_processes_ms"])) == ("pass", 5), "of at most nine"


def test_against_another_teacher_nothing_is_judged(bench: Bench) -> None:
    """The student stands; the teacher is neither compared nor shown, and the whole verdict is no pass."""
    target = make_target(bench.folder)
    report = bench.verify(
        make_artifact(bench.folder / "artifact"), target, foreign_teacher="record the recipe's teacher"
    )
    assert report["by_name"]["accuracy_vs_student"]["verdict"] == "pass"
    assert "accuracy_vs_teacher" not in report["by_name"]
    check = report["by_name"]["reference"]
    assert (check["verdict"], check["remedy"]) == ("not proven", "record the recipe's teacher")
    assert report["verdict"] == "not proven"
    assert report["accuracy"] == {"teacher": None, "student": 1.0, "artifact": 1.0}
    assert [entry["reference"] for entry in report["comparisons"]] == ["student"]
    assert "teacher" not in report["models"]


def test_a_record_of_another_version_is_refused_before_anything_runs(bench: Bench) -> None:
    other = shutil.copytree(bench.reference, bench.folder / "reference")
    path = other / "record.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["models"] = {"student": {"bytes": 1}}
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        EdgekitError, match=r"record\.json: facts\.models\.student\.latency_ms: missing key; .*edgekit record"
    ):
        bench.verify(make_artifact(bench.folder / "artifact"), make_target(bench.folder, "", PI), reference=other)
    assert not list(bench.folder.glob("report-*/measurements.json"))
