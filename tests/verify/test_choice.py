"""Which runtime answers, where a target names several: the one that is clearly faster, by times alone, on a machine that may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import EdgekitError
from edgekit.evidence import RuntimeTime
from edgekit.runtimes import openvino
from edgekit.target import load_target
from edgekit.verify import choice
from tests.verify.test_verify import PI, ROOMY, Bench, bench, shared
from tests.verify.verify_folders import make_artifact, make_target

__all__ = ["bench", "shared"]

BOTH = "threads = 1\n[runtime.openvino]\nthreads = 1"


def times(*ms: float) -> list[RuntimeTime]:
    return [RuntimeTime(name=f"r{index}", version="1", p50_ms=value) for index, value in enumerate(ms)]


@pytest.mark.parametrize(
    ("ms", "chosen"),
    [((5.0,), "r0"), ((5.0, 4.0), "r1"), ((5.0, 4.8), "r0"), ((4.0, 5.0), "r0"), ((5.0, 4.0, 3.0), "r2")],
)
def test_only_what_is_clearly_faster_displaces_the_first(ms: tuple[float, ...], chosen: str) -> None:
    assert choice.winner(times(*ms)) == chosen


def test_the_note_says_what_was_measured_and_why() -> None:
    assert choice.note([], "r0", []) == []
    assert choice.note(times(5.0, 4.0), "r1", []) == ["runtime: r1 of r0, r1 (the median call here: r0 5 ms, r1 4 ms)"]
    assert "another must be faster than 95% of the first one's time" in choice.note(times(5.0, 4.9), "r0", [])[0]
    (foreign,) = choice.note(times(5.0, 4.0), "r0", ["2 cores, not 4"])
    assert "may not vouch for the target (2 cores, not 4), so the first that the target names is taken" in foreign


def test_the_faster_one_answers_and_is_judged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one that is here is chance: the rule is tested above, and openvino is taken for it."""
    monkeypatch.setattr(choice, "ROUNDS", 2)
    monkeypatch.setattr(choice, "winner", lambda raced: raced[1].name)
    report = bench.verify(make_artifact(bench.folder / "artifact"), make_target(bench.folder, ROOMY, runtime=BOTH))
    assert [one["name"] for one in report["runtimes"]] == ["onnxruntime", "openvino"]
    assert all(one["p50_ms"] > 0 and one["version"] for one in report["runtimes"])
    assert (report["runtime"]["name"], report["runtime"]["version"]) == ("openvino", openvino.version())
    assert report["verdict"] == "pass"
    assert report["by_name"]["provider"]["detail"].endswith("on the CPU (1 in f32)")
    assert any(note.startswith("runtime: openvino of onnxruntime, openvino (") for note in report["notes"])


def test_a_machine_that_may_not_vouch_for_the_target_chooses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "ROUNDS", 1)
    monkeypatch.setattr(choice, "winner", lambda raced: raced[1].name)
    target = make_target(bench.folder, ROOMY, hardware=PI, runtime=BOTH)
    report = bench.verify(make_artifact(bench.folder / "artifact"), target)
    assert report["runtime"]["name"] == "onnxruntime"
    assert any("may not vouch for the target" in note and note.startswith("runtime: ") for note in report["notes"])


def test_a_file_of_onnxruntimes_own_operators_has_one_candidate(bench: Bench, tmp_path: Path) -> None:
    artifact = make_artifact(bench.folder / "artifact", operators=["Gather", "com.microsoft.FusedMatMul"])
    report = bench.verify(artifact, make_target(bench.folder, ROOMY, runtime=BOTH))
    assert (report["runtime"]["name"], report.get("runtimes")) == ("onnxruntime", None)
    path = tmp_path / "alone.toml"
    path.write_text((bench.folder / "here.toml").read_text().replace("[runtime.onnxruntime]\nthreads = 1\n", ""))
    with pytest.raises(EdgekitError, match=r"alone: runtime\.openvino: does not run such a file .*com\.microsoft"):
        bench.verify(artifact, load_target(str(path)))
