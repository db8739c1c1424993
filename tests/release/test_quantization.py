"""The record of tensors, against gguf-py's own reading of a file and ggml's own dequantization."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file

from edgekit.errors import EdgekitError
from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.convert import Quantization, convert
from edgekit.formats.gguf.tensors import plan
from edgekit.model import load_model
from edgekit.release.quantization import Sources, record
from tests.architectures.decoders import make_decoder


def test_a_gguf_is_on_record_with_the_errors_that_ggml_makes(tmp_path: Path) -> None:
    student = make_decoder("llama", tmp_path / "student")
    model = load_model(student)
    types = {tensor.name: "q4_0" if len(tensor.shape) > 1 else "f32" for tensor in plan(model)}
    convert(model, tmp_path / "model.gguf", Quantization(types=types), {"general.architecture": "llama"})
    artifact = SimpleNamespace(sha256="0" * 64, format="gguf", scheme="q4_0")
    bundle = SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(model="model.gguf", artifact=artifact))
    kept = record(bundle, Sources(student=student))
    rows = {row["name"]: row for row in kept["tensors"]}
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert list(rows) == list(stored)
    for name, tensor in stored.items():
        row = rows[name]
        assert (row["type"], row["bytes"]) == (tensor.tensor_type.name.lower(), int(tensor.n_bytes))
        assert row["shape"] == tuple(int(extent) for extent in reversed(tensor.shape))
        assert row["block"] == (32 if row["type"] == "q4_0" else 1)
        assert (row["largest_error"] is None) == (row["type"] == "f32")
    wanted = load_file(student / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    mine = stored["blk.0.ffn_down.weight"]
    values = ggml.dequantize(mine.data, "q4_0", wanted.shape[1])
    apart = np.abs(values.astype(np.float64) - wanted)
    row = rows["blk.0.ffn_down.weight"]
    assert row["largest_error"] == pytest.approx(apart.max(), rel=1e-5)
    assert row["mean_error"] == pytest.approx(apart.mean(), rel=1e-5)
    assert row["relative_error"] == pytest.approx(np.linalg.norm(values - wanted) / np.linalg.norm(wanted), rel=1e-4)
    bare = record(bundle, Sources())
    assert bare["errors"].startswith("not known")
    assert all(row["largest_error"] is None for row in bare["tensors"])
    other = make_decoder("llama", tmp_path / "other", hidden_size=2 * model.config["hidden_size"])
    with pytest.raises(EdgekitError, match=r"is not that of .*other; name the student"):
        record(bundle, Sources(student=other))
