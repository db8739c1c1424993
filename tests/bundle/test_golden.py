"""Golden answers: five calibrate texts with what the artifact answers, the same bytes each time, asked of other sessions."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgekit.bundle import golden as golden_module
from edgekit.bundle.golden import GOLDEN, answers, choose
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.open import open_bundle
from edgekit.bundle.package import Lineage, Packaged, PackageInputs, package
from edgekit.workspace import file_sha256, write_product
from tests.architectures.decoders import make_decoder
from tests.artifacts import LABELS, MAX_LENGTH, make_artifact, make_report, make_target, make_tokenizer
from tests.bundle.test_chat import read_as_whole, write_manifest
from tests.llama_files import write_llama

SPOKEN = [
    "turn on the light",
    "turn off the light",
    "play some jazz music",
    "light light on",
    "off off off",
    "the the the",
]


def pack_golden(folder: Path, texts: list[str] = SPOKEN, out: Path | None = None, **made: Any) -> Packaged:
    """A bundle with golden answers to some of these texts."""
    prompts = folder / "prompts"
    prompts.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text, "label": None}) for text in texts)
    (prompts / "calibrate.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    artifact = folder / "artifact"
    if not artifact.exists():
        make_artifact(artifact, **made)
        make_report(folder / "report", artifact)
    inputs = PackageInputs(
        artifact=artifact,
        report=folder / "report",
        name="demo-board",
        recipe="demo",
        target=make_target(folder),
        lineage=Lineage(),
        calibrate=prompts,
    )
    return package(inputs, out or folder / "out")


def test_a_classifiers_golden_answers_are_its_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against a plain session and tokenizer; of a text that is near a tie none ships; unchanged, nothing is asked again."""
    packed = pack_golden(tmp_path)
    found = json.loads((packed.bundle / GOLDEN).read_text(encoding="utf-8"))
    assert (found["format"], found["tolerance"]) == (1, 0.05)
    session = onnxruntime.InferenceSession(str(packed.bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = make_tokenizer(tmp_path / "tokenizer.json", MAX_LENGTH)
    for row in found["rows"]:
        ids = np.array([tokenizer.encode(row["text"]).ids], dtype=np.int64)
        logits = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0].astype(np.float64)
        scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        rejected = scores.max() < 0.7
        label = "none" if rejected else LABELS[int(scores.argmax())]
        score = 1 - scores.max() if rejected else scores.max()
        assert (row["label"], pytest.approx(row["score"], abs=1e-6)) == (label, score)
    assert len(found["rows"]) == 5
    assert {row["label"] for row in found["rows"]} == {*LABELS, "none"}
    manifest = open_bundle(packed.archive).manifest
    assert (manifest.files or {})[GOLDEN].sha256 == file_sha256(packed.bundle / GOLDEN)
    again = pack_golden(tmp_path / "again")
    assert again.archive.read_bytes() == packed.archive.read_bytes()
    monkeypatch.setattr(golden_module, "apart", lambda *_, **__: pytest.fail("asked again"))
    stamp = packed.archive.stat().st_mtime_ns
    assert pack_golden(tmp_path).archive.stat().st_mtime_ns == stamp


def test_where_the_model_does_not_run_here_the_bundle_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "edgekit")
    make_artifact(tmp_path / "artifact")
    facts = json.loads((tmp_path / "artifact" / "export.json").read_text())["facts"]
    (tmp_path / "artifact" / "export.json").unlink()
    model = tmp_path / "artifact" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-40])
    facts |= {"sha256": file_sha256(model), "bytes": model.stat().st_size}
    write_product(tmp_path / "artifact", "export", key="test", inputs={"student": "a test"}, facts=facts)
    make_report(tmp_path / "report", tmp_path / "artifact")
    packed = pack_golden(tmp_path)
    assert not (packed.bundle / GOLDEN).exists()
    assert open_bundle(packed.bundle)
    assert "demo-board: it ships without golden answers: " in caplog.text


def test_an_encoders_golden_answers_are_its_embeddings(tmp_path: Path) -> None:
    packed = pack_golden(tmp_path, output="embedding")
    rows = json.loads((packed.bundle / GOLDEN).read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 5
    assert next(row["embedding"] for row in rows if row["text"] == "turn on the light") == [6.0, 0.0, -2.0]


def test_a_decoders_golden_answers_are_llama_cpps_likeliest_tokens(tmp_path: Path) -> None:
    """Held against llama_cpp's own greedy generation."""
    llama_cpp = pytest.importorskip("llama_cpp")
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    write_llama(make_decoder("llama", tmp_path / "checkpoint", rope_parameters=rope), tmp_path / "model.gguf")
    whole = read_as_whole(json.loads((write_manifest(tmp_path) / "bundle.json").read_text()))
    whole = replace(whole, task="text-generation")
    (tmp_path / "bundle.json").write_text(whole.to_json(), encoding="utf-8")
    rows = answers(str(tmp_path), ["turn the kitchen light on", "play"])
    llama = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), n_ctx=256, verbose=False, flash_attn=False, type_k=0, type_v=0, n_threads=1
    )
    for row in rows:
        asked = llama.tokenize(str(row["text"]).encode())
        tokens = row["tokens"]
        assert row["asked"] == asked
        assert isinstance(tokens, list)
        greedy = llama.generate(asked, temp=0.0)
        assert tokens == [next(greedy) for _ in tokens]
    assert len(rows) == 2


def test_which_texts_are_taken(tmp_path: Path) -> None:
    """Those that are clearest, each label before any twice; of texts that are near a tie none."""
    manifest = open_bundle(pack_golden(tmp_path).bundle).manifest
    assert isinstance(manifest, Manifest)
    rows: list[dict[str, object]] = [
        {"text": str(place), "label": label, "score": 0.9, "clear": clear}
        for place, (label, clear) in enumerate(
            [("a", 0.9), ("a", 0.8), ("b", 0.5), ("c", 0.09), ("a", 0.7), ("b", 0.4), ("d", 0.2), ("a", 0.95)]
        )
    ]
    assert [row["text"] for row in choose(rows, manifest, 0.05)] == ["0", "2", "5", "6", "7"]
    assert all("clear" not in row for row in choose(rows, manifest, 0.05))
