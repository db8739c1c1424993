"""A modality that is dropped in: images are calibrated, exported in INT8, recorded and verified by the code that texts go through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edgekit.bundle import package as packing
from edgekit.bundle.loaders import LOADERS, Loader
from edgekit.bundle.open import run_bundle
from edgekit.bundle.package import Lineage, PackageInputs, package
from edgekit.bundle.sidecars import SIDECARS
from edgekit.modalities import MODALITIES, find_modality
from edgekit.model import load_model
from edgekit.prompts import PromptSet
from edgekit.record import original_rows
from edgekit.runtimes import onnxruntime
from edgekit.tasks import TASKS, outputs
from edgekit.verify import latency, measurements
from edgekit.workspace import file_sha256, write_product
from tests.modalities.images import (
    IMAGES,
    LABELS,
    MODALITY,
    PIXELS,
    PROCESSOR,
    TASK,
    ask_owner,
    encode_files,
    make_images,
    make_vit,
)
from tests.steps import calibrate, export, record
from tests.verify.verify_folders import make_target, run_verify


@pytest.fixture
def dropped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task and a modality of their own would add to the tables."""
    monkeypatch.setitem(MODALITIES, MODALITY.NAME, MODALITY)
    monkeypatch.setitem(TASKS, TASK, IMAGES)
    monkeypatch.setitem(original_rows.OWNERS, TASK, ask_owner)
    loader = Loader(
        file=str(Path(__file__).with_name("load_images.py")), needs=("onnxruntime", "numpy"), use='bundle("photo.png")'
    )
    monkeypatch.setitem(LOADERS, ("onnxruntime", MODALITY.NAME, "logits"), loader)
    processor = {PROCESSOR: lambda packed: packed.artifact / PROCESSOR}
    monkeypatch.setattr(packing, "SIDECARS", {**SIDECARS, **processor})
    monkeypatch.setattr("edgekit.record.rows.measure_alone", lambda asked, *_: {folder: {} for folder in asked})
    monkeypatch.setitem(measurements.TIMING, "seconds", 0.5)
    monkeypatch.setattr(latency, "PROCESSES", 1)


@pytest.mark.usefixtures("dropped_in")
def test_images_from_calibration_to_verdict(tmp_path: Path) -> None:
    student = make_vit(tmp_path / "vit")
    assert find_modality(student).NAME == "image"
    assert load_model(student).labels == LABELS, "no tokenizer is asked for"
    prompts = make_images(tmp_path / "images", {"calibrate": 12, "verify": 60})
    folders = {name: tmp_path / name for name in ("calibration", "artifact", "reference")}
    for folder in folders.values():
        folder.mkdir()
    asked: dict[str, Any] = {"task": TASK, "max_length": 64}
    facts = calibrate(student, prompts, out=folders["calibration"], **asked)
    assert facts["tokens"] == 12, "an image is one"
    assert (facts["coverage"]["vocabulary"]["words"], facts["coverage"]["truncated"]) == (0, 0), "no words, never cut"
    exported = export(
        student=student, calibration=folders["calibration"], prompts=prompts, out=folders["artifact"], out_of_scope=None,
        options={"format": "onnx", "scheme": "int8-static", "layout": "qdq"}, **asked,
    )  # fmt: skip
    assert exported["scheme"] == "int8-static"
    assert exported["quantized"]["matmul"] == 2 * 6 + 1
    assert sorted(path.name for path in folders["artifact"].iterdir()) == ["model.onnx", PROCESSOR]

    reference = record(student, student, prompts, out=folders["reference"], **asked)
    original = (reference.original or {})["student"]
    assert (original.ids_equal, original.answers_equal, original.first) == (60, 60, None)
    splits = {split: file_sha256(prompts / f"{split}.jsonl") for split in ("calibrate", "verify")}
    write_product(folders["artifact"], "export", key="test", inputs={"student": "sound"}, facts=exported)
    product = replace(reference, models={}).facts()
    write_product(
        folders["reference"], "record", key="test", inputs={"student": "sound", "prompts": splits}, facts=product
    )

    target = make_target(tmp_path)
    report = run_verify(
        tmp_path / "report", artifact=folders["artifact"], reference=folders["reference"], prompts=prompts,
        target=target, accuracy={}, out_of_scope=None, **asked,
    )  # fmt: skip
    assert report["by_name"]["as_original"]["verdict"] == "pass"
    with np.load(tmp_path / "report" / "outputs.npz") as arrays:
        measured = arrays["outputs"]
    encoded = encode_files(folders["artifact"], [row.text for row in PromptSet(folder=prompts).split("verify")])
    options = exported["runtime_options"] | {"threads": 1}
    np.testing.assert_array_equal(
        measured, onnxruntime.outputs(folders["artifact"] / "model.onnx", encoded.prompts, options=options)
    )
    packed = package(
        PackageInputs(
            artifact=folders["artifact"], report=tmp_path / "report", name="vit", recipe="images", target=target,
            lineage=Lineage(teacher="a test's", license=None, data_license=None),
        ),
        tmp_path / "dist",
    )  # fmt: skip
    files = ["README.md", "bundle.json", "check.py", "load.py", "model.onnx", PROCESSOR]
    assert sorted(path.name for path in packed.bundle.iterdir()) == sorted(files)
    rows = PromptSet(folder=prompts).split("verify")
    answers = cast("list[dict[str, Any]]", run_bundle(packed.archive, [row.text for row in rows[:9]]))
    assert [one["label"] for one in answers] == IMAGES.answer(measured[:9], {}, LABELS)
    floats = outputs(IMAGES.load(student), encoded)
    assert IMAGES.score(floats, measured) > 0.95
    assert encoded.prompts[0][PIXELS].shape == (3, 16, 16)
