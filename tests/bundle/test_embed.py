"""`edgekit embed`: the table conforms, what it writes runs, and nothing of somebody else's is replaced."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bundle import platforms as bundle_platforms
from edgekit.bundle.embed import WRITTEN, embed
from edgekit.bundle.loaders import LOADERS
from edgekit.bundle.open import open_bundle
from edgekit.bundle.package import Packaged
from edgekit.bundle.platforms import EMBEDDINGS, PLATFORMS, platforms_of
from edgekit.errors import EdgekitError
from tests.bundle.test_golden import pack_golden
from tests.conftest import Answer


@pytest.fixture
def packed(tmp_path: Path) -> Packaged:
    return pack_golden(tmp_path / "made", out=tmp_path / "dist")


@pytest.mark.parametrize("entry", EMBEDDINGS, ids="-".join)
def test_an_embedding_conforms(entry: tuple[str, str, str, str]) -> None:
    """Its files are there and need nothing of edgekit; the platform has a name; it says where it ran."""
    found = EMBEDDINGS[entry]
    assert entry[:3] in LOADERS
    assert entry[3] in PLATFORMS
    assert found.files
    assert found.use
    assert found.ran
    assert all("\n" not in line for line in (*found.install, *found.notes, found.ran))
    for name, source in found.files.items():
        text = source.read_text(encoding="utf-8")
        assert not Path(name).is_absolute()
        assert not re.search(r"(?m)^\s*(from|import) edgekit\b", text)
        if name.endswith(".py"):
            ast.parse(text)


def test_what_is_written_answers(packed: Packaged, tmp_path: Path) -> None:
    """From the archive, in another process, with the lines that the command shows."""
    made = embed(packed.archive, "python", tmp_path / "app")
    assert "bundle/golden.json" in made.files
    lines = made.embedding.use.replace("bundle(", "answer = bundle(", 1) + "\nprint(answer[0][0])"
    ran = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path / "app", capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "light_on"), ran.stderr


def test_only_what_edgekit_wrote_is_replaced(packed: Packaged, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "main.py").write_text("print('mine')")
    embed(packed.bundle, "python", app)
    (app / "bundle" / "__pycache__").mkdir()
    again = embed(packed.bundle, "python", app)
    assert (app / "main.py").read_text() == "print('mine')"
    assert {WRITTEN, "main.py", "bundle", *(name for name in again.files if "/" not in name)} == {
        path.name for path in app.iterdir()
    }
    (app / "load.py").write_text("changed")
    with pytest.raises(EdgekitError, match=r"load\.py: changed since edgekit wrote it; move it away"):
        embed(packed.bundle, "python", app)
    other = tmp_path / "other"
    other.mkdir()
    (other / "load.py").write_text("mine")
    with pytest.raises(EdgekitError, match=r"load\.py: is there and edgekit did not write it"):
        embed(packed.bundle, "python", other)
    assert [path.name for path in other.iterdir()] == ["load.py"], "nothing was half-written"
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgekitError, match="file: is there and is no folder"):
        embed(packed.bundle, "python", tmp_path / "file")
    with pytest.raises(EdgekitError, match="demo-board: is a bundle itself, and an app's folder is wanted"):
        embed(packed.bundle, "python", packed.bundle)
    assert open_bundle(packed.bundle)


def test_a_platform_that_there_is_nothing_for_is_told(
    packed: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(packed.bundle).manifest
    # A copy: what is taken out of a table and put back lies at its end.
    monkeypatch.setattr(
        bundle_platforms, "EMBEDDINGS", {key: one for key, one in EMBEDDINGS.items() if key[3] != "ios"}
    )
    with pytest.raises(
        EdgekitError, match=r"no loader of logits in onnxruntime for iOS; of this bundle it has --for python"
    ):
        embed(packed.bundle, "ios", tmp_path / "app")
    assert not (tmp_path / "app").exists()
    assert "python" in platforms_of(manifest)


def test_the_command_says_how_it_is_used(packed: Packaged, tmp_path: Path, command: Callable[..., Answer]) -> None:
    answer = command("embed", str(packed.bundle), "--for", "python", "--out", str(tmp_path / "app"))
    assert answer.code == 0, answer.err
    assert "pip install onnxruntime tokenizers numpy" in answer.out
    assert 'bundle = Bundle("bundle")' in answer.out
    told = command("embed", str(packed.bundle), "--for", "python", "--out", str(tmp_path / "app"), "--json")
    found = json.loads(told.out)
    assert found["folder"] == str(tmp_path / "app")
    assert found["install"] == ["pip install onnxruntime tokenizers numpy"]
