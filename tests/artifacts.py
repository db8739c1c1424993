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
    facts = {
        "format": "onnx",
        "scheme": "int8-static",
        "file": "model.onnx",
        "files": sorted(path.name for path in folder.glob("model.onnx*")),
        "bytes": sum(path.stat().st_size for path in folder.glob("model.onnx*")),
        "sha256": file_sha256(folder / "model.onnx"),
        "task": "text-classification" if logits else "feature-extraction",
        "output": output,
        "classes": LABELS if logits else [],
        "out_of_scope": "none" if logits else None,
        "settings": settings or ({"threshold": 0.7, "out_of_scope": "none"} if logits else {}),
        "max_length": MAX_LENGTH,
        "pad_id": 0,
        "opset": 18,
        "ir_version": 10,
        "operators": ["Gather", "MatMul"],
        "minimum_runtime": "1.18",
        "runtime_options": {
            "disabled_optimizers": ["SkipLayerNormFusion"],
            "config_entries": {"session.x64quantprecision": "1"},
        },
        "quantized": {"matmul": 0, "float": []},
    }
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
    compared = {"reference": "student", "metric": "accuracy", "loss": 0.002, "bound": 0.007, "margin": 0.01}
    return {
        "recipe": "demo",
        "target": "board",
        "verdict": verdict,
        "checks": [
            {
                "name": "accuracy against the float student",
                "measured": 0.93,
                "limit": 0.01,
                "loss": 0.002,
                "bound": 0.007,
                "interval": [-0.003, 0.007],
                "looks": 1,
                "verdict": "pass",
                "remedy": None,
            },
            {
                "name": "latency p95, ms",
                "measured": 2.5,
                "limit": 10.0,
                "loss": None,
                "bound": 2.7,
                "interval": [2.4, 2.7],
                "looks": 1,
                "verdict": verdict,
                "remedy": remedy,
            },
        ],
        "accuracy": {"teacher": 0.941, "student": 0.932, "artifact": 0.93},
        "comparisons": [{**compared, "flips": {"lost": 6, "gained": 4}, "verdict": "pass"}],
        "latency_ms": {"p50": p50, "p95": 2.5, "first": 9.0, "load": 40.0},
        "shape": {"batch": 1, "sequence": 64, "threads": 1},
        "memory_mb": 88.0,
        "artifact": {key: facts[key] for key in ("format", "scheme", "file", "bytes", "sha256")},
        "device": {"cpu": "A test CPU", "cores": 4, "features": ["avx2", "avx512_vnni"], "governor": None},
        "runtime": {"name": "onnxruntime", "version": "1.31.1"},
    }
