"""A target's export table: what no format has, and what a format does not have for a task's output."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, parse_options
from edgekit.tasks import TASKS

OUTPUTS = sorted({task.OUTPUT for task in TASKS.values()})


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_scheme_of_an_output_is_taken(name: str) -> None:
    for output, schemes in FORMATS[name].SCHEMES.items():
        assert output in OUTPUTS
        for scheme in schemes:
            found, options = parse_options({"format": name, "scheme": scheme}, output, "board.toml: export.task")
            assert (found.NAME, options.scheme) == (name, scheme)
        assert FORMATS[name].SCHEME_FOR.get(output, FORMATS[name].Options().scheme) in schemes


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_has_a_format(output: str) -> None:
    assert any(output in known.SCHEMES for known in FORMATS.values())


@pytest.mark.parametrize(
    ("table", "output", "told"),
    [
        ({"format": "gguf"}, "logits", "export.format: gguf has no models that answer with logits; use 'onnx'"),
        (
            {"scheme": "int8-static"},
            "tokens",
            "export.scheme: int8-static is not for onnx models .* use one of auto, int8",
        ),
        ({"scheme": "fp16"}, "tokens", "export.scheme: fp16 is not for onnx models that answer with tokens"),
        ({"format": "tflite"}, "tokens", "export.format: .*tflite.*onnx"),
        ({"format": "gguf", "scheme": "q4_k_x"}, "tokens", "export.scheme"),
        ({"format": "gguf", "threads": 4}, "tokens", "export.threads"),
    ],
)
def test_what_does_not_go_together_is_refused(table: dict[str, Any], output: str, told: str) -> None:
    with pytest.raises(EdgekitError, match=told):
        parse_options(table, output, "board.toml: export")
