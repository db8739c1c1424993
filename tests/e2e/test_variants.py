"""Checkpoints that say more than tokenizer.json, built without quantization: the bundles answer as the originals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import ROOT, SLOWEST, Project
from tests.hub_variants import CLASSIFIERS, EMBEDDERS, TEXTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]
TARGET = """\
title = "A test machine"
[hardware]
arch = "x86_64"
cpu = "any"
cores = 2
features = []
memory_mb = 4096
sources = ["made up for a test"]
[export.TASK]
format = "onnx"
scheme = "fp32"
[runtime.onnxruntime]
threads = 1
"""


def build(folder: Path, task: str) -> tuple[Project, dict[str, Any]]:
    """The checkpoint in ./model built for a board, and its report."""
    for split, rows in (("calibrate", 24), ("verify", 60)):
        lines = (ROOT / "calib_data" / "assistant" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(lines[:rows]) + "\n", encoding="utf-8")
    data = '[data]\ncalibrate = "calibrate.jsonl"\nverify = "verify.jsonl"\nlabel = ""\nmax_length = 24\n'
    (folder / "recipe.toml").write_text(f'task = "{task}"\n[teacher]\nsource = "./model"\n{data}', encoding="utf-8")
    (folder / "board.toml").write_text(TARGET.replace("TASK", task), encoding="utf-8")
    project = Project(folder=folder, cache=folder / ".edgekit")
    project.run("build", "--recipe", "recipe.toml", "--target", "board.toml")
    (report,) = (folder / "dist").glob("*.report.json")
    return project, json.loads(report.read_text(encoding="utf-8"))


def answers(project: Project) -> list[Any]:
    (manifest,) = (project.folder / "dist").glob("*/bundle.json")
    out = project.run("run", manifest.parent, *TEXTS, "--json").stdout
    return [one["answer"] for one in json.loads(out)["answers"]]


def as_original(report: dict[str, Any]) -> dict[str, Any]:
    (check,) = (check for check in report["checks"] if check["name"] == "as_original")
    return dict(check)


def test_a_classifier_that_cuts_on_the_left(tmp_path: Path) -> None:
    from transformers import pipeline

    CLASSIFIERS["truncation_side"](tmp_path / "model")
    project, report = build(tmp_path, "text-classification")
    assert (as_original(report)["verdict"], as_original(report)["measured"]) == ("pass", "as the original")
    asked = pipeline("text-classification", str(tmp_path / "model"), device="cpu", top_k=None)
    for text, said in zip(TEXTS, answers(project), strict=True):
        wanted = {entry["label"]: entry["score"] for entry in asked([text], truncation=True, max_length=24)[0]}
        assert said["scores"] == pytest.approx(wanted, abs=1e-4)


def test_an_embedder_with_a_prompt(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    EMBEDDERS["prompt"](tmp_path / "model")
    project, report = build(tmp_path, "feature-extraction")
    assert as_original(report)["verdict"] == "pass"
    assert "sentence-transformers" in as_original(report)["detail"]
    model = library.SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    model.max_seq_length = 24
    for text, said in zip(TEXTS, answers(project), strict=True):
        wanted = model.encode(text)
        np.testing.assert_allclose(said, wanted, atol=1e-4 * float(np.linalg.norm(wanted)))
