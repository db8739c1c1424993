"""`edgekit diff`: what it tells is held against onnx, gguf-py, ggml, a plain session and counts by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from edgekit.bundle.contract import issued, relied_on
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.open import open_bundle
from edgekit.diff import diff
from edgekit.diff.asked import Example, compare_answers
from edgekit.diff.identity import compare_labels
from edgekit.diff.measured import compare_reports
from edgekit.diff.sides import open_side
from edgekit.diff.tensors import compare_weights
from edgekit.errors import EdgekitError
from edgekit.evidence import Quantiles
from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.convert import Quantization, convert
from edgekit.formats.gguf.tensors import plan
from edgekit.model import load_model
from edgekit.prompts.prompt import Prompt
from edgekit.recipe import Issue
from edgekit.release.write import ReleaseInputs, gather, release
from tests.architectures.decoders import make_decoder
from tests.artifacts import LABELS, WORDS
from tests.cli.test_json import read
from tests.conftest import Answer
from tests.diff.bundles import pack, rewrite

Command = Callable[..., Answer]
NONE = Path("no model is read of a classifier")
PROMPTS = [
    ("turn on the light", "light_on"),
    ("turn off the light", "light_off"),
    ("play some jazz", "play_music"),
    ("music", "play_music"),
    ("on on", "light_on"),
    ("the the", "none"),
    ("on off", "light_off"),
    ("off", "light_off"),
]


def labels_of(bundle: Path) -> list[str]:
    """What a plain session answers to PROMPTS."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    found = []
    for text, _ in PROMPTS:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        logits = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0].astype(np.float64)
        scores = np.exp(logits) / np.exp(logits).sum()
        found.append(LABELS[int(scores.argmax())] if scores.max() >= 0.7 else "none")
    return found


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in PROMPTS))
    return path


def test_what_changed_is_told_by_tensor_and_by_answer(a: Path, b: Path, tmp_path: Path) -> None:
    found = diff(open_side(a), open_side(b), write_prompts(tmp_path))
    assert (found.same, found.compatible, found.a.version, found.b.version) == (False, True, "1.0.0", "1.1.0")
    assert found.weights is not None
    (change,) = found.weights.tensors
    assert (change.name, change.change, found.weights.same) == ("table", "changed", 3)
    held = [
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(side / "model.onnx").graph.initializer}
        for side in (a, b)
    ]
    apart = np.abs(held[1]["table"] - held[0]["table"])
    assert change.largest == pytest.approx(apart.max(), rel=1e-5)
    assert change.mean == pytest.approx(apart.mean(), rel=1e-5)
    assert change.relative == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(held[0]["table"]), rel=1e-5)
    assert found.tokenizer is not None
    assert (found.tokenizer.same, found.tokenizer.texts, found.tokenizer.otherwise) == (True, len(PROMPTS), 0)
    mine, theirs = labels_of(a), labels_of(b)
    truth = [label for _, label in PROMPTS]
    asked = found.asked
    assert asked is not None
    assert asked.right is not None
    assert asked.changed == sum(one != other for one, other in zip(mine, theirs, strict=True)) > 0
    right = [[label == wanted for label, wanted in zip(side, truth, strict=True)] for side in (mine, theirs)]
    assert (asked.right.a, asked.right.b) == (sum(right[0]) / len(truth), sum(right[1]) / len(truth))
    assert asked.right.lost == sum(one and not other for one, other in zip(*right, strict=True))
    assert asked.right.gained == sum(other and not one for one, other in zip(*right, strict=True))
    low, high = asked.right.interval
    assert low is not None
    assert high is not None
    assert low < asked.right.difference < high
    assert {change.name for change in found.files} >= {"model.onnx", "golden.json"}


def test_the_same_bundle_is_the_same_wherever_it_lies(a: Path, tmp_path: Path) -> None:
    found = diff(open_side(a), open_side(a.with_name("a.tar.gz")))
    assert (found.same, found.compatible, found.files, found.settings, found.weights) == (True, True, (), (), None)
    release(ReleaseInputs(bundle=a, evidence=gather(a, []), cache=tmp_path / "none"), tmp_path / "a.release")
    side = open_side(tmp_path / "a.release")
    assert (side.kind, len(side.reports)) == ("release", 1)
    assert diff(open_side(a), side).same
    bill = json.loads((tmp_path / "a.release" / "bom.cdx.json").read_text())
    assert bill["metadata"]["component"]["version"] == bill["components"][0]["version"] == "1.0.0"
    provenance = json.loads((tmp_path / "a.release" / "provenance.intoto.json").read_text())
    assert provenance["predicate"]["buildDefinition"]["externalParameters"]["version"] == "1.0.0"


def test_a_recipe_without_a_version_packages_as_before(tmp_path: Path) -> None:
    plain = pack(tmp_path, "plain")
    table = json.loads((plain / "bundle.json").read_text())
    assert not {"version", "compatible_with"} & table.keys()
    issued = json.loads(
        (pack(tmp_path, "issued", Issue(version="2.0.0", compatible_with="1.5.0")) / "bundle.json").read_text()
    )
    assert (issued["version"], issued["compatible_with"]["since"]) == ("2.0.0", "1.5.0")
    changed = {key for key in issued if issued[key] != table.get(key)}
    assert changed == {"name", "version", "compatible_with", "digest", "files"}, "README.md, and its hash"
    assert ", version 2.0.0." in (tmp_path / "dist" / "issued" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda it: replace(it, labels=("light_on", "dark", "play_music")), "labels: renamed light_off is now dark"),
        (lambda it: replace(it, labels=(*it.labels, "dim")), "labels: added dim"),
        (lambda it: replace(it, labels=(it.labels[1], it.labels[0], it.labels[2])), "labels: in another order"),
        (lambda it: replace(it, out_of_scope=None, threshold=None), "out of scope: none, was none"),
        (lambda it: replace(it, out_of_scope="unknown"), "out of scope: unknown, was none"),
        (lambda it: replace(it, settings={**it.settings, "prompts": {"query": "q: "}}), "prompts: query, was none"),
        (
            lambda it: issued(it, NONE, Issue(version="2.0.0", compatible_with="1.1.0")),
            "version: B is for apps of 1.1.0 and newer, and A is 1.0.0",
        ),
        (lambda it: issued(it, NONE, Issue(version="2.0.0", compatible_with="1.0.0")), None),
        (lambda it: replace(it, threshold=0.6), None),
    ],
)
def test_what_an_app_relies_on_decides(
    a: Path, tmp_path: Path, change: Callable[[Manifest], Manifest], reason: str | None
) -> None:
    found = diff(open_side(a), open_side(rewrite(a, tmp_path / "b", change)), asks=False)
    assert found.reasons == (() if reason is None else (reason,))
    assert found.compatible is (reason is None)
    assert not found.same


def test_settings_and_notes(a: Path, tmp_path: Path) -> None:
    older = rewrite(
        a, tmp_path / "older", lambda it: replace(issued(it, NONE, Issue(version="0.9.0")), threshold=0.6, max_length=6)
    )
    found = diff(open_side(a), open_side(older), asks=False)
    assert {one.key: (one.a, one.b) for one in found.settings} == {"threshold": (0.7, 0.6), "max_length": (8, 6)}
    assert found.notes == ("B is older than A: 0.9.0, not 1.0.0; a loader that is told to refuses it",)
    other = rewrite(a, tmp_path / "other", lambda it: replace(it, runtime={**it.runtime, "minimum": "1.30"}))
    assert diff(open_side(a), open_side(other), asks=False).notes == (
        "both say version 1.0.0, and they are not the same: give B another one",
        "B needs onnxruntime 1.30 or newer, A 1.18",
    )


def test_another_tokenizer(a: Path, tmp_path: Path) -> None:
    """Words that are one unknown token for A and two tokens for B, counted by the library that reads them."""
    changed = tmp_path / "b"
    shutil.copytree(a, changed)
    table = json.loads((changed / "tokenizer.json").read_text())
    vocabulary = table["model"]["vocab"]
    vocabulary |= {"jazz": vocabulary["music"], "music": vocabulary["jazz"]}
    del vocabulary["some"]
    vocabulary["dim"] = WORDS.index("some")
    (changed / "tokenizer.json").write_text(json.dumps(table))
    found = diff(open_side(a), open_side(rewrite(changed, changed, lambda it: it)))
    assert found.tokenizer is not None
    assert (found.tokenizer.added, found.tokenizer.removed, found.tokenizer.moved) == (1, 1, 2)
    assert found.asked is not None
    golden = json.loads((a / "golden.json").read_text())["rows"]
    unlike = [row["text"] for row in golden if {"some", "jazz", "music"} & set(row["text"].split())]
    assert (found.tokenizer.otherwise, list(found.tokenizer.examples)) == (len(unlike), unlike)


def test_labels() -> None:
    found = compare_labels(["a", "b", "c"], ["b", "a", "d", "e"])
    assert (found.added, found.removed, dict(found.renamed), found.reordered) == (("d", "e"), ("c",), {}, True)
    found = compare_labels(["a", "b", "c"], ["a", "x", "c"])
    assert (found.added, found.removed, dict(found.renamed), found.reordered) == ((), (), {"b": "x"}, False)


def write_integers(path: Path, codes: np.ndarray[Any, Any], scale: float) -> None:
    """One product of bytes, as edgekit names its parts."""
    held = [
        numpy_helper.from_array(codes, "dense.weight.int8"),
        numpy_helper.from_array(np.full(codes.shape[1], scale, np.float32), "dense.weight.scale"),
    ]
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "dense.weight.int8", "dense.weight.scale"], ["y"], domain="com.microsoft"
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([node], "bytes", ends[:1], ends[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_bytes_are_compared_as_they_multiply(tmp_path: Path) -> None:
    """Other codes of another scale: the difference is that of codes times scale, and of a float weight of that name too."""
    rng = np.random.default_rng(0)
    codes = [rng.integers(-127, 128, (6, 4)).astype(np.int8) for _ in range(2)]
    for name, held, scale in (("a", codes[0], 0.02), ("b", codes[1], 0.03), ("c", codes[0], 0.03)):
        write_integers(tmp_path / f"{name}.onnx", held, scale)
    values = [codes[0] * np.float32(0.02), codes[1] * np.float32(0.03), codes[0] * np.float32(0.03)]
    for name, wanted in (("b", values[1]), ("c", values[2])):
        found = compare_weights(tmp_path / "a.onnx", tmp_path / f"{name}.onnx")
        assert found is not None
        first = found.tensors[0]
        assert (first.name, found.changed, found.same) == ("dense.weight.int8", 2, 0)
        assert first.largest == pytest.approx(np.abs(wanted - values[0]).max(), rel=1e-5)
    node = helper.make_node("MatMul", ["x", "dense.weight"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    weight = numpy_helper.from_array(values[0] + np.float32(0.001), "dense.weight")
    graph = helper.make_graph([node], "floats", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "float.onnx")
    found = compare_weights(tmp_path / "float.onnx", tmp_path / "a.onnx")
    assert found is not None
    one = found.tensors[0]
    assert (one.name, one.a, one.b) == ("dense.weight.int8", "float32 [6, 4]", "int8 [6, 4]")
    assert one.largest == pytest.approx(0.001, rel=1e-2)


def test_a_gguf_is_compared_as_ggml_dequantizes_it(tmp_path: Path) -> None:
    student = make_decoder("llama", tmp_path / "student")
    model = load_model(student)
    for kind in ("q4_0", "q8_0"):
        types = {tensor.name: kind if len(tensor.shape) > 1 else "f32" for tensor in plan(model)}
        convert(model, tmp_path / f"{kind}.gguf", Quantization(types=types), {"general.architecture": "llama"})
    found = compare_weights(tmp_path / "q8_0.gguf", tmp_path / "q4_0.gguf")
    assert found is not None
    rows = {one.name: one for one in found.tensors}
    stored = [
        {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / f"{kind}.gguf").tensors}
        for kind in ("q8_0", "q4_0")
    ]
    assert rows.keys() == {name for name, tensor in stored[0].items() if len(tensor.shape) > 1 and tensor.shape[1] > 1}
    assert found.same == len(stored[0]) - len(rows)
    name = "blk.0.ffn_down.weight"
    columns = int(stored[0][name].shape[0])
    values = [
        ggml.dequantize(side[name].data, kind, columns).astype(np.float64)
        for side, kind in zip(stored, ("q8_0", "q4_0"), strict=True)
    ]
    apart = np.abs(values[1] - values[0])
    assert rows[name].largest == pytest.approx(apart.max(), rel=1e-5)
    assert rows[name].mean == pytest.approx(apart.mean(), rel=1e-5)
    assert rows[name].relative == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(values[0]), rel=1e-4)
    sides = [open_side(tmp_path / f"{kind}.gguf") for kind in ("q8_0", "q4_0")]
    whole = diff(*sides)
    assert (whole.compatible, whole.tokenizer and whole.tokenizer.same) == (None, True)
    write_integers(tmp_path / "a.onnx", np.ones((2, 2), np.int8), 1.0)
    other = diff(sides[0], open_side(tmp_path / "a.onnx"))
    assert other.weights is None
    assert "other formats" in other.notes[0]


def test_times_are_held_against_each_other_only_where_they_may_be(a: Path, b: Path) -> None:
    sides = [open_side(path) for path in (a, b)]
    found = compare_reports(*sides)
    assert found is not None
    assert (found.ratio, found.why_not) == (
        None,
        ("A has 0 processes, and 5 are needed", "B has 0 processes, and 5 are needed"),
    )

    def timed(index: int, times: list[float], **more: Any) -> Any:
        processes = tuple(Quantiles(p50=time, p95=2 * time) for time in times)
        return replace(
            sides[index], reports=(replace(sides[index].reports[0], latency_processes_ms=processes, **more),)
        )

    quick, slow = [1.0, 1.01, 0.99, 1.02, 0.98], [2.0, 2.02, 1.98, 2.04, 1.96]
    found = compare_reports(timed(0, slow), timed(1, quick))
    assert found is not None
    assert found.ratio == pytest.approx(0.5)
    assert found.interval is not None
    assert found.interval[0] is not None
    assert found.interval[1] is not None
    assert found.interval[0] < 0.5 < found.interval[1] < 0.6
    found = compare_reports(timed(0, slow), timed(1, quick, device={"cpu": "another"}))
    assert found is not None
    assert found.why_not[0].startswith("measured on another device (")
    found = compare_reports(timed(0, slow), timed(1, quick, disturbed=("others worked",)))
    assert found is not None
    assert found.why_not == ("B's times may not be compared: others worked",)


def test_embeddings_of_another_width_are_not_compatible(tmp_path: Path) -> None:
    settings = {"pooling": "mean", "normalize": False}
    one, two = (
        pack(tmp_path, name, output="embedding", settings=settings, scale=scale)
        for name, scale in (("e", 1.0), ("f", -1.0))
    )
    found = diff(open_side(one), open_side(two))
    assert found.compatible
    assert found.asked is not None
    assert found.asked.cosine is not None
    assert found.asked.cosine[0] == pytest.approx(-1.0, abs=1e-3)
    assert found.asked.changed == found.asked.texts > 0
    assert any("make stored ones anew" in note for note in found.notes)
    model = onnx.load(two / "model.onnx")
    mix = next(tensor for tensor in model.graph.initializer if tensor.name == "mix")
    mix.CopyFrom(numpy_helper.from_array(np.eye(3, 4, dtype=np.float32), "mix"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(model, two / "model.onnx")
    found = diff(open_side(one), open_side(rewrite(two, two, lambda it: it)))
    assert found.reasons == ("width: 4, was 3",)
    assert [relied_on(open_bundle(side).manifest, side / "model.onnx")["width"] for side in (one, two)] == [3, 4]


def test_tokens_are_compared_as_far_as_both_are_clear(a: Path) -> None:
    """A text that neither goes on clearly with is not counted; a longer answer is no other one."""
    bundle = open_bundle(a)
    written = replace(bundle, manifest=replace(bundle.manifest, output="tokens"))
    said = {"same": ([1, 2], [1, 2]), "longer": ([1, 2], [1, 2, 3]), "other": ([1, 2, 3], [1, 4]), "unclear": ([1], [])}
    rows = [
        {text: {"text": text, "asked": [7], "tokens": pair[side]} for text, pair in said.items()} for side in (0, 1)
    ]
    found = compare_answers(
        written, written, (rows[0], rows[1]), [Prompt(text=text) for text in (*said, "unasked")], "texts"
    )
    assert (found.texts, found.changed, found.right, found.cosine) == (3, 1, None, None)
    assert found.examples == (Example(text="other", a="tokens 1 2 3", b="tokens 1 4"),)


def test_the_command(command: Command, a: Path, b: Path, tmp_path: Path) -> None:
    same = command("diff", str(a), str(a))
    assert (same.code, "they are the same, byte for byte" in same.out) == (0, True)
    prompts = str(write_prompts(tmp_path))
    plain = command("diff", str(a), str(b), "--prompts", prompts)
    assert plain.code == 0
    assert "1 changed, 3 the same (tensors)" in plain.out
    assert "accuracy" in plain.out
    found = read(command("diff", str(a), str(b), "--prompts", prompts, "--json"))
    assert found["asked"]["right"]["prompts"] == len(PROMPTS)
    broken = rewrite(a, tmp_path / "b", lambda it: replace(it, labels=("light_on", "dark", "play_music")))
    assert read(command("diff", str(a), str(broken), "--no-ask", "--json"))["exit_code"] == 3
    told = command("diff", str(a), str(broken), "--no-ask")
    assert (told.code, "B is not compatible with A:\n  labels: renamed light_off is now dark" in told.out) == (3, True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"text": "on", "label": "somewhere"}\n', "its labels (somewhere, ...) are none of these bundles'"),
        ('{"words": "on"}\n', "no column 'text'"),
        ("", "empty; expected rows"),
    ],
)
def test_prompts_that_are_none(a: Path, b: Path, tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(rows)
    with pytest.raises(EdgekitError, match=message.replace("(", r"\(").replace(")", r"\)")):
        diff(open_side(a), open_side(b), path)


def test_what_is_no_side(a: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="no such bundle"):
        open_side(tmp_path / "nothing")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    (tmp_path / "whole.gguf").write_bytes(b"GGUF, and not")
    with pytest.raises(EdgekitError, match=r"\.gguf"):
        diff(open_side(tmp_path / "cut.gguf"), open_side(tmp_path / "whole.gguf"))
    with pytest.raises(EdgekitError, match="a model file alone is not asked"):
        diff(open_side(a / "model.onnx"), open_side(a), tmp_path / "prompts.jsonl")
