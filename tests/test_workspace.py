"""The step cache: a step is made once, whole or not at all, and made again when what it depends on changes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import edgekit.workspace as workspace_module
from edgekit.cache import Kept, choose, kept, prune
from edgekit.errors import EdgekitError
from edgekit.workspace import (
    PAGE,
    STEPS,
    Workspace,
    file_sha256,
    fingerprint,
    library_version,
    list_files,
    open_product,
    write_atomically,
    write_product,
)
from tests.conftest import child_environment


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "cache")


class Counted:
    """A step that counts its runs."""

    def __init__(self, text: str = "made") -> None:
        self.runs = 0
        self.text = text

    def __call__(self, out: Path) -> Mapping[str, Any]:
        self.runs += 1
        (out / "inner").mkdir(exist_ok=True)
        (out / "inner" / "file.txt").write_text(self.text)
        return {"runs": self.runs}


def prune_all(workspace: Workspace, **limits: float) -> list[Kept]:
    return prune(workspace, choose(kept(workspace), **limits))


def litter(root: Path) -> list[str]:
    """Hidden files and folders below a place: partial, old and lock files."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob(".*"))


def test_made_once(workspace: Workspace) -> None:
    make = Counted()
    first = workspace.once("record", {"a": 1}, make)
    again = workspace.once("record", {"a": 1}, make)
    assert (make.runs, first.folder, first.facts) == (1, again.folder, {"runs": 1})
    assert first.manifest["files"].keys() == {"inner/file.txt"}
    assert first.digest == folder_digest_of(first.folder)
    assert workspace.once("record", {"a": 2}, make).folder != first.folder
    assert make.runs == 2
    assert litter(workspace.root) == []


def folder_digest_of(folder: Path) -> str:
    files = {name: entry["sha256"] for name, entry in list_files(folder).items() if name != "record.json"}
    return fingerprint(files)


def test_fresh_makes_again_in_place(workspace: Workspace) -> None:
    make = Counted()
    first = workspace.once("record", {}, make)
    make.text = "anew"
    second = workspace.once("record", {}, make, fresh=True)
    assert second.folder == first.folder
    assert (second.folder / "inner" / "file.txt").read_text() == "anew"
    assert litter(workspace.root) == []


def test_code_and_versions_make_a_new_fingerprint(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Counted()
    workspace.once("record", {}, make)
    monkeypatch.setattr(workspace_module, "_code_digest", lambda _: "other")
    workspace.once("record", {}, make)
    monkeypatch.setattr(workspace_module, "_distribution_version", lambda _: "9.9")
    workspace.once("record", {}, make)
    assert make.runs == 3


def test_every_step_names_its_code_and_libraries() -> None:
    for modules in (step.code for step in STEPS.values()):
        assert all(find_spec(module) for module in modules)


@pytest.mark.parametrize("failure", [EdgekitError("no"), OSError(errno.ENOSPC, "No space left"), ZeroDivisionError()])
def test_failed_step_leaves_nothing(workspace: Workspace, failure: Exception) -> None:
    def fail(out: Path) -> Mapping[str, Any]:
        (out / "half").write_text("x")
        raise failure

    expected = ZeroDivisionError if isinstance(failure, ZeroDivisionError) else EdgekitError
    for step in ("record", *([] if expected is ZeroDivisionError else ["distill"])):
        with pytest.raises(expected):
            workspace.once(step, {}, fail)
        assert not list((workspace.root / step).iterdir())


def test_other_os_errors_are_not_called_a_full_disk(workspace: Workspace) -> None:
    """A missing file inside a step is a bug, or has its own message: it must not tell the user to free space."""

    def fail(out: Path) -> Mapping[str, Any]:
        raise FileNotFoundError(errno.ENOENT, "No such file", str(out / "x"))

    with pytest.raises(FileNotFoundError):
        workspace.once("record", {}, fail)


def test_interrupted_step(workspace: Workspace, tmp_path: Path) -> None:
    """Ctrl-C: a resumable step keeps what it has and continues there; any other leaves nothing."""

    def interrupted(out: Path) -> Mapping[str, Any]:
        (out / "half").write_text("x")
        raise KeyboardInterrupt

    found = []

    def resume(out: Path) -> Mapping[str, Any]:
        found.append(sorted(path.name for path in out.iterdir()))
        return {}

    with pytest.raises(KeyboardInterrupt):
        workspace.once("record", {}, interrupted)
    assert not list((workspace.root / "record").iterdir())
    for inputs, left in (({"a": 1}, [".key", "half"]), ({"a": 2}, [".key"])):
        place = tmp_path / f"student-{inputs['a']}"
        with pytest.raises(KeyboardInterrupt):
            workspace.once("distill", {"a": 1}, interrupted, at=place)
        product = workspace.once("distill", inputs, resume, at=place)
        assert found.pop() == left
        assert ".key" not in product.manifest["files"]


def test_killed_step_starts_afresh(workspace: Workspace, tmp_path: Path) -> None:
    """SIGKILL leaves a partial folder; the next run takes it over, and ends in the same bytes and no litter."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom edgekit.workspace import Workspace\n"
        "def make(out):\n    (out / 'half').write_text('x'); print('up', flush=True); time.sleep(60)\n"
        f"Workspace(Path({str(workspace.root)!r})).once('record', {{}}, make)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=child_environment())
    assert child.stdout is not None
    child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    child.wait()
    assert litter(workspace.root) != []
    product = workspace.once("record", {}, Counted())
    assert product.manifest["files"].keys() == {"inner/file.txt"}
    assert litter(workspace.root) == []


def test_two_builds_make_a_step_once(workspace: Workspace) -> None:
    runs = []

    def slow(out: Path) -> Mapping[str, Any]:
        runs.append(1)
        time.sleep(0.3)
        return {}

    threads = [threading.Thread(target=lambda: workspace.once("record", {}, slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1


def test_at_a_place_of_the_users(workspace: Workspace, tmp_path: Path) -> None:
    """--out gets the product and nothing beside it; what is not a product of this step is never replaced."""
    place = tmp_path / "mine" / "reference"
    product = workspace.once("record", {"a": 1}, Counted(), at=place)
    assert product.folder == place
    assert [path.name for path in place.parent.iterdir()] == ["reference"]
    workspace.once("record", {"a": 2}, Counted("other"), at=place)
    assert (place / "inner" / "file.txt").read_text() == "other"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("do not lose me")
    for taken in (tmp_path / "own", tmp_path / "own" / "thesis.txt", place.parent):
        with pytest.raises(EdgekitError, match="choose another --out"):
            workspace.once("record", {"a": 1}, Counted(), at=taken)
    assert (tmp_path / "own" / "thesis.txt").read_text() == "do not lose me"


def test_what_a_user_added_or_changed_is_never_replaced(workspace: Workspace, tmp_path: Path) -> None:
    """Other inputs for a folder that was made before: all in it must be as the step left it."""
    mine = tmp_path / "mine"

    def refused(said: str) -> None:
        before = {
            path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "locks" not in path.parts
        }
        for fresh in (False, True):
            with pytest.raises(EdgekitError, match=said):
                workspace.once("record", {"a": 2}, Counted(), at=mine, fresh=fresh)
        assert all(path.read_bytes() == content for path, content in before.items())

    workspace.once("record", {"a": 1}, Counted(), at=mine)
    (mine / "inner" / "notes.txt").write_text("mine")
    refused(r"notes\.txt: not of the record step")
    (mine / "inner" / "notes.txt").unlink()
    (mine / "link").symlink_to(tmp_path)
    refused("link: not of the record step")
    (mine / "link").unlink()
    (mine / "inner" / "file.txt").write_text("edited")
    refused("its sha256 is not the manifest's")
    (mine / "inner" / "file.txt").write_text("made")
    for name in (".mine.partial", ".mine.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
        refused(f"{name}: already there, and not edgekit's")
        (tmp_path / name).rename(tmp_path / "away")
        (tmp_path / "away" / "thesis.txt").unlink()
        (tmp_path / "away").rmdir()
    assert workspace.once("record", {"a": 2}, Counted("other"), at=mine).folder == mine


def test_the_page_beside_a_report_is_no_part_of_it(workspace: Workspace, tmp_path: Path) -> None:
    """verify's page may be there, be another or be gone: the report is kept, and other inputs replace both."""
    mine = tmp_path / "mine"
    made = workspace.once("verify", {"a": 1}, Counted(), at=mine)
    (mine / PAGE).write_text("drawn")
    again = Counted()
    assert workspace.once("verify", {"a": 1}, again, at=mine).digest == made.digest
    assert again.runs == 0
    workspace.once("verify", {"a": 2}, Counted("other"), at=mine)
    assert not (mine / PAGE).exists()
    workspace.once("record", {"a": 1}, Counted(), at=tmp_path / "record")
    (tmp_path / "record" / PAGE).write_text("mine")
    with pytest.raises(EdgekitError, match=r"report\.html: not of the record step"):
        workspace.once("record", {"a": 2}, Counted(), at=tmp_path / "record")


def test_a_link_to_a_folder_is_written_through(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    workspace.once("record", {"a": 1}, Counted(), at=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "record.json").is_file()


def test_a_product_in_the_cache_that_is_a_link_keeps_what_it_leads_to(workspace: Workspace, tmp_path: Path) -> None:
    made = workspace.once("record", {}, Counted())
    made.folder.rename(tmp_path / "moved")
    made.folder.symlink_to(tmp_path / "moved")
    workspace.once("record", {}, Counted("anew"), fresh=True)
    assert (made.folder / "inner" / "file.txt").read_text() == "anew"
    assert (tmp_path / "moved" / "inner" / "file.txt").read_text() == "made"


def test_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgekitError, match=r"file.*cannot be written"):
        Workspace(tmp_path / "file" / "cache").once("record", {}, Counted())


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "record.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "inner" / "file.txt").write_text("other"), "its sha256 is not the manifest's"),
        (lambda folder: (folder / "inner" / "file.txt").unlink(), "file.txt: missing"),
        (damaged(lambda manifest: manifest["files"]["inner/file.txt"].update(sha256="0" * 64)), "edited by hand"),
        (damaged(lambda manifest: manifest["files"].update({"../x": {"sha256": "0" * 64}})), "edited by hand"),
        (damaged(lambda manifest: manifest.update(files=[1])), "not a manifest that edgekit wrote"),
        (damaged(lambda manifest: manifest.update(step="export")), "not a manifest that edgekit wrote"),
        (damaged(lambda manifest: manifest.pop("digest")), "not a manifest that edgekit wrote"),
        (lambda folder: (folder / "record.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "record.json").unlink(), "not the finished folder of a record step"),
    ],
)
def test_damaged_product(workspace: Workspace, damage: Callable[[Path], object], said: str) -> None:
    folder = workspace.once("record", {}, Counted()).folder
    open_product(folder, "record").check()
    damage(folder)
    with pytest.raises(EdgekitError, match=said):
        open_product(folder, "record").check()


def test_path_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "product"
    folder.mkdir()
    write_product(folder, "record", key="k", inputs={}, facts={})
    manifest = json.loads((folder / "record.json").read_text())
    manifest["files"] = {"../secret": {"bytes": 1, "sha256": "0" * 64}}
    manifest["digest"] = fingerprint({"../secret": "0" * 64})
    (folder / "record.json").write_text(json.dumps(manifest))
    with pytest.raises(EdgekitError, match=r"names a path outside the folder: \.\./secret"):
        open_product(folder, "record").check()


def test_list_and_prune(workspace: Workspace) -> None:
    for number in range(3):
        workspace.once("record", {"n": number}, Counted())
    workspace.once("calibrate", {}, Counted())
    assert [product.step for product in workspace.products()] == ["calibrate", "record", "record", "record"]
    assert prune_all(workspace, older_than_days=1) == []
    removed = prune_all(workspace)
    assert len(removed) == 4
    assert all(one.bytes > 0 for one in removed)
    assert list(workspace.products()) == []


def test_prune_leaves_what_a_build_is_making(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    """A step that runs keeps its partial folder and the product that it would replace; a killed one's half goes."""
    inside, go, made = threading.Event(), threading.Event(), []

    def slow(out: Path) -> Mapping[str, Any]:
        (out / "half").write_text("x")
        inside.set()
        assert go.wait(60)
        return {}

    place = workspace.once("record", {"a": 1}, Counted()).folder
    workspace.once("record", {"a": 2}, Counted())
    killed = workspace.root / "record" / ".0123456789abcdef.partial"
    killed.mkdir()
    thread = threading.Thread(target=lambda: made.append(workspace.once("record", {"a": 1}, slow, fresh=True)))
    thread.start()
    assert inside.wait(60)
    removed = prune_all(workspace)
    left = sorted(path.name for path in (workspace.root / "record").iterdir())
    go.set()
    thread.join()
    assert len(removed) == 2
    assert left == [f".{place.name}.partial", place.name]
    assert caplog.text.count("a build is making this; left as it is") == 2
    assert made[0].manifest["files"].keys() == {"half"}
    assert litter(workspace.root) == []
    assert len(prune_all(workspace)) == 1


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "one\n")
    write_atomically(path, "zwei ü\n")
    assert path.read_bytes() == "zwei ü\n".encode()
    with pytest.raises(EdgekitError, match="cannot be written"):
        write_atomically(tmp_path / "file.json" / "below", "x")
    assert [one.name for one in tmp_path.iterdir()] == ["file.json"]


def test_a_folder_of_the_users_gets_a_copy_of_what_is_there(tmp_path: Path) -> None:
    workspace, made = Workspace(tmp_path / "cache"), []

    def make(out: Path) -> dict[str, str]:
        made.append(out)
        (out / "file").write_text("content")
        return {}

    kept = workspace.once("prompts", {"a": 1}, make)
    copied = workspace.once("prompts", {"a": 1}, make, at=tmp_path / "mine")
    assert len(made) == 1
    assert copied.folder == tmp_path / "mine"
    assert copied.digest == kept.digest
    copied.check()


def test_a_damaged_product_is_made_again(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    make = Counted()
    first = workspace.once("record", {}, make)
    (first.folder / "inner" / "file.txt").write_text("tampered")
    assert workspace.once("record", {}, make).facts == {"runs": 2}
    assert "made again" in caplog.text
    (first.folder / "record.json").write_text("{}")
    assert workspace.once("record", {}, make).facts == {"runs": 3}
    assert litter(workspace.root) == []


def test_a_users_folder_that_was_changed_is_not_replaced(workspace: Workspace, tmp_path: Path) -> None:
    make, mine = Counted(), tmp_path / "mine"
    workspace.once("record", {}, make, at=mine)
    (mine / "inner" / "file.txt").write_text("edited by its owner")
    with pytest.raises(EdgekitError, match=r"file\.txt: its sha256 is not the manifest's"):
        workspace.once("record", {}, make, at=mine)
    assert (mine / "inner" / "file.txt").read_text() == "edited by its owner"


def test_a_step_killed_after_its_manifest_is_complete(workspace: Workspace) -> None:
    make = Counted()
    first = workspace.once("record", {}, make)
    first.folder.rename(first.folder.with_name(f".{first.folder.name}.partial"))
    again = workspace.once("record", {}, make)
    assert (make.runs, again.folder) == (1, first.folder)
    assert litter(workspace.root) == []


def test_reuse_counts_as_use(workspace: Workspace) -> None:
    make = Counted()
    kept, unused = workspace.once("record", {"a": 1}, make), workspace.once("record", {"a": 2}, make)
    for product in (kept, unused):
        for path in (product.folder / "record.json", product.folder):
            os.utime(path, (1_000_000, 1_000_000))
    workspace.once("record", {"a": 1}, make)
    assert len(prune_all(workspace, older_than_days=1)) == 1
    assert kept.folder.is_dir()
    assert not unused.folder.exists()


def test_any_distribution_of_a_library_will_do() -> None:
    assert library_version("onnxruntime", "no-such-distribution", "onnxruntime")[0].isdigit()
    with pytest.raises(EdgekitError, match="absent-library is not installed; run: pip install absent-library"):
        library_version("absent-library")


def test_a_large_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * (1 << 20))
    first = file_sha256(path)
    assert file_sha256(path) == first == hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("r+b") as stream:
        stream.write(b"b")
    os.utime(path, ns=(0, 1))
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() != first
