"""A target's export table: what no format has, and what a format does not have for a task's output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, library_versions, packages, parse_options, runtime_name, runtime_of
from edgekit.runtimes import RUNTIMES
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


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_formats_runtimes_are_there(name: str) -> None:
    assert FORMATS[name].RUNTIMES
    assert set(FORMATS[name].RUNTIMES) <= set(RUNTIMES)
    assert FORMATS[name].RUNTIMES[0] == runtime_of(FORMATS[name]).NAME


@pytest.mark.parametrize(
    ("tables", "chosen"),
    [
        ([], "llama-cpp"),
        (["onnxruntime"], "onnxruntime"),
        (["onnxruntime", "llama-cpp"], "onnxruntime"),
        (["other", "llama-cpp", "onnxruntime"], "llama-cpp"),
        (["other"], "llama-cpp"),
    ],
)
def test_a_targets_tables_choose_the_runtime(tables: list[str], chosen: str) -> None:
    """The first that a target names of those that run the format, else the format's first."""
    both = SimpleNamespace(RUNTIMES=("llama-cpp", "onnxruntime"), LIBRARIES=("onnx",))
    named: dict[str, Any] = {name: {} for name in tables}
    assert runtime_name(both, named) == chosen
    assert runtime_of(both, named) is RUNTIMES[chosen]
    engines = {"llama-cpp-python"} | ({"onnxruntime"} if chosen == "onnxruntime" else set())
    assert {package.name for package in packages(both, named)} == engines, (
        "the one that proves the files, and the target's"
    )
    assert set(library_versions(both, named)) == {"onnx"} | engines


def test_versions_are_of_what_files_and_answers_depend_on() -> None:
    assert set(library_versions(FORMATS["onnx"])) == {"onnx", "onnxruntime", "onnxscript"}
    assert set(library_versions(FORMATS["gguf"])) == {"llama-cpp-python"}
