"""The example of a code model, as small as it can be: made, taught by what it writes itself too, built, and asked for a middle."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("llama_cpp")

from tests.e2e.conftest import ROOT, SLOWEST, Project

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(SLOWEST)]
# The shortest rows, and a model that knows nothing yet: every step is the example's.
ROWS = {"train": 32, "calibrate": 8, "verify": 8}
SMALLER = {
    "teacher.create": {"epochs": 1, "hidden": 64, "intermediate": 64, "vocabulary": 640, "context": 320},
    "distill": {"epochs": 1, "on_policy.share": 0.5, "on_policy.new_tokens": 8},
    "data": {"max_length": 192},
}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("code")
    shutil.copytree(ROOT / "examples" / "code-completion", folder / "code-completion")
    for split, rows in ROWS.items():
        path = folder / "code-completion" / "data" / f"{split}.jsonl"
        lines = sorted(path.read_text(encoding="utf-8").splitlines(keepends=True), key=len)
        path.write_text("".join(lines[:rows]), encoding="utf-8")
    return Project(folder=folder, cache=folder / ".edgekit")


def test_a_middle_is_filled_in_by_what_was_built(code: Project) -> None:
    sizes = [f"--set={table}.{key}={value}" for table, keys in SMALLER.items() for key, value in keys.items()]
    line = ("--recipe", "code-completion", "--target", "laptop-cpu", "--format", "gguf", "--scheme", "q8_0", *sizes)
    (built,) = code.build(*line)["bundles"]
    assert built["verdict"] != "fail"
    assert (code.folder / built["bundle"] / "model.gguf").is_file()
    ask = ("run", built["bundle"], "def add(a, b):\n", "--suffix", "\n    return total", "--most", "8", "--json")
    (answer,) = json.loads(code.run(*ask).stdout)["answers"]
    assert answer["text"] == "def add(a, b):\n"
    assert answer["answer"]
