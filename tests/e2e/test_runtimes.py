"""A build for a runtime that is not the format's first: OpenVINO answers, is judged, and is what the bundle's loader opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_project import TARGET, make_project

from tests.e2e.conftest import SLOWEST, Project

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A small project with a target of one runtime and one of two."""
    make_project(tmp_path)
    table = TARGET.format(scheme="int8-static").replace(
        'scheme = "int8-static"', 'scheme = "int8-static"\nlayout = "qdq"'
    )
    both = f"{table}\n[runtime.openvino]\nthreads = 1\n"
    (tmp_path / "targets" / "both.toml").write_text(both)
    (tmp_path / "targets" / "other.toml").write_text(both.replace("[runtime.onnxruntime]\nthreads = 1\n", ""))
    return Project(folder=tmp_path, cache=tmp_path / ".edgekit")


def test_openvino_answers_and_ships(project: Project) -> None:
    (plan,) = project.build("--target", "both", "--dry-run")["plans"]
    assert plan["runtimes"] == ["onnxruntime", "openvino"]
    shown = project.run("build", "--target", "both", "--dry-run").stdout
    assert "onnxruntime, or where it is clearly faster on the device openvino" in " ".join(shown.split())
    (made,) = project.build("--target", "other")["bundles"]
    report = json.loads((project.folder / made["report"]).read_text())
    checks = {check["name"]: check for check in report["checks"]}
    assert (report["runtime"]["name"], checks["provider"]["verdict"]) == ("openvino", "pass")
    assert report["work"]["precisions"].get("i8", 0) > 0
    assert checks["accuracy_vs_student"]["verdict"] == "pass"
    manifest = json.loads((project.folder / made["bundle"] / "bundle.json").read_text())
    assert manifest["runtime"] == {"minimum": "2026.4", "name": "openvino", "precision": "f32", "threads": 1}
    assert "pip install openvino tokenizers numpy" in (project.folder / made["bundle"] / "README.md").read_text()
    texts = [json.loads(line) for line in (project.folder / "data" / "verify.jsonl").read_text().splitlines()[:20]]
    ran = project.run("run", made["bundle"], *[row["text"] for row in texts], "--json")
    answers = json.loads(ran.stdout)["answers"]
    right = [answer["answer"]["label"] == row["label"] for answer, row in zip(answers, texts, strict=True)]
    assert sum(right) >= 15
