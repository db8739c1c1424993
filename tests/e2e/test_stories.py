"""The storyteller: made from nothing, built in both formats, compared, told."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from edgekit.formats.gguf import AUTO
from tests.e2e.conftest import ROOT, SLOWEST, Project, compared

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]
# A quarter of the example's training: sentences are not yet stories, and every step is the same.
SHORTER = ("--set", "teacher.create.epochs=1")
# A third of the example's prompts: as many as bound a loss (`gate.FEWEST_CLUSTERS`).
ROWS = {"calibrate": 64, "verify": 100}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder with the example and its texts, built as README says."""
    folder = tmp_path_factory.mktemp("stories")
    for name in ("examples/stories", "calib_data/stories"):
        shutil.copytree(ROOT / name, folder / name)
    for split, rows in ROWS.items():
        path = folder / "calib_data" / "stories" / f"{split}.jsonl"
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]), encoding="utf-8")
    return Project(folder=folder, cache=folder / ".edgekit")


def test_both_formats_are_built_and_one_is_named(stories: Project) -> None:
    line = ("--recipe", "examples/stories", "--target", "laptop-cpu", "--format", "gguf", "--format", "onnx", *SHORTER)
    told = stories.run("build", *line)
    assert [one["format"] for one in compared(told.stdout)] == ["gguf", "onnx"]
    assert "ship to laptop-cpu: " in told.stdout
    found = json.loads(stories.run("build", "--json", *line).stdout)
    assert {one["format"] for one in found["bundles"]} == {"gguf", "onnx"}
    (ship,) = found["ship"]
    assert ship["target"] == "laptop-cpu"
    assert ship["format"] in {"gguf", "onnx"}
    assert Path(stories.folder, ship["archive"]).is_file()
    for one in found["bundles"]:
        report = json.loads(Path(stories.folder, one["report"]).read_text())
        assert report["verdict"] != "fail", [check for check in report["checks"] if check["verdict"] == "fail"]
        assert report["kl"]["mean"] < 0.1
        assert report["tokens_per_second"]["decode"] > 0
        assert set(report["ttft_ms"]) >= {"16", "64"}


@pytest.mark.parametrize("format_", ["gguf", "onnx"])
def test_a_story_is_told(stories: Project, format_: str) -> None:
    bundle = f"dist/stories-laptop-cpu-{format_}"
    said = stories.run("run", bundle, "Once upon a time", "--most", "20").stdout
    assert len(said.split()) >= 5
    again = json.loads(stories.run("run", bundle, "Once upon a time", "--most", "20", "--json").stdout)
    assert again["answers"][0]["answer"].strip() == said.strip()


def test_both_are_paired_by_what_their_verdicts_kept(stories: Project) -> None:
    """diff asks neither (code 3: another runtime); the means are those of the reports, whose perplexity is e to that."""
    names = [f"dist/stories-laptop-cpu-{format_}" for format_ in ("gguf", "onnx")]
    found = json.loads(stories.run("diff", *names, "--no-ask", "--json", code=3).stdout)["verified"]
    reports = [json.loads(Path(stories.folder, f"{name}.report.json").read_text()) for name in names]
    assert (found["prompts"], found["why_not"]) == (ROWS["verify"], [])
    for side, report in zip("ab", reports, strict=True):
        assert found["nats"][side] == pytest.approx(math.log(report["perplexity"]["artifact"]), abs=1e-4)
    low, high = found["nats"]["interval"]
    assert low <= found["nats"]["difference"] <= high
    assert high - low < 0.1, "the same prompts: what is common to both does not count"


def test_what_others_open_is_in_the_bundle(stories: Project) -> None:
    bundle = stories.folder / "dist" / "stories-laptop-cpu-gguf"
    assert {path.name for path in bundle.iterdir()} == {
        "bundle.json", "check.py", "golden.json", "load.py", "model.gguf", "Modelfile", "README.md"
    }  # fmt: skip
    found = json.loads(stories.run("inspect", bundle / "model.gguf", "--json").stdout)
    assert found["architecture"] == "llama"
    assert found["metadata"]["edgekit.scheme"] in AUTO["tokens"]
