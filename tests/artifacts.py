"""Small real artifacts for the tests: a bag-of-words classifier in ONNX, its tokenizer, and the report of a verify step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgekit.formats import FORMATS
from edgekit.target import Target, load_target
from edgekit.workspace import file_sha256, write_product

LABELS = ["light_on", "light_off", "play_music"]
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "turn", "on", "off", "the", "light", "play", "some", "music", "jazz"]
MAX_LENGTH = 8
TARGET = """
title = "A test board"
[hardware]
arch = "aarch64"
cpu = "Cortex-A76"
cores = 4
features = ["asimddp"]
memory_mb = 4096
sources = ["none"]
[export.text-classification]
format = "onnx"
[runtime.onnxruntime]
threads = 1
disabled_optimizers = ["ConstantFolding"]
"""


def make_target(folder: Path, name: str = "board") -> Target:
    """A target of one thread."""
    (folder / f"{name}.toml").write_text(TARGET)
    return load_target(str(folder / f"{name}.toml"))


def make_tokenizer(path: Path, max_length: int = MAX_LENGTH) -> Tokenizer:
    """A word tokenizer that adds [CLS] and [SEP] and truncates."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(max_length)
    tokenizer.save(str(path))
    return tokenizer


def make_model(path: Path, *, external: bool = False, scale: float = 1.0) -> None:
    """logits [batch, 3] = sum over tokens of a row per word."""
    table = np.zeros((len(WORDS), len(LABELS)), dtype=np.float32)
    for word, row in {
        "on": [4, -2, 0],
        "off": [-2, 4, 0],
        "light": [2, 2, -2],
        "play": [-1, -1, 4],
        "music": [0, 0, 4],
    }.items():
        table[WORDS.index(word)] = np.array(row) * scale
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["rows", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "mix"], ["logits"]),
    ]
    weights = {
        "table": table,
        "mix": np.eye(3, dtype=np.float32),
        "last": np.array([2], dtype=np.int64),
        "axis": np.array([1], dtype=np.int64),
    }
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        nodes,
        "bag",
        ids,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="tests")
    options: dict[str, Any] = {"location": f"{path.name}.data", "size_threshold": 100} if external else {}
    onnx.save_model(model, str(path), save_as_external_data=external, **options)


def artifact_facts(**known: Any) -> dict[str, Any]:
    """What the manifest of an export step says at least, and what is known of it."""
    return {
        "format": "onnx",
        "scheme": "int8-static",
        "file": "model.onnx",
        "files": ["model.onnx"],
        "bytes": 1,
        "sha256": "0" * 64,
        "minimum_runtime": "1.18",
        "runtime_options": {},
        "quantized": {"matmul": 0, "float": []},
        "choices": {},
        "opset": 18,
        "ir_version": 10,
        "operators": ["Gather", "MatMul"],
        "task": "text-classification",
        "output": "logits",
        "classes": LABELS,
        "out_of_scope": None,
        "settings": {},
        "max_length": MAX_LENGTH,
        "pad_id": 0,
    } | known


def make_artifact(
    folder: Path,
    *,
    external: bool = False,
    output: str = "logits",
    scale: float = 1.0,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """An export step's folder; settings: others than the task's usual ones."""
    folder.mkdir(parents=True)
    make_model(folder / "model.onnx", external=external, scale=scale)
    make_tokenizer(folder / "tokenizer.json")
    logits = output == "logits"
    rejects = {"threshold": 0.7, "out_of_scope": "none"} if logits else {}
    facts = artifact_facts(
        files=sorted(path.name for path in folder.glob("model.onnx*")),
        bytes=sum(path.stat().st_size for path in folder.glob("model.onnx*")),
        sha256=file_sha256(folder / "model.onnx"),
        task="text-classification" if logits else "feature-extraction",
        output=output,
        classes=LABELS if logits else [],
        out_of_scope="none" if logits else None,
        settings=settings or rejects,
        runtime_options={
            "disabled_optimizers": ["SkipLayerNormFusion"],
            "config_entries": {"session.x64quantprecision": "1"},
        },
    )
    write_product(folder, "export", key="test", inputs={"student": "a test"}, facts=facts)
    return folder


def make_report(folder: Path, artifact: Path, verdict: str = "pass", *, p50: float = 1.5) -> Path:
    """A verify step's folder."""
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report_of(artifact, verdict, p50=p50)))
    return folder


def report_of(artifact: Path, verdict: str = "pass", *, p50: float = 1.5) -> dict[str, Any]:
    """What verify writes about an artifact."""
    facts = json.loads((artifact / "export.json").read_text())["facts"]
    remedy = None if verdict == "pass" else "measure on the board itself: add a [device] table"
    loss = {"loss": 0.002, "bound": 0.007}
    return bare_report() | {
        "verdict": verdict,
        "checks": [
            check_entry(
                "accuracy against the float student",
                measured=0.93,
                limit=0.01,
                interval=[-0.003, 0.007],
                **loss,
            ),
            check_entry(
                "latency p95, ms",
                measured=2.5,
                limit=10.0,
                bound=2.7,
                interval=[2.4, 2.7],
                verdict=verdict,
                remedy=remedy,
            ),
        ],
        "accuracy": {"teacher": 0.941, "student": 0.932, "artifact": 0.93},
        "comparisons": [
            comparison_entry("student", "accuracy", margin=0.01, flips={"lost": 6, "gained": 4}, verdict="pass", **loss)
        ],
        "latency_ms": {"p50": p50, "p95": 2.5, "first": 9.0, "load": 40.0},
        "artifact": {key: facts[key] for key in ("format", "scheme", "file", "bytes", "sha256")},
        "runtime": {"name": FORMATS[facts["format"]].RUNTIMES[0], "version": "1.31.1"},
    }


def bare_report() -> dict[str, Any]:
    """report.json of what answers with embeddings, with as little in it as there can be."""
    return {
        "target": "board",
        "verdict": "pass",
        "accuracy_only": False,
        "checks": [],
        "accuracy": {},
        "comparisons": [],
        "margins": {},
        "look": {"index": 1, "alpha": 0.0492, "stage": 1, "stages": 1},
        "prompts": 400,
        "latency_ms": {"p50": 1.5, "p95": 2.5, "first": 9.0, "load": 40.0},
        "latency_processes_ms": [],
        "latency_raw_ms": [],
        "measurement": 1,
        "busy": None,
        "disturbed": [],
        "shape": {"batch": 1, "sequence": 64, "threads": 1},
        "memory_mb": 88.0,
        "artifact": {"format": "onnx", "scheme": "fp32", "file": "model.onnx", "bytes": 12, "sha256": "0" * 64},
        "device": {"cpu": "A test CPU", "cores": 4, "features": ["avx2", "avx512_vnni"], "governor": None},
        "runtime": {"name": "onnxruntime", "version": "1.31.1"},
        "work": {"provider": "CPUExecutionProvider"},
        "vouches": {"scales": [1.0, 1.0], "foreign": [], "told": ""},
        "models": {},
        "layers": [],
        "coverage": None,
        "data": None,
        "notes": [],
    }


def check_entry(name: str, **facts: Any) -> dict[str, Any]:
    """A check of report.json, passed where `facts` say nothing else."""
    keys = ("measured", "limit", "loss", "bound", "interval", "remedy", "detail")
    return dict.fromkeys(keys) | {"name": name, "looks": 1, "verdict": "pass"} | facts


def comparison_entry(reference: str, metric: str, **facts: Any) -> dict[str, Any]:
    """A comparison of report.json, shown and not judged where `facts` say nothing else."""
    keys = ("score", "reference_score", "lo", "bound", "margin", "prompts_needed", "verdict", "reason", "agreement")
    empty = {"loss": 0.0, "prompts": 400, "flips": {}, "divergence": {}, "alpha": 0.05}
    names = {"reference": reference, "metric": metric, "candidate": "artifact"}
    return dict.fromkeys(keys) | empty | names | facts
