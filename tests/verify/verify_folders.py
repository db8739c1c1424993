"""Folders as record, export and the prompts step leave them, around a tiny classifier that can be damaged on purpose."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from edgekit.devices import LocalDevice
from edgekit.evidence import read_report
from edgekit.gate import Look
from edgekit.inputs import Content
from edgekit.modalities.text import of_tokens
from edgekit.reference import OwnersRows, Reference
from edgekit.runtimes import machine, onnxruntime
from edgekit.runtimes.request import pack
from edgekit.target import Target, load_target
from edgekit.typed_json import to_table
from edgekit.verify import VerifyInputs, verify
from edgekit.workspace import file_sha256, write_product
from tests.artifacts import LABELS, WORDS, artifact_facts, make_tokenizer

OUTSIDE = "none"
SAID = {
    "light_on": "turn on the light",
    "light_off": "turn off the light",
    "music": "play some music",
    OUTSIDE: "the the",
}
NAMES = {"light_on": LABELS[0], "light_off": LABELS[1], "music": LABELS[2], OUTSIDE: OUTSIDE}
SCORES = {"on": (4, -2, 0), "off": (-2, 4, 0), "light": (2, 2, -2), "play": (-1, -1, 4), "music": (0, 0, 4)}
WIDTH = 512


def make_graph(path: Path, *, flip: bool = False, depth: int = 0) -> None:
    """logits [batch, 3] of a bag of words; `flip` swaps two classes, `depth` adds layers that cost time and change nothing."""
    table = np.zeros((len(WORDS), 3), dtype=np.float32)
    for word, row in SCORES.items():
        table[WORDS.index(word)] = row
    mix = np.eye(3, dtype=np.float32)[[1, 0, 2]] if flip else np.eye(3, dtype=np.float32)
    weights = {"table": table, "axis": np.array([1], np.int64), "mix": mix}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["pooled"], keepdims=0),
    ]
    if depth:
        # A product with what is zero once: its result is added to the logits, so that nothing may be left out.
        weights |= {"grow": np.zeros((3, WIDTH), np.float32), "shrink": np.ones((WIDTH, 3), np.float32)}
        weights["wide"] = np.full((WIDTH, WIDTH), 1e-3, np.float32)
        nodes.append(helper.make_node("MatMul", ["pooled", "grow"], ["deep0"]))
        nodes += [helper.make_node("MatMul", [f"deep{k}", "wide"], [f"deep{k + 1}"]) for k in range(depth)]
        nodes.append(helper.make_node("MatMul", [f"deep{depth}", "shrink"], ["zeros"]))
        nodes.append(helper.make_node("Add", ["pooled", "zeros"], ["summed"]))
    nodes.append(helper.make_node("MatMul", ["summed" if depth else "pooled", "mix"], ["logits"]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        nodes,
        "bag",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def make_prompts(folder: Path, verify: int = 400) -> Path:
    """The four texts in turn, as the prompts step writes them."""
    folder.mkdir()
    kinds = list(SAID)
    for name, count in {"calibrate": 40, "verify": verify}.items():
        rows = [{"text": SAID[kinds[row % 4]], "label": NAMES[kinds[row % 4]]} for row in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def make_artifact(folder: Path, file: Path | None = None, **changes: Any) -> Path:
    """An export step's folder around `file` (else a sound graph)."""
    folder.mkdir()
    if file is None:
        make_graph(folder / "model.onnx")
    else:
        (folder / "model.onnx").write_bytes(file.read_bytes())
    make_tokenizer(folder / "tokenizer.json")
    facts = artifact_facts(
        scheme="fp32",
        bytes=(folder / "model.onnx").stat().st_size,
        sha256=file_sha256(folder / "model.onnx"),
        settings={"threshold": 0.6, "out_of_scope": OUTSIDE},
        runtime_options={"disabled_optimizers": [], "config_entries": {}},
    )
    write_product(folder, "export", key="test", inputs={"student": "sound"}, facts=facts | changes)
    return folder


def outputs_of(graph: Path, prompts: Path, split: str, tokenizer: Path) -> NDArray[np.float32]:
    """What a graph answers on a split."""
    texts = [json.loads(line)["text"] for line in (prompts / f"{split}.jsonl").read_text().splitlines()]
    ids = [encoding.ids for encoding in Tokenizer.from_file(str(tokenizer)).encode_batch(texts)]
    return onnxruntime.outputs(graph, of_tokens(ids, 0).prompts, options={"threads": 1})


def make_reference(folder: Path, prompts: Path) -> Path:
    """A record step's folder: teacher and student are the sound graph."""
    folder.mkdir()
    make_graph(folder / "float.onnx")
    make_tokenizer(folder / "tokenizer.json")
    arrays = {}
    for split in ("calibrate", "verify"):
        rows = outputs_of(folder / "float.onnx", prompts, split, folder / "tokenizer.json")
        arrays |= {f"teacher_{split}": rows, f"student_{split}": rows}
    texts = [json.loads(line)["text"] for line in (prompts / "verify.jsonl").read_text().splitlines()]
    ids = [encoding.ids for encoding in Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)]
    np.savez(folder / "reference.npz", **arrays, **pack(of_tokens(ids, 0).prompts, "owner."))
    equal = dict.fromkeys(("rows", "ids_equal", "answers_equal", "compared"), len(ids))
    told = OwnersRows(by="a test", first=None, failed=None, limits=None, **equal)
    splits = {split: file_sha256(prompts / f"{split}.jsonl") for split in ("calibrate", "verify")}
    inputs = {"student": "sound", "prompts": splits}
    reference = Reference(
        output="logits",
        classes=tuple(LABELS),
        rows={"verify": len(ids)},
        max_length=64,
        models={},
        warnings=(),
        original={"teacher": told, "student": told},
    )
    write_product(folder, "record", key="test", inputs=inputs, facts=reference.facts())
    return folder


@cache
def measure_once() -> dict[str, float]:
    """This machine's speeds."""
    return machine.measure()


def hardware_here() -> str:
    """The hardware table of this machine, measured now."""
    facts, speed = machine.describe(), measure_once()
    return "\n".join(
        [
            f'arch = "{facts["arch"]}"',
            f"cpu = {json.dumps(facts['cpu'])}",
            f"cores = {facts['cores']}",
            f"features = {json.dumps(facts['features'])}",
            f"memory_mb = {facts['memory_mb']}",
            # The others vary by more than two where tests share the machine with builds.
            f"fp32_gflops = {speed['fp32_gflops']:.3f}",
        ]
    )


def make_target(folder: Path, budget: str = "", hardware: str = "", runtime: str = "threads = 1") -> Target:
    """A target that is this machine, measured now, or other `hardware`."""
    hardware = hardware or hardware_here()
    path = folder / "here.toml"
    path.write_text(
        f'title = "A test"\n[hardware]\n{hardware}\nsources = ["measured"]\n[export.text-classification]\n'
        f'format = "onnx"\n[runtime.onnxruntime]\n{runtime}\n[budget]\n{budget}\n',
        encoding="utf-8",
    )
    return load_target(str(path))


def run_verify(out: Path, **asked: Any) -> dict[str, Any]:
    """The report of a verify on this machine as its table, with its checks by name; asked: folders, a target, and fields of VerifyInputs."""
    folders = {key: Content(path=asked.pop(key), digest="not read") for key in ("artifact", "reference", "prompts")}
    target = asked.pop("target")
    given: dict[str, Any] = {
        "target": target.name, "hardware": target.hardware, "runtime": target.runtime,
        "budget": target.budget_for(asked["task"]), "settings": "", "student": "", "teacher": "", "data": {}, "libraries": {},
        "max_length": 64, "device": "local", "facts": {}, "look": Look(),
    }  # fmt: skip
    out.mkdir()
    with LocalDevice({"kind": "local"}) as device:
        made = verify(VerifyInputs(**folders, **given | asked), out, device=device)
    assert made == read_report(out)
    report = to_table(made)
    return report | {"by_name": {check.name: to_table(check) for check in made.checks}, "out": out}
