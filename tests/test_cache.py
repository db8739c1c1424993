"""`cache prune` deletes what edgekit made and nothing else, whatever folder it is pointed at."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.cache import read_size
from edgekit.errors import EdgekitError
from edgekit.workspace import Workspace
from tests.conftest import Answer

Command = Callable[..., Answer]


def make(out: Path) -> Mapping[str, Any]:
    (out / "file").write_bytes(b"x" * 1000)
    return {}


def snapshot(root: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, but for locks."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if (path.is_file() or path.is_symlink()) and "locks" not in path.parts
    }


def test_only_edgekits_own_folders_go(command: Command, tmp_path: Path) -> None:
    """Beside two products: other folders, hidden ones, files, names that only look like a product's, and links."""
    root = tmp_path / "cache"
    for number in range(2):
        Workspace(root).once("record", {"n": number}, make)
    outside = tmp_path / "outside"
    (outside / "thesis").mkdir(parents=True)
    (outside / "thesis" / "record.json").write_text("{}")
    places = (
        "photos/2026", ".git/objects", "record/mine", "record/.mine.partial", "record/0123456789abcdeg", "recording/0123456789abcdef",
        "distill/0123456789abcdef", "distill/.0123456789abcdef.partial",
    )  # fmt: skip
    for place in places:
        (root / place).mkdir(parents=True)
        (root / place / "thesis.txt").write_text("do not lose me")
    (root / "record" / "mine" / "record.json").write_text("{}")
    (root / "record" / "fedcba9876543210").symlink_to(outside / "thesis")
    (root / "calibrate").symlink_to(outside)
    (root / "looks.json").write_text("{}")
    before = snapshot(tmp_path)
    would = json.loads(command("cache", "prune", "--dry-run", "--json").out)
    assert (would["removed"], len(would["would_remove"])) == ([], 2)
    assert snapshot(tmp_path) == before
    answer = command("cache", "prune")
    assert (answer.code, answer.out) == (0, f"removed 2 folders, {would['bytes'] / 1e6:.1f} MB\n")
    after = snapshot(tmp_path)
    gone = before.keys() - after.keys()
    assert {name.split("/")[3] for name in gone} == {"file", "record.json"}
    assert after == {name: content for name, content in before.items() if name not in gone}


@pytest.mark.parametrize("verb", ["prune", "list"])
def test_a_folder_that_is_no_cache_is_refused(command: Command, tmp_path: Path, verb: str) -> None:
    home = tmp_path / "home"
    (home / "photos" / "2026").mkdir(parents=True)
    (home / "photos" / "2026" / "one.jpg").write_bytes(b"x")
    before = snapshot(home)
    answer = command("cache", verb, "--cache", home)
    assert (answer.code, answer.out) == (1, "")
    assert "home: no cache of edgekit: it holds photos and no finished step" in answer.err
    assert snapshot(home) == before
    assert [path.name for path in home.iterdir()] == ["photos"]


def test_links_inside_a_product_are_removed_as_links(command: Command, tmp_path: Path) -> None:
    made = Workspace(tmp_path / "cache").once("record", {}, make)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis.txt").write_text("do not lose me")
    (made.folder / "link").symlink_to(tmp_path / "outside")
    (made.folder / "broken").symlink_to(tmp_path / "nowhere")
    answer = command("cache", "prune")
    assert answer.out.startswith("removed 1 folders"), answer.err
    assert not made.folder.exists()
    assert (tmp_path / "outside" / "thesis.txt").read_text() == "do not lose me"


def test_halves_of_killed_steps_go(command: Command, tmp_path: Path) -> None:
    half = tmp_path / "cache" / "distill" / ".0123456789abcdef.partial"
    half.mkdir(parents=True)
    (half / ".key").write_text("0123456789abcdef")
    (half / "snapshot.json").write_text("{}")
    assert command("cache", "prune").out.startswith("removed 1 folders")
    assert not half.exists()


def test_max_size_takes_the_longest_unused(command: Command, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "cache")
    made = [workspace.once("record", {"n": number}, make) for number in range(4)]
    for age, product in zip((30, 40, 10, 20), made, strict=True):
        os.utime(product.folder / "record.json", (0, time.time() - age * 86400))
    (size,) = {sum(path.stat().st_size for path in product.folder.iterdir()) for product in made}
    command("cache", "prune", "--max-size", str(2 * size))
    assert [product.folder.exists() for product in made] == [False, False, True, True]
    assert command("cache", "prune", "--max-size", "1GB").out.startswith("removed 0")
    assert command("cache", "prune", "--max-size", "0", "--older-than", "15").out.startswith("removed 1")
    assert [product.folder.exists() for product in made] == [False, False, True, False]


def test_sizes() -> None:
    assert [read_size(text) for text in ("2GB", "1.5 MB", "700", "0", "3kb")] == [2 * 10**9, 1_500_000, 700, 0, 3000]
    for bad in ("", "GB", "-1MB", "2 GiB", "two"):
        with pytest.raises(EdgekitError, match="not a size"):
            read_size(bad)


@pytest.mark.parametrize(("answer", "left"), [("n\n", True), ("\n", True), ("y\n", False)])
def test_a_terminal_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, left: bool) -> None:
    from click.testing import CliRunner

    from edgekit.cli import cache as cache_command
    from edgekit.cli import cli

    made = Workspace(tmp_path / "cache").once("record", {}, make)
    monkeypatch.setattr(cache_command, "is_terminal", lambda: True)
    result = CliRunner().invoke(cli, ["cache", "prune", "--cache", str(tmp_path / "cache")], input=answer)
    assert "Delete these 1 folders? [y/N]" in result.output
    assert str(made.folder) in result.output
    assert made.folder.exists() is left
    if left:
        assert CliRunner().invoke(cli, ["cache", "prune", "--yes", "--cache", str(tmp_path / "cache")]).exit_code == 0
        assert not made.folder.exists()


@pytest.mark.parametrize("out", ["teacher", "teacher/new", "."])
def test_a_stage_never_writes_into_what_it_reads(command: Command, project: Path, out: str) -> None:
    """A step's folder may be replaced by its own successor: not while that one reads it."""
    before = snapshot(project.parent / "teacher")
    answer = command("record", "teacher", "teacher", "--recipe", project, "--out", out)
    assert answer.code == 1
    assert f"{out}: --out would change teacher, which this step reads" in answer.err
    assert snapshot(project.parent / "teacher") == before


def test_a_build_refuses_before_it_begins(command: Command, project: Path) -> None:
    """Not after an hour of training: the dry run says it, too."""
    name = f"{project.parent.name}-laptop-cpu"
    (project.parent / "dist" / name).mkdir(parents=True)
    (project.parent / "dist" / name / "app.py").write_text("mine")
    for more in (("--dry-run",), ()):
        answer = command("build", "-t", "laptop-cpu", *more)
        assert answer.code == 1
        assert "is there and is not a bundle; move it away or choose another --out" in answer.err
    assert snapshot(project.parent / "dist") == {f"{name}/app.py": b"mine"}
