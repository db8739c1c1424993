"""What a configuration says of positions reaches a GGUF file as transformers reads it, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.metadata import describe_model
from edgekit.formats.gguf.tensors import plan
from edgekit.model import load_model
from tests.architectures.decoders import make_decoder

PLAIN = {"rope_type": "default", "rope_theta": 1e4}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        config.pop(key, None) if value is ... else config.update({key: value})
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_a_share_that_transformers_does_not_read_is_not_written(family: str, tmp_path: Path) -> None:
    """partial_rotary_factor turns a share of each head in Phi-3; in these families transformers turns all of it."""
    model = load_model(
        make_decoder(family, tmp_path / family, **({"rope_parameters": PLAIN} if family == "llama" else {}))
    )
    whole = describe_model(model)
    edit(model.folder, partial_rotary_factor=0.5)
    assert describe_model(load_model(model.folder)) == whole
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    edit(model.folder, rope_parameters=rope, partial_rotary_factor=...)
    with pytest.raises(EdgekitError, match=r"partial_rotary_factor|rope_type: llama\.cpp computes default in"):
        describe_model(load_model(model.folder))


def test_mistrals_own_window_is_the_context(tmp_path: Path) -> None:
    model = load_model(make_decoder("mistral", tmp_path / "model", max_position_embeddings=8192))
    edit(model.folder, sliding_window=...)
    assert describe_model(load_model(model.folder))["llama.context_length"] == 4096
    edit(model.folder, sliding_window=None)
    assert describe_model(load_model(model.folder))["llama.context_length"] == 8192


@pytest.mark.parametrize(
    ("rope", "match"),
    [
        (
            {"rope_type": "dynamic", "factor": 2.0},
            r"rope_type: llama\.cpp computes .* in this family, not 'dynamic'; export as ONNX",
        ),
        ({"rope_type": "dynmic", "factor": 2.0}, r"rope_type: unknown value 'dynmic'"),
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": "x"}, r"attention_factor: 'x' is not a number"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            r"low_freq_factor: 4\.0 is not below",
        ),
        (
            {"rope_type": "longrope", "long_factor": ["1"] * 8, "short_factor": ["1"] * 8},
            r"long_factor: \[.*\] is not a list of numbers",
        ),
    ],
)
def test_positions_that_cannot_be_computed_are_refused(rope: dict[str, Any], match: str, tmp_path: Path) -> None:
    model = load_model(make_decoder("llama", tmp_path / "model"))
    edit(model.folder, rope_parameters={"rope_theta": 1e4, "original_max_position_embeddings": 64, **rope})

    def describe() -> object:
        changed = load_model(model.folder)
        return plan(changed) and describe_model(changed)

    with pytest.raises(EdgekitError, match=match):
        describe()
