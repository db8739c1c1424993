"""Package: reproducible, atomic, bound to its evidence; and a bundle that was tampered with does not open."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import package as package_module
from edgekit.bundle.destination import refuse_other_page
from edgekit.bundle.open import open_bundle, run_bundle
from edgekit.bundle.package import Lineage, Packaged, PackageInputs, package
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.evidence import read_report
from edgekit.pipeline import run
from edgekit.report.page import write_html
from edgekit.workspace import file_sha256, fingerprint
from tests.artifacts import make_artifact, make_report, make_target

LINEAGE = Lineage(teacher="org/teacher", license="Apache-2.0", data_license="CC0-1.0")


def pack_as(
    folder: Path,
    artifact: Path,
    report: Path,
    out: Path | None = None,
    *,
    strict: bool = False,
    lineage: Lineage = Lineage(),  # noqa: B008 - frozen
) -> Packaged:
    """An artifact and a report as "demo-board", for a target that is written into a folder."""
    inputs = PackageInputs(
        artifact=artifact,
        report=report,
        name="demo-board",
        recipe="demo",
        target=make_target(folder),
        lineage=lineage,
    )
    return package(inputs, out or folder / "out", strict=strict)


def pack(
    folder: Path, out: Path, verdict: str = "pass", *, strict: bool = False, p50: float = 1.5, **made: Any
) -> Packaged:
    folder.mkdir(parents=True)
    artifact = make_artifact(folder / "artifact", **made)
    report = make_report(folder / "report", artifact, verdict, p50=p50)
    return pack_as(folder, artifact, report, out, strict=strict, lineage=LINEAGE)


@pytest.fixture
def packed(tmp_path: Path) -> Packaged:
    return pack(tmp_path / "made", tmp_path / "my out")


def test_a_bundle_holds_what_an_app_needs_and_the_evidence_lies_beside_it(packed: Packaged) -> None:
    names = {path.name for path in packed.bundle.iterdir()}
    assert names == {"model.onnx", "tokenizer.json", "bundle.json", "README.md", "load.py", "check.py"}
    manifest = open_bundle(packed.bundle).manifest
    assert manifest.labels == ("light_on", "light_off", "play_music")
    assert manifest.threshold == 0.7
    assert manifest.runtime["threads"] == 1
    assert manifest.runtime["disabled_optimizers"] == ["ConstantFolding", "SkipLayerNormFusion"]
    assert manifest.licences == {"this model": "Apache-2.0", "data": "CC0-1.0"}
    report = json.loads(packed.report.read_text())
    assert report["artifact"]["sha256"] == manifest.artifact.sha256 == file_sha256(packed.bundle / "model.onnx")
    assert packed.html.read_text().startswith("<!doctype html>")
    card = (packed.bundle / "README.md").read_text()
    assert "from load import Bundle" in card
    assert "93.0 %" in card


def test_two_builds_give_the_same_archive_whatever_the_clock_measured(tmp_path: Path) -> None:
    first = pack(tmp_path / "a", tmp_path / "out-a", p50=1.5)
    second = pack(tmp_path / "b", tmp_path / "out-b", "not proven", p50=9.9)
    assert first.archive.read_bytes() == second.archive.read_bytes()
    with tarfile.open(first.archive) as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries} == {(0, 0, 0, "", 0o644)}


def test_an_unchanged_bundle_is_left_alone_and_a_changed_one_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = pack(tmp_path / "a", out).archive.stat()
    assert pack(tmp_path / "b", out, p50=3.0).archive.stat().st_mtime_ns == before.st_mtime_ns
    torn = (out / "demo-board.tar.gz").read_bytes()
    (out / "demo-board.tar.gz").write_bytes(torn[: len(torn) // 2])
    assert open_bundle(pack(tmp_path / "c", out).archive)
    after = pack(tmp_path / "d", out, scale=2.0)
    assert open_bundle(after.bundle).manifest.digest == open_bundle(after.archive).manifest.digest
    assert {path.name for path in out.iterdir()} == {
        "demo-board",
        "demo-board.tar.gz",
        "demo-board.report.json",
        "demo-board.report.html",
    }


def test_the_best_setting_lies_beside_an_archive_that_does_not_depend_on_it(tmp_path: Path) -> None:
    out, artifact = tmp_path / "out", make_artifact(tmp_path / "artifact")
    tried = {"threads": 2, "cpus": None, "p50": 1.0}
    found = {
        "artifact": json.loads((artifact / "export.json").read_text())["facts"]["sha256"],
        "tried": [tried],
        "best": tried,
    }
    found |= {"runtime": "onnxruntime", "version": "1", "device": "local", "cpu": "A CPU", "sequence": 64}
    plain = pack_as(tmp_path, artifact, make_report(tmp_path / "plain", artifact), out)
    before = plain.archive.read_bytes()
    report = make_report(tmp_path / "tuned", artifact)
    content = json.loads((report / "report.json").read_text()) | {"tuning": found}
    (report / "report.json").write_text(json.dumps(content))
    tuned = pack_as(tmp_path, artifact, report, out)
    assert plain.tuning is None
    assert tuned.tuning == out / "demo-board.tuning.json"
    assert json.loads(tuned.tuning.read_text()) == found
    assert tuned.archive.read_bytes() == before
    again = pack_as(tmp_path, artifact, make_report(tmp_path / "again", artifact), out)
    assert again.tuning == tuned.tuning, "it is of this artifact still"
    assert pack(tmp_path / "other", out, scale=2.0).tuning is None
    assert not tuned.tuning.exists(), "and not of another one"
    tuned.tuning.write_text("{}")
    with pytest.raises(EdgekitError, match=r"demo-board\.tuning\.json"):
        pack_as(tmp_path, artifact, report, out)


@pytest.mark.parametrize(("verdict", "strict"), [("fail", False), ("not proven", True)])
def test_a_failed_verdict_writes_evidence_and_no_archive(tmp_path: Path, verdict: str, strict: bool) -> None:
    with pytest.raises(CheckFailed, match="latency p95") as failed:
        pack(tmp_path / "a", tmp_path / "out", verdict, strict=strict)
    assert failed.value.exit_code == 3
    assert "measure on the board" in failed.value.message
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {
        "demo-board.report.json",
        "demo-board.report.html",
    }


def test_a_failed_verdict_leaves_an_older_bundle_and_says_so(tmp_path: Path) -> None:
    old = pack(tmp_path / "a", tmp_path / "out").archive.read_bytes()
    with pytest.raises(CheckFailed, match=r"the older demo-board.tar.gz was left"):
        pack(tmp_path / "b", tmp_path / "out", "fail", scale=3.0)
    assert (tmp_path / "out" / "demo-board.tar.gz").read_bytes() == old


def test_not_proven_packages_without_strict(tmp_path: Path) -> None:
    assert pack(tmp_path / "a", tmp_path / "out", "not proven").archive.is_file()


def test_external_weights_ship_too(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a", tmp_path / "out", external=True)
    assert (packed.bundle / "model.onnx.data").is_file()
    assert run_bundle(packed.archive, ["turn on the light"])[0]["label"] == "light_on"


def test_a_report_of_another_artifact_is_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    other = make_artifact(tmp_path / "other", scale=2.0)
    with pytest.raises(EdgekitError, match="another artifact"):
        pack_as(tmp_path, artifact, make_report(tmp_path / "report", other))


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "out" / "demo-board"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(EdgekitError, match="not a bundle"):
        pack(tmp_path / "a", tmp_path / "out")
    assert (mine / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "demo-board.tar.gz",
        "demo-board.report.json",
        "demo-board.report.html",
        "demo-board/app.py",
        "demo-board/README.md",
        ".demo-board.partial/thesis.txt",
        ".demo-board.old/thesis.txt",
    ],
)
@pytest.mark.parametrize("built", [False, True])
def test_nothing_of_the_users_is_replaced(tmp_path: Path, name: str, built: bool) -> None:
    """Before a first build and beside an earlier bundle, in it too: a user's file stops the packaging and stays."""
    out = tmp_path / "out"
    if built:
        pack(tmp_path / "a", out)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text('{"mine": 1}')
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(EdgekitError, match="move it away or choose another --out"):
        pack(tmp_path / "b", out, scale=2.0)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_archive_of_the_users_with_the_same_name_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "demo-board").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    with tarfile.open(out / "demo-board.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "notes.txt", "demo-board/notes.txt")
    with pytest.raises(EdgekitError, match=r"tar\.gz: is there and edgekit did not write it"):
        pack(tmp_path / "a", out)


def test_only_a_page_of_edgekits_makes_room_for_another(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    refuse_other_page(page)
    write_html(read_report(make_report(tmp_path / "report", make_artifact(tmp_path / "artifact"))), page)
    refuse_other_page(page)
    page.write_text("<h1>my own notes</h1>")
    with pytest.raises(EdgekitError, match=r"report\.html: is there and edgekit did not write it"):
        refuse_other_page(page)


@pytest.mark.parametrize(
    ("name", "content", "what", "remedy"),
    [
        ("model.onnx", b"\x08\x0a", "an ONNX file", "edgekit verify {} CHECKPOINT"),
        ("model.gguf", b"GGUF\x03", "a GGUF file", "edgekit inspect {};"),
        ("renamed.bin", b"GGUF\x03", "a GGUF file", "edgekit inspect {};"),
        ("model.safetensors", b"12345678{}", "a file of weights", "edgekit inspect {}"),
        ("demo.report.json", b"{}", "a JSON file", "edgekit inspect {}"),
        ("demo.report.html", b"<!doctype html>", "a page", "open it in a browser"),
        ("recipe.toml", b"", "a recipe or a target", "edgekit build --recipe {}"),
        ("my model/config.json", b"{}", "a checkpoint", "edgekit init --teacher {}"),
        ("artifact/export.json", b"{}", "the artifact of `edgekit export`", "edgekit package {} REPORT"),
        ("report/report.json", b"{}", "a report of `edgekit verify`", "edgekit package ARTIFACT {}"),
    ],
)
def test_what_is_no_bundle_is_named_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, what: str, remedy: str
) -> None:
    """A model file, a report, a checkpoint's or a step's folder: what it is, and the command that takes it."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    path = (tmp_path / name).parent if "/" in name else tmp_path / name
    with pytest.raises(EdgekitError) as refused:
        open_bundle(path)
    assert refused.value.message.startswith(f"{path}: {what}")
    assert remedy.format(shlex.quote(str(path))) in refused.value.message
    assert "tar.gz:" not in refused.value.message


def test_a_file_of_a_bundle_and_a_folder_of_bundles_name_the_bundle(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a", tmp_path / "out")
    for path in (packed.bundle / "model.onnx", tmp_path / "out"):
        with pytest.raises(EdgekitError, match=re.escape(f": {packed.bundle}") + "$"):
            open_bundle(path)
    # An archive is opened whatever its name is.
    renamed = packed.archive.rename(tmp_path / "bundle.onnx")
    assert open_bundle(renamed)


def test_what_python_leaves_in_a_bundle_is_no_users_file(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a", tmp_path / "out")
    (packed.bundle / "__pycache__").mkdir()
    (packed.bundle / "__pycache__" / "load.cpython-311.pyc").write_bytes(b"x")
    assert open_bundle(pack(tmp_path / "b", tmp_path / "out", scale=2.0).bundle)


def test_leftovers_of_a_killed_run_are_cleared_and_the_older_bundle_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    packed = pack(tmp_path / "a", out)
    packed.bundle.rename(out / ".demo-board.old")
    (out / ".demo-board.partial").mkdir()
    (out / ".demo-board.partial" / ".key").touch()
    (out / ".demo-board.partial" / "model.onnx").write_bytes(b"half")
    (out / ".demo-board.tar.gz.partial").write_bytes(b"half")
    with pytest.raises(CheckFailed):
        pack(tmp_path / "b", out, "fail")
    assert open_bundle(packed.bundle)
    assert not list(out.glob(".*"))


# What changes a folder, as CPython's audit events name it.
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}


def die_before_change(number: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do the work in a fork that is killed before it changes anything below the folder for the number-th time (from 0); False
    where it ended before that."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in CHANGES or (event == "open" and not arguments[2] & os.O_WRONLY):
                return
            # A folder is deleted by names relative to it.
            if str(folder) in str(arguments[0]) or "/" not in str(arguments[0]):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(count)
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(("older", "start"), [(False, 0), (True, 1)])
def test_killed_before_any_change_the_next_run_ends_in_the_same_bundle(tmp_path: Path, older: bool, start: int) -> None:
    """Every third change, of some sixty."""
    first, second = (make_artifact(tmp_path / name, scale=scale) for name, scale in (("a", 1.0), ("b", 2.0)))
    reports = [make_report(tmp_path / f"report {artifact.name}", artifact) for artifact in (first, second)]
    whole = pack_as(tmp_path, second, reports[1], tmp_path / "whole").archive.read_bytes()
    for number in itertools.count(start, 3):
        out = tmp_path / f"out {number}"
        if older:
            pack_as(tmp_path, first, reports[0], out)
        killed = die_before_change(number, out, partial(pack_as, tmp_path, second, reports[1], out))
        if older:
            assert (out / "demo-board").exists() or (out / ".demo-board.old").exists()
        assert pack_as(tmp_path, second, reports[1], out).archive.read_bytes() == whole, number
        assert open_bundle(out / "demo-board").manifest.digest == open_bundle(out / "demo-board.tar.gz").manifest.digest
        assert not list(out.glob(".*"))
        if not killed:
            break
    assert number > 20


def test_a_failed_write_keeps_the_older_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    packed = pack(tmp_path / "a", out)
    old = packed.archive.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "a file that was read")

    monkeypatch.setattr("edgekit.bundle.package.write_archive", full)
    with pytest.raises(EdgekitError, match="out: cannot be written: No space left on device; free space"):
        pack(tmp_path / "b", out, scale=2.0)
    assert packed.archive.read_bytes() == old
    assert open_bundle(packed.bundle).manifest.digest == open_bundle(packed.archive).manifest.digest
    assert not list(out.glob(".*.partial"))


def test_a_read_only_output_is_one_line(tmp_path: Path, plain_rights: None) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(EdgekitError, match="cannot be written"):
        pack(tmp_path / "a", tmp_path / "out")


def test_an_output_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(EdgekitError, match="cannot be written"):
        pack(tmp_path / "a", tmp_path / "out")


def test_two_at_once_end_in_one_whole_bundle(tmp_path: Path) -> None:
    out, failures = tmp_path / "out", []

    def work(name: str) -> None:
        try:
            pack(tmp_path / name, out)
        except EdgekitError as failed:
            failures.append(failed)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert open_bundle(out / "demo-board.tar.gz")
    assert not list(out.glob(".*"))


def test_a_packaging_that_runs_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever way the folder is spelled; the lock is no part of it."""
    out, inside, go = tmp_path / "out", threading.Event(), threading.Event()
    write = package_module.write_archive

    def slow(*arguments: Any) -> None:
        inside.set()
        assert go.wait(60)
        write(*arguments)

    monkeypatch.setattr(package_module, "write_archive", slow)
    monkeypatch.chdir(tmp_path)
    threads = [
        threading.Thread(target=pack, args=(tmp_path / "a", out)),
        threading.Thread(target=pack, args=(tmp_path / "b", Path("out")), kwargs={"scale": 2.0}),
    ]
    threads[0].start()
    assert inside.wait(60)
    assert {path.name for path in out.glob(".*")} == {".demo-board.partial"}
    threads[1].start()
    while "another build is packaging this" not in caplog.text and threads[1].is_alive():
        time.sleep(0.05)
    waited = threads[1].is_alive()
    go.set()
    for thread in threads:
        thread.join()
    assert waited
    assert open_bundle(out / "demo-board").manifest.digest == open_bundle(out / "demo-board.tar.gz").manifest.digest
    assert not list(out.glob(".*"))


def rewrite(bundle: Path, change: dict[str, Any], *, sign: bool) -> None:
    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text()) | change
    if sign:
        manifest["digest"] = fingerprint({key: value for key, value in manifest.items() if key != "digest"})
    path.write_text(json.dumps(manifest))


def test_an_edited_manifest_is_refused(packed: Packaged) -> None:
    rewrite(packed.bundle, {"threshold": 0.0}, sign=False)
    with pytest.raises(EdgekitError, match="changed after it was written"):
        open_bundle(packed.bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:/secret", "link"])
def test_a_path_outside_the_bundle_is_refused(packed: Packaged, name: str) -> None:
    secret = packed.bundle.parent / "secret"
    secret.write_text("secret")
    (packed.bundle / "link").symlink_to(secret)
    rewrite(packed.bundle, {"model": name, "files": {name: {"bytes": 6, "sha256": file_sha256(secret)}}}, sign=True)
    with pytest.raises(EdgekitError, match="names a path outside the bundle"):
        open_bundle(packed.bundle)


def test_a_changed_or_missing_file_is_refused(packed: Packaged) -> None:
    tokenizer = packed.bundle / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(EdgekitError, match=r"tokenizer.json: its sha256"):
        open_bundle(packed.bundle)
    tokenizer.unlink()
    with pytest.raises(EdgekitError, match=r"tokenizer.json: missing"):
        open_bundle(packed.bundle)


def test_a_manifest_of_a_later_edgekit_or_none_is_refused(packed: Packaged, tmp_path: Path) -> None:
    rewrite(packed.bundle, {"format_version": 99}, sign=True)
    with pytest.raises(EdgekitError, match="build it again"):
        open_bundle(packed.bundle)
    (packed.bundle / "bundle.json").write_text("[]")
    with pytest.raises(EdgekitError, match="not a manifest"):
        open_bundle(packed.bundle)
    with pytest.raises(EdgekitError, match="not a bundle"):
        open_bundle(tmp_path)
    with pytest.raises(EdgekitError, match="no such bundle"):
        open_bundle(tmp_path / "nothing.tar.gz")


def test_a_torn_archive_is_refused(packed: Packaged) -> None:
    whole = packed.archive.read_bytes()
    for broken in (whole[: len(whole) // 2], b"not gzip", gzip.compress(b"not tar" * 200)):
        packed.archive.write_bytes(broken)
        with pytest.raises(EdgekitError, match=r"not a whole .tar.gz"):
            open_bundle(packed.archive)


@pytest.mark.parametrize("kind", ["outside", "link", "empty"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        if kind == "outside":
            tar.addfile(tarfile.TarInfo("../evil"), io.BytesIO())
        elif kind == "link":
            entry = tarfile.TarInfo("demo/model.onnx")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(entry)
    with pytest.raises(EdgekitError, match=r"link or outside|no bundle\.json"):
        open_bundle(path)
    assert not (tmp_path.parent / "evil").exists()


def test_an_archive_opens_and_its_copy_goes_with_it(packed: Packaged) -> None:
    shutil.rmtree(packed.bundle)
    bundle = open_bundle(packed.archive)
    folder = bundle.folder
    assert (folder / "model.onnx").is_file()
    del bundle
    assert not folder.exists()


def test_run_answers_with_labels_or_embeddings(packed: Packaged, tmp_path: Path) -> None:
    on, nothing = run_bundle(packed.bundle, ["turn on the light", ""])
    assert on["label"] == "light_on"
    assert on["score"] == max(on["scores"].values())
    assert nothing["label"] == "none"
    embeds = pack(tmp_path / "e", tmp_path / "out-e", output="embedding")
    np.testing.assert_allclose(run_bundle(embeds.bundle, ["play music"]), [[-1, -1, 8]])
    assert run(packed.archive, ["turn on the light", ""]) == [on, nothing]


def test_run_puts_a_named_prompt_before_a_text(tmp_path: Path) -> None:
    settings = {"prompts": {"music": "play music "}, "normalize": True}
    embeds = pack(tmp_path / "e", tmp_path / "out", output="embedding", settings=settings)
    (wanted,) = run_bundle(embeds.bundle, ["play music now"])
    assert run_bundle(embeds.bundle, ["now"], prompt="music") == [wanted]
    assert run_bundle(embeds.bundle, ["now"]) != [wanted]
    with pytest.raises(EdgekitError, match="no prompt 'musik': it has music"):
        run_bundle(embeds.bundle, ["now"], prompt="musik")


def test_run_never_executes_a_bundles_own_code(packed: Packaged, caplog: pytest.LogCaptureFixture) -> None:
    load = packed.bundle / "load.py"
    load.write_text("raise SystemExit('foreign code ran')")
    files = json.loads((packed.bundle / "bundle.json").read_text())["files"]
    files["load.py"] = {"bytes": load.stat().st_size, "sha256": file_sha256(load)}
    rewrite(packed.bundle, {"files": files}, sign=True)
    assert run_bundle(packed.bundle, ["play some music"])[0]["label"] == "play_music"
    assert "load.py is not that of edgekit" in caplog.text
