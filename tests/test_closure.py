"""A step's fingerprint covers the code that it runs: what is imported at the top, inside functions, and in other processes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import closure
from edgekit.closure import source_files
from edgekit.workspace import STEPS
from tests.conftest import child_environment, make_data
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
    assert {
        "gate.py",
        "devices/local.py",
        "probes/python.py",
        "runtimes/probe.py",
        "runtimes/llamacpp/__init__.py",
    } <= judged
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


RUNS = """
import json, os, sys
import importlib
from pathlib import Path
from tests.warm import BEGUN_WITH
for library in BEGUN_WITH:  # before the fork: once for all steps
    if not library.startswith("edgekit"):
        importlib.import_module(library)
student, prompts, out = map(Path, sys.argv[1:4])

def content(path):
    from edgekit.inputs import Content
    return Content(path=path, digest="")

def record():
    from edgekit.record import RecordInputs, record, rows
    rows.measure_alone = lambda asked, *_: {folder: {} for folder in asked}  # which is another process
    record(RecordInputs(teacher=content(student), teacher_origin="", student=content(student), prompts=content(prompts),
                        task="text-classification", max_length=16, libraries={}), out / "record")

def calibrate():
    from edgekit.calibrate import CalibrateInputs, calibrate
    from edgekit.recipe import Calibrate
    calibrate(CalibrateInputs(student=content(student), prompts=content(prompts), task="text-classification",
                              options=Calibrate(), max_length=16, seed=0, gradients=False), out / "calibrate")

def export():
    from edgekit.export import ExportInputs, export
    from edgekit.formats import FORMATS
    from edgekit.recipe import AS_CALIBRATED
    export(ExportInputs(student=content(student), calibration=content(out / "calibrate"), prompts=content(prompts),
                        task="text-classification", format="onnx", options=FORMATS["onnx"].Options(scheme="w8"), max_length=16,
                        out_of_scope=None, rejection=AS_CALIBRATED, name="", license=None, card=None, processor=None,
                        limits=None, libraries={}), out / "export")

def distill():
    from edgekit.distill import DistillInputs, distill
    from edgekit.distill.options import DistillOptions
    distill(DistillInputs(teacher=content(student), prompts=content(prompts), task="text-classification", kept=[0],
                          options=DistillOptions(epochs=1), losses={"logits": 1.0}, out_of_scope=None, max_length=16, seed=0,
                          machine={}), out / "distill")

for step in (record, calibrate, export, distill):
    (out / step.__name__).mkdir()
    child = os.fork()
    if child == 0:
        step()
        files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "edgekit"]
        (out / f"{step.__name__}.json").write_text(json.dumps(files))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, step.__name__
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_nothing_that_runs_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    """What a step really has loaded by its end, imports inside functions included."""
    prompts = make_data(tmp_path / "prompts")
    done = subprocess.run(
        [sys.executable, "-c", RUNS, checkpoint, prompts, tmp_path],
        capture_output=True, text=True, check=False, cwd=ROOT, env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for step in ("record", "calibrate", "export", "distill"):
        loaded = {Path(file).resolve() for file in json.loads((tmp_path / f"{step}.json").read_text())}
        known = {path.resolve() for path in source_files(STEPS[step].code)}
        assert loaded <= known, sorted(path.name for path in loaded - known)
        assert len(loaded) > 20


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
