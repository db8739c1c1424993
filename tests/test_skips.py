"""The rule on skips: where everything can run, a skipped test fails the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = {
    "test_good.py": "def test_good():\n    pass\n",
    "test_expected.py": "import pytest\n@pytest.mark.xfail\ndef test_expected():\n    assert False\n",
}
SKIPPED = {
    "call": "import pytest\ndef test_it():\n    pytest.skip('no reason')\n",
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='no reason')\ndef test_it():\n    pass\n",
    "file": "import pytest\npytest.skip('no reason', allow_module_level=True)\n",
}


def run(folder: Path, tests: dict[str, str], *, ci: str = "true", uid: int = 0, data: bool = True) -> tuple[int, str]:
    """pytest on these tests in a repository with this conftest, by such a user; exit code and what it printed."""
    place = folder / "a repository" / "tests"
    place.mkdir(parents=True)
    if data:
        (folder / "shared" / "data").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "conftest.py", place)
    (place / "somebody.py").write_text(f"import os\nos.geteuid = lambda: {uid}\n")
    for name, text in tests.items():
        (place / name).write_text(text)
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTEST_ADDOPTS"}}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "somebody", "-p", "no:cacheprovider", "-p", "no:faulthandler", "."],
        cwd=place.parent,
        env=kept | {"PYTHONPATH": str(place)} | ({"CI": ci} if ci else {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", SKIPPED)
def test_a_skip_fails_the_run(tmp_path: Path, kind: str) -> None:
    code, said = run(tmp_path, TESTS | {"test_it.py": SKIPPED[kind]})
    assert code == 1, said
    assert "this fails the run" in said
    assert "tests/test_it.py" in said.split("this fails the run")[1]
    assert "no reason" in said.split("this fails the run")[1]


def test_no_skip_no_failure(tmp_path: Path) -> None:
    """An expected failure is no skip."""
    code, said = run(tmp_path, TESTS)
    assert code == 0, said
    assert "fails the run" not in said


@pytest.mark.parametrize("where", [{"ci": ""}, {"uid": 1000}, {"data": False}], ids=str)
def test_elsewhere_a_skip_is_a_skip(tmp_path: Path, where: dict[str, object]) -> None:
    code, said = run(tmp_path, TESTS | {"test_it.py": SKIPPED["call"]}, **where)  # type: ignore[arg-type]
    assert code == 0, said
    assert "1 skipped" in said
