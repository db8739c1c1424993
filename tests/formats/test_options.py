"""A target's export table: what no format has, and what a format does not have for a task's output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.errors import EdgekitError
from edgekit.formats import FORMATS, candidates, domains_of, library_versions, packages, parse_options, runtime_of
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
    ("tables", "domains", "chosen"),
    [
        ([], [""], ["onnxruntime"]),
        (["llama-cpp"], [""], ["llama-cpp"]),
        (["llama-cpp", "onnxruntime"], [""], ["llama-cpp", "onnxruntime"]),
        (["other", "onnxruntime", "llama-cpp"], [""], ["onnxruntime", "llama-cpp"]),
        (["other"], [""], ["onnxruntime"]),
        (["llama-cpp", "onnxruntime"], ["", "com.microsoft"], ["onnxruntime"]),
        (["onnxruntime"], ["", "of.another"], ["onnxruntime"]),
    ],
)
def test_a_targets_tables_say_which_runtimes_may_answer(
    tables: list[str], domains: list[str], chosen: list[str]
) -> None:
    """All that it names which run such a file, in its order; else the format's first."""
    both = SimpleNamespace(RUNTIMES=("onnxruntime", "llama-cpp"), LIBRARIES=("onnx",))
    named: dict[str, Any] = {name: {} for name in tables}
    assert list(candidates(both, named, "embedding", domains, "board.toml")) == chosen
    engines = {"onnxruntime"} | ({"llama-cpp-python"} if "llama-cpp" in chosen else set())
    assert {package.name for package in packages(both, chosen)} == engines, "the one that proves the files, and those"
    assert set(library_versions(both, chosen)) == {"onnx"} | engines


@pytest.mark.parametrize(("output", "domains"), [("embedding", ["com.microsoft"]), ("logits", [""])])
def test_a_runtime_that_cannot_run_the_file_is_refused_where_it_is_the_only_one(
    output: str, domains: list[str]
) -> None:
    both = SimpleNamespace(RUNTIMES=("onnxruntime", "llama-cpp"), LIBRARIES=())
    with pytest.raises(
        EdgekitError, match=r"board\.toml: runtime\.llama-cpp: does not run .* add \[runtime\.onnxruntime\]"
    ):
        candidates(both, {"llama-cpp": {}}, output, domains, "board.toml")


def test_a_format_says_whose_operators_its_files_have() -> None:
    assert domains_of(["MatMul", "com.microsoft.FusedMatMul"]) == {"", "com.microsoft"}
    options = {
        scheme: {
            layout: parse_options({"scheme": scheme, "layout": layout}, "logits", "x")[1]
            for layout in ("operators", "qdq")
        }
        for scheme in ("auto", "int8-static", "w8", "w4", "fp16", "fp32")
    }
    own = {
        name: {layout: FORMATS["onnx"].domains(one) for layout, one in both.items()} for name, both in options.items()
    }
    assert {name for name, both in own.items() if both["qdq"] == ("",)} == {"auto", "int8-static", "fp16", "fp32"}
    assert {name for name, both in own.items() if both["operators"] == ("",)} == {"fp16"}


def test_versions_are_of_what_files_and_answers_depend_on() -> None:
    assert set(library_versions(FORMATS["onnx"])) == {"onnx", "onnxruntime", "onnxscript"}
    assert set(library_versions(FORMATS["gguf"])) == {"llama-cpp-python"}
