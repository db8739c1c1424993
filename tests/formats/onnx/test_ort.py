"""onnxruntime's own format: the rows of the .onnx file bit for bit, equal bytes, its operators, and a verdict that is of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.bundle.loaders.load import Bundle
from edgekit.errors import EdgekitError
from edgekit.formats import onnx as format_onnx
from edgekit.formats import parse_options
from edgekit.formats.onnx import float_graph, ort
from edgekit.formats.onnx.graph import copy_model
from edgekit.formats.onnx.session import DISABLED_OPTIMIZERS
from edgekit.inspect import inspect
from edgekit.modalities.text import of_tokens
from edgekit.runtimes import onnxruntime
from edgekit.runtimes.onnxruntime.library import EXACT_SUMS
from edgekit.target import load_target
from edgekit.typed_json import to_table
from edgekit.verify import measurements
from edgekit.verify.arithmetic import saturating_share
from edgekit.workspace import file_sha256, write_product
from tests.artifacts import LABELS, artifact_facts, make_report, make_tokenizer
from tests.bundle.test_bundle import pack_as
from tests.formats.onnx.test_onnx import encoder_source
from tests.verify.test_verify import ROOMY, Bench, bench, shared  # noqa: F401 - fixtures
from tests.verify.verify_folders import OUTSIDE, make_graph, make_target

Write = Callable[..., tuple[Path, dict[str, Any]]]
INT8 = {"scheme": "int8-static", "reduce_range": False, "smoothing": False, "float_layers": 0}


@pytest.fixture(scope="module")
def write(
    module: Any, ids: list[list[int]], calibration: Any, exported: onnx.ModelProto, tmp_path_factory: Any
) -> Write:
    """The tiny BERT in a folder of its own, written once for each set of options, and what is said of it."""
    kept: dict[str, tuple[Path, dict[str, Any]]] = {}

    def written(**options: Any) -> tuple[Path, dict[str, Any]]:
        key = json.dumps(options, sort_keys=True)
        if key not in kept:
            out = tmp_path_factory.mktemp("written")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(float_graph, "export_float", lambda *_, **__: copy_model(exported))
                given = encoder_source(module, ids, calibration)
                made = format_onnx.write_encoder(given, format_onnx.Options(**INT8 | options), out)
            kept[key] = out, to_table(made)
        return kept[key]

    return written


def rows(file: Path, ids: list[list[int]], options: dict[str, Any]) -> np.ndarray:
    """Each prompt's row in the artifact's own session options."""
    return onnxruntime.outputs(file, of_tokens(ids, 0).prompts, options=options | {"threads": 1})


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic", "fp32", "w8"])
def test_it_answers_as_the_onnx_file_bit_for_bit(write: Write, ids: list[list[int]], scheme: str) -> None:
    """The .onnx file beside it, and, of static INT8, the one that other targets get, whose sessions ask for exact sums."""
    folder, facts = write(scheme=scheme, container="ort")
    options = facts["runtime_options"]
    found = rows(folder / "model.ort", ids, options)
    assert np.array_equal(found, rows(folder / "model.onnx", ids, options))
    if scheme == "int8-static":
        other, told = write(scheme=scheme)
        assert told["runtime_options"]["config_entries"] == EXACT_SUMS
        assert np.array_equal(found, rows(other / "model.onnx", ids, told["runtime_options"]))


def test_what_is_said_is_of_the_file_that_ships(write: Write) -> None:
    folder, facts = write(container="ort")
    file = folder / "model.ort"
    assert (facts["file"], facts["files"], facts["bytes"]) == ("model.ort", ["model.ort"], file.stat().st_size)
    assert facts["sha256"] == file_sha256(file)
    assert facts["runtime_options"] == {"disabled_optimizers": ["SkipLayerNormFusion"], "config_entries": {}}
    assert facts["minimum_runtime"] == "1.18"
    assert "com.microsoft.MatMulIntegerToFloat" in facts["operators"]
    assert facts["calibrate_score"]["score"] > -0.1


def test_its_weights_saturate_on_no_cpu(write: Write) -> None:
    """No session makes signed weights of an .ort file unsigned; where they are signed, it is seen in that file."""
    folder, _ = write(container="ort")
    assert saturating_share(folder / "model.ort") is None
    signed, told = write(container="ort", layout="qdq")
    assert saturating_share(signed / "model.ort") > 0
    assert told["runtime_options"]["config_entries"] == {}


def test_equal_graphs_give_equal_bytes(write: Write, tmp_path: Path) -> None:
    """onnxruntime itself writes a table in the order of a hash that is another in every session."""
    folder, _ = write(container="ort")
    names = ("model.ort", ort.OPERATORS_FILE, ort.TYPES_FILE)
    for turn in range(3):
        again = tmp_path / str(turn)
        again.mkdir()
        shutil.copy(folder / "model.onnx", again)
        ort.write_ort(again / "model.onnx", DISABLED_OPTIMIZERS)
        assert [(again / name).read_bytes() for name in names] == [(folder / name).read_bytes() for name in names]


def lines_of(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def test_the_required_operators_are_those_of_the_file(write: Write, tmp_path: Path) -> None:
    """As its nodes say, and as onnxruntime's own tool answers."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    folder, facts = write(container="ort")
    for name, with_types in ((ort.OPERATORS_FILE, False), (ort.TYPES_FILE, True)):
        create_config_from_models([folder / "model.ort"], tmp_path / name, with_types)
        assert lines_of(folder / name) == lines_of(tmp_path / name)
    listed = set()
    for line in lines_of(folder / ort.OPERATORS_FILE):
        domain, _, names = line.split(";")
        listed |= {name if domain == "ai.onnx" else f"{domain}.{name}" for name in names.split(",")}
    assert listed == set(facts["operators"])
    assert "uint8_t" in (folder / ort.TYPES_FILE).read_text(encoding="utf-8")


def test_inspect_reads_it_as_the_graph_that_it_is(write: Write) -> None:
    folder, facts = write(container="ort")
    told, beside = inspect(folder / "model.ort"), inspect(folder / "model.onnx")
    assert (told["kind"], told["opset"]["ai.onnx"]) == ("ort file", facts["opset"])  # type: ignore[index]
    assert told["inputs"] == beside["inputs"]
    assert told["outputs"] == beside["outputs"]
    assert told["quantized"] == beside["quantized"]
    assert {"MatMulIntegerToFloat", "uint8, per channel", "static"} <= set(told["products"][0].values())  # type: ignore[index]


@pytest.mark.parametrize("damage", ["cut", "other", "pointer"])
def test_what_is_no_ort_file_is_named(write: Write, tmp_path: Path, damage: str) -> None:
    folder, _ = write(container="ort")
    data = (folder / "model.ort").read_bytes()
    file = tmp_path / "model.ort"
    file.write_bytes(
        {"cut": data[:900], "other": b"\x08\x07" * 40, "pointer": b"version https://git-lfs.github.com/"}[damage]
    )
    with pytest.raises(EdgekitError, match=r"model\.ort: .*(not a whole \.ort file|git-lfs|Git LFS)"):
        ort.read_ort(file)


def test_phones_get_it_and_only_encoders(write: Write) -> None:
    for name in ("mobile", "android-midrange", "iphone"):
        table = load_target(name).export_for("text-classification")
        format_, options = parse_options(table, "logits", name)
        assert options.container == "ort"  # type: ignore[attr-defined]
        assert format_.domains(options) == ("", "com.microsoft"), "OpenVINO does not read it"
    with pytest.raises(EdgekitError, match="casts that this computer"):
        parse_options({"scheme": "fp16", "container": "ort"}, "logits", "here")
    with pytest.raises(EdgekitError, match="not of models that generate text"):
        format_onnx.costs(None, "tokens", [format_onnx.Options(container="ort")])  # type: ignore[arg-type]


def make_artifact(folder: Path, *, spoil: bool = False) -> Path:
    """An export step's folder around a tiny classifier's .ort file; spoil: with another table of words, as a bad write gives."""
    folder.mkdir()
    make_graph(folder / "model.onnx")
    if spoil:
        model = onnx.load(str(folder / "model.onnx"))
        table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
        table.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(table), "table"))
        onnx.save(model, str(folder / "model.onnx"))
    file = ort.write_ort(folder / "model.onnx", ())
    if spoil:
        make_graph(folder / "model.onnx")  # the .onnx file is sound: only what ships is not
    make_tokenizer(folder / "tokenizer.json")
    facts = artifact_facts(
        file=file.name,
        files=[file.name],
        scheme="fp32",
        bytes=file.stat().st_size,
        sha256=file_sha256(file),
        settings={"threshold": 0.6, "out_of_scope": OUTSIDE},
        runtime_options={"disabled_optimizers": [], "config_entries": {}},
    )
    write_product(folder, "export", key="test", inputs={"student": "sound"}, facts=facts)
    return folder


def test_the_verdict_is_of_the_file_that_ships(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(measurements.TIMING, "seconds", 0.2)  # its accuracy is asked here
    artifact = make_artifact(bench.folder / "sound")
    report = bench.verify(artifact, make_target(bench.folder, ROOMY))
    assert report["verdict"] == "pass"
    assert report["artifact"]["sha256"] == file_sha256(artifact / "model.ort")
    spoilt = bench.verify(make_artifact(bench.folder / "spoilt", spoil=True), make_target(bench.folder, ROOMY))
    assert spoilt["verdict"] == "fail"


def test_a_bundle_carries_it_and_answers_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    report = make_report(tmp_path / "report", artifact)
    bundle = pack_as(tmp_path, artifact, report).bundle
    names = {path.name for path in bundle.iterdir()}
    assert {"model.ort", ort.OPERATORS_FILE, ort.TYPES_FILE, "load.py"} <= names
    assert "model.onnx" not in names
    assert ort.TYPES_FILE in (bundle / "README.md").read_text(encoding="utf-8")
    assert Bundle(bundle)("play some music")[0][0] == LABELS[2]
    monkeypatch.setattr("onnxruntime.__version__", "1.17.3")
    with pytest.raises(RuntimeError, match=r"onnxruntime 1\.17\.3 is too old for this bundle: it needs 1\.18"):
        Bundle(bundle)
