"""The probe's protocol: what any probe must say, and what it says when it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.modalities.text import of_tokens
from edgekit.runtimes import RUNTIMES, onnxruntime
from edgekit.verify.measurements import pack_rows
from tests.runtimes.gguf_files import write_bert
from tests.runtimes.onnxruntime.test_onnxruntime import N, make_layers

EVENTS = ["device", "load", "first", "latency", "latency_real", "outputs", "memory"]
EVENTS += ["energy", "work", "machine", "done"]
TEXTS = [[1, 2, 3], [4, 5], [], [6, 7, 8, 9]]
TIMING = {"warmup": 2, "repeats": 70, "least": 59, "seconds": 5, "sequence": 16}


def ask(folder: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run the probe on a request, with nothing of edgekit on the path but its runtimes."""
    code = folder / "code"
    shutil.copytree(Path(edgekit.__file__).parent / "runtimes", code / "edgekit" / "runtimes")
    (code / "edgekit" / "__init__.py").touch()
    encoded, timing = of_tokens(TEXTS, 0), TIMING | changes.pop("timing", {})
    np.savez(folder / "inputs.npz", **pack_rows(encoded, encoded.resized(timing["sequence"])))
    request = {
        "runtime": "onnxruntime",
        "file": "model.onnx",
        "inputs": "inputs.npz",
        "outputs": "out/outputs.npz",
        "options": {"threads": 1, "provider": onnxruntime.CPU, "disabled_optimizers": ["SkipLayerNormFusion"]},
        "timing": timing,
    }
    (folder / "request.json").write_text(json.dumps(request | changes))
    return subprocess.run(
        [sys.executable, "-I", "-c", BOOT, str(code), str(folder / "request.json")],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Isolated from this source tree and from what is installed in development mode, and telling what was imported.
BOOT = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
sys.argv = sys.argv[:]
runpy.run_module("edgekit.runtimes.probe", run_name="__main__")
ours = [name for name in sys.modules if name.startswith("edgekit.") and not name.startswith("edgekit.runtimes")]
assert not ours and "torch" not in sys.modules and "onnx" not in sys.modules, ours
"""


def test_no_more_threads_than_cores(tmp_path: Path) -> None:
    make_layers(tmp_path / "model.onnx")
    ended = ask(tmp_path, options={"threads": 4096, "provider": onnxruntime.CPU, "disabled_optimizers": []})
    told = {line["event"]: line for line in map(json.loads, ended.stdout.splitlines())}
    assert told["latency"]["shape"]["threads"] == told["device"]["cores"]


def make_bert(path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": N, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    write_bert(BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **sizes)), path)


# A runtime's name -> a file that it runs, and its options.
FILES: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "onnxruntime": ("model.onnx", make_layers, {"threads": 1, "provider": onnxruntime.CPU}),
    "openvino": ("model.onnx", make_layers, {"threads": 1}),
    "llama-cpp": ("model.gguf", make_bert, {"threads": 1, "context": 0}),
}


@pytest.mark.parametrize("name", RUNTIMES)
def test_probe_speaks_the_protocol(tmp_path: Path, name: str) -> None:
    file, make, options = FILES[name]
    make(tmp_path / file)
    ended = ask(tmp_path, runtime=name, file=file, options=options)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["event"] for line in lines] == EVENTS
    told = {line["event"]: line for line in lines}
    assert told["load"]["version"] == RUNTIMES[name].version()
    assert told["latency"]["shape"] == {"batch": 1, "sequence": 16, "threads": 1}
    assert len(told["latency"]["ms"]) == 70
    assert min(told["latency"]["ms"]) > 0
    assert told["latency_real"]["lengths"] == [3, 2, 1, 4]
    assert told["latency"]["neighbours"]["seconds"] > 0
    assert told["machine"]["speed"]["bandwidth_gbs"] > 0
    assert told["memory"]["peak_mb"] > 10
    assert told["work"]["matmul_ops"]
    with np.load(tmp_path / "out" / "outputs.npz") as arrays:
        assert arrays["outputs"].shape == (len(TEXTS), N)
        direct = RUNTIMES[name].outputs(tmp_path / file, of_tokens(TEXTS, 0).prompts, options=options)
        assert np.array_equal(arrays["outputs"], direct)


def test_probe_stops_when_time_is_over_but_not_before_the_least(tmp_path: Path) -> None:
    make_layers(tmp_path / "model.onnx")
    timing = {"warmup": 0, "repeats": 10**6, "least": 59, "seconds": 0, "sequence": 4}
    ended = ask(tmp_path, timing=timing)
    (latency,) = (line for line in map(json.loads, ended.stdout.splitlines()) if line["event"] == "latency")
    assert len(latency["ms"]) == 59


def test_probe_that_is_asked_for_times_tells_nothing_else(tmp_path: Path) -> None:
    make_layers(tmp_path / "model.onnx")
    timing = {"warmup": 0, "repeats": 30, "least": 20, "seconds": 5, "sequence": 4, "only": True}
    lines = [json.loads(line) for line in ask(tmp_path, timing=timing).stdout.splitlines()]
    assert [line["event"] for line in lines] == ["device", "load", "first", "latency", "done"]
    assert len(lines[3]["ms"]) == 30
    assert not (tmp_path / "out").exists()


def test_probe_fails_aloud(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    ended = ask(tmp_path)
    assert ended.returncode != 0
    assert "done" not in ended.stdout
    assert "model.onnx" in ended.stderr.strip().splitlines()[-1]
