"""A step's fingerprint covers the code that it runs: what is imported at the top, inside functions, and in other processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import closure
from edgekit.closure import source_files
from edgekit.workspace import STEPS
from tests.test_house import MODULES, ROOT, imports, name

HOUSE = Path(edgekit.__file__).parent


def closure_of(*modules: str) -> set[str]:
    return {path.relative_to(HOUSE).as_posix() for path in source_files(modules)}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_are_those_that_python_sees(path: Path) -> None:
    seen = {
        module
        for module, statement, _ in imports(path)
        if module.split(".")[0] == "edgekit" and isinstance(statement, ast.Import)
    }
    for module, statement, _ in imports(path):
        if module.split(".")[0] == "edgekit" and isinstance(statement, ast.ImportFrom) and module == statement.module:
            seen |= {f"{module}.{alias.name}" for alias in statement.names}
    started = {part for pair in closure._STARTED.findall(path.read_text(encoding="utf-8")) for part in pair if part}
    found = {module for module in closure._imports(path, 0) if not module.endswith(".__main__")}
    assert found == {module for module in seen | started if not module.endswith(".__main__")}


def test_what_steps_run() -> None:
    trained = closure_of(*STEPS["distill"].code)
    assert {
        "__init__.py",
        "distill/loop.py",
        "distill/losses.py",
        "runtimes/machine.py",
        "weights.py",
        "tasks/loading.py",
    } <= trained
    assert not {path for path in trained if path.startswith(("verify/", "cli/", "pipeline/plan", "devices"))}
    judged = closure_of(*STEPS["verify"].code)
    assert {"gate.py", "devices/local.py", "runtimes/probe.py", "runtimes/llama.py"} <= judged
    assert not {path for path in judged if path.startswith(("report/", "bundle/", "cli/"))}, (
        "a new style measures nothing"
    )
    assert "record/__main__.py" in closure_of(*STEPS["record"].code)
    assert "formats/onnx/quantize.py" in closure_of(*STEPS["export"].code)
    assert not {
        path for path in closure_of(*STEPS["prompts"].code) if path.startswith(("tasks", "distill", "formats", "model"))
    }


@pytest.mark.parametrize("step", STEPS)
def test_nothing_that_is_loaded_is_left_out(step: str) -> None:
    """What Python itself loads for a step's modules."""
    modules = [module for module in STEPS[step].code if not module.startswith("edgekit.pipeline")] or [
        "edgekit.closure"
    ]
    code = f"import sys; import {', '.join(modules)}; print([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'edgekit'])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {Path(file).resolve() for file in ast.literal_eval(told.stdout)}
    assert loaded <= {path.resolve() for path in source_files([*STEPS[step].code, "edgekit.closure", "edgekit"])}


def test_imports_of_every_form(tmp_path: Path) -> None:
    for module, content in {
        "__init__": "",
        "a": "from edgekit.b import (  # a comment\n    one,\n    two as three,\n)\nif TYPE_CHECKING:\n    from edgekit.typing_only import x\n",
        "b": "def f():\n    import edgekit.c\n    from edgekit import d, e as other\n",
        "c": 'apart(\n    \'x\')\nrun([sys.executable, "-m", "edgekit.process", folder])\n',
        "d": "apart(\n    \"edgekit.child:answer\",\n    what='')\n",
        **dict.fromkeys(("e", "process", "child", "typing_only", "unused"), ""),
    }.items():
        (tmp_path / f"{module}.py").write_text(content)
    found = {path.stem for path in source_files(["edgekit.a"], tmp_path)}
    assert found == {"__init__", "a", "b", "c", "d", "e", "process", "child"}
