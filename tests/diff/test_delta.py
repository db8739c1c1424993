"""Deltas: what changes gives back every byte, by zstd's own program too; what was cut, changed or is hostile gives nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import FileEntry
from edgekit.diff import parts
from edgekit.diff.delta import Patched, apply_delta, write_delta
from edgekit.diff.parts import MAGIC, Delta, Part, open_delta
from edgekit.diff.sides import open_side
from edgekit.errors import EdgekitError
from edgekit.release.write import ReleaseInputs, gather, release
from edgekit.schema import dump_json
from edgekit.typed_json import to_table
from edgekit.workspace import file_sha256, list_names
from tests.cli.test_json import read
from tests.conftest import Answer, child_environment
from tests.diff.bundles import rewrite
from tests.llama_programs import made_once

Command = Callable[..., Answer]
WHEEL = "zstandard==0.25.0"


def _fetch(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot fetch {WHEEL}: {done.stderr.strip()[-200:]}")


@pytest.fixture(scope="module", autouse=True)
def zstandard() -> Iterator[None]:
    """The library of the extra: what is installed, else a copy in the user's cache."""
    if importlib.util.find_spec("zstandard") is not None:
        yield
        return
    folder, before = str(made_once(WHEEL, _fetch)), os.environ.get("PYTHONPATH", "")
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = f"{before}{os.pathsep * bool(before)}{folder}"
    yield
    sys.path.remove(folder)
    os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def delta(made: Path) -> Path:
    """What leads from a to b."""
    write_delta(open_side(made / "dist/a"), open_side(made / "dist/b"), made / "ab.delta")
    return made / "ab.delta"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_names(folder)}


def test_b_comes_of_a_byte_for_byte(a: Path, b: Path, delta: Path, tmp_path: Path) -> None:
    assert delta.stat().st_size < b.with_name("b.tar.gz").stat().st_size
    made = apply_delta(open_side(a), delta, tmp_path / "new" / "b")
    assert contents(tmp_path / "new" / "b") == contents(b)
    assert (made.name, made.files) == ("b 1.1.0", len(contents(b)))
    assert made.same == sum(content in contents(a).values() for content in contents(b).values())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b"]
    apply_delta(open_side(a.with_name("a.tar.gz")), delta, tmp_path / "c")
    assert contents(tmp_path / "c") == contents(b)
    again = write_delta(open_side(a), open_side(b.with_name("b.tar.gz")), tmp_path / "again.delta")
    assert again.path is not None
    assert Path(again.path).read_bytes() == delta.read_bytes()


def test_parts_are_what_they_are_said_to_be(a: Path, b: Path, delta: Path, tmp_path: Path) -> None:
    """Read as the module's own docstring says, and patches by zstd's program where it is installed."""
    content = delta.read_bytes()
    assert content.startswith(MAGIC)
    length = int.from_bytes(content[16:24], "little")
    header = content[56 : 56 + length]
    assert content[24:56] == hashlib.sha256(header).digest()
    place, program = 56 + length, shutil.which("zstd")
    for file in json.loads(header)["files"]:
        if file["way"] == "same":
            assert (a / file["source"]).read_bytes() == (b / file["name"]).read_bytes()
            continue
        frame = content[place : place + file["part"]["bytes"]]
        place += len(frame)
        (tmp_path / "part.zst").write_bytes(frame)
        if program and file["way"] != "difference":
            patch = [f"--patch-from={a / file['source']}"] if file["way"] == "patch" else []
            command = [program, "-q", "-d", "-f", "--long=31", *patch, "part.zst", "-o", "part"]
            subprocess.run(command, cwd=tmp_path, check=True)
            assert (tmp_path / "part").read_bytes() == (b / file["name"]).read_bytes()
        elif program:
            subprocess.run([program, "-q", "-d", "-f", "part.zst", "-o", "part"], cwd=tmp_path, check=True)
            old, moved = (
                np.frombuffer(path.read_bytes(), np.uint8) for path in (a / file["source"], tmp_path / "part")
            )
            assert (old + moved).tobytes() == (b / file["name"]).read_bytes()
    assert place == len(content)


NAMES = ("model.onnx", "tokenizer.json", "load.py", "README.md", "deep/new file.bin", "\u00e9.txt")
EDIT = st.tuples(
    st.sampled_from(("write", "insert", "cut", "step", "copy", "remove")),
    st.sampled_from(NAMES),
    st.floats(0, 1),
    st.binary(max_size=3000),
)


def edit(folder: Path, kind: str, name: str, where: float, more: bytes) -> None:
    path = folder / name
    old = path.read_bytes() if path.is_file() else b""
    place = int(where * len(old))
    path.parent.mkdir(exist_ok=True)
    if kind == "write":
        path.write_bytes(more)
    elif kind == "insert":
        path.write_bytes(old[:place] + more + old[place:])
    elif kind == "cut":
        path.write_bytes(old[:place] + old[place + len(more) :])
    elif kind == "step":
        path.write_bytes(old[:place] + bytes((byte + 1) % 256 for byte in old[place : place + 50]) + old[place + 50 :])
    elif kind == "copy":
        path.write_bytes((folder / "golden.json").read_bytes())
    elif name not in {"model.onnx", "tokenizer.json"}:
        path.unlink(missing_ok=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(EDIT, min_size=1, max_size=6),
    piece=st.sampled_from((7, 1000, 1 << 20)),
    held=st.sampled_from((0, 1 << 28)),
)
def test_whatever_changed_comes_back(
    a: Path, tmp_path_factory: pytest.TempPathFactory, edits: list[Any], piece: int, held: int
) -> None:
    folder = tmp_path_factory.mktemp("edits")
    shutil.copytree(a, folder / "b")
    for one in edits:
        edit(folder / "b", *one)
    rewrite(folder / "b", folder / "b", lambda it: it)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(parts, "_PIECE", piece)
        changed.setattr(parts, "_HELD", held)
        written = write_delta(open_side(a), open_side(folder / "b"), folder / "d")
        if written.path is None:
            assert written.bytes >= written.archive_bytes
            assert not (folder / "d").exists()
            return
        apply_delta(open_side(a), folder / "d", folder / "c")
    assert contents(folder / "c") == contents(folder / "b")
    shutil.rmtree(folder)


def test_a_model_that_moved_by_steps_is_told_by_differences(a: Path, tmp_path: Path) -> None:
    """Codes of 200 kB of which one in twenty moved by one: fewer bytes than as many patches."""
    codes = np.random.default_rng(0).integers(0, 256, 200_000).astype(np.uint8)
    for name, moved in (("x", 0), ("y", 1)):
        shutil.copytree(a, tmp_path / name)
        held = codes.copy()
        held[::20] += moved
        (tmp_path / name / "model.onnx").write_bytes(held.tobytes())
        rewrite(tmp_path / name, tmp_path / name, lambda it: it)
    written = write_delta(open_side(tmp_path / "x"), open_side(tmp_path / "y"), tmp_path / "d")
    assert written.ways["difference"] >= 1
    assert written.bytes < 20_000
    assert written.archive_bytes > 200_000


def test_a_release_keeps_its_signature_and_evidence(a: Path, b: Path, tmp_path: Path) -> None:
    for path in (a, b):
        release(
            ReleaseInputs(bundle=path, evidence=gather(path, []), cache=tmp_path / "none"),
            tmp_path / f"{path.name}.release",
        )
    sides = open_side(tmp_path / "a.release"), open_side(tmp_path / "b.release")
    assert write_delta(*sides, tmp_path / "d").path is not None
    apply_delta(sides[0], tmp_path / "d", tmp_path / "made")
    assert contents(tmp_path / "made") == contents(tmp_path / "b.release")
    with pytest.raises(EdgekitError, match=r"a bundle, and .*d is for a release"):
        apply_delta(open_side(a), tmp_path / "d", tmp_path / "other")
    with pytest.raises(EdgekitError, match="one is a bundle and the other a release"):
        write_delta(open_side(a), sides[1], tmp_path / "e")


def test_every_cut_and_every_change_is_refused(a: Path, delta: Path, tmp_path: Path) -> None:
    content, place = delta.read_bytes(), tmp_path / "d"
    for size in range(len(content)):
        place.write_bytes(content[:size])
        with pytest.raises(EdgekitError, match=r"cut off or changed|not a delta"):
            open_delta(place)
    drawn = random.Random(0)
    for _ in range(500):
        bit = drawn.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        place.write_bytes(changed)
        with pytest.raises(EdgekitError, match=r"cut off or changed|not a delta"):
            open_delta(place)
    place.write_bytes(content + b"\0")
    with pytest.raises(EdgekitError, match="cut off or changed"):
        apply_delta(open_side(a), place, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_another_a_is_refused(a: Path, b: Path, delta: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"not what .*ab\.delta was made for \(a 1\.0\.0\): its .* is another file"):
        apply_delta(open_side(b), delta, tmp_path / "out")
    with pytest.raises(EdgekitError, match="a model file; a delta is of a bundle"):
        apply_delta(open_side(a / "model.onnx"), delta, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def forge(path: Path, sources: dict[str, FileEntry], files: list[tuple[Part, bytes]]) -> Path:
    """A delta that is whole in itself, and says what edgekit would not."""
    header = dump_json(
        to_table(Delta(kind="bundle", a="a", b="b", sources=sources, files=tuple(part for part, _ in files)))
    ).encode()
    start = MAGIC + len(header).to_bytes(8, "little") + hashlib.sha256(header).digest() + header
    path.write_bytes(start + b"".join(frame for _, frame in files))
    return path


def entry(content: bytes) -> FileEntry:
    return FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "deep/../../outside", "c:\\outside", ""])
def test_names_that_lead_out_are_refused(a: Path, tmp_path: Path, name: str) -> None:
    import zstandard as zstd

    (tmp_path / "in").mkdir()
    frame = zstd.compress(b"evil")
    whole = Part(name=name, way="whole", file=entry(b"evil"), part=entry(frame))
    with pytest.raises(EdgekitError, match="names a path outside the bundle"):
        apply_delta(open_side(a), forge(tmp_path / "in/d", {}, [(whole, frame)]), tmp_path / "in" / "out")
    copied = Part(name="x", way="same", file=entry(b"evil"), source=name)
    with pytest.raises(EdgekitError, match="names a path outside the bundle"):
        apply_delta(
            open_side(a), forge(tmp_path / "in/e", {name: entry(b"evil")}, [(copied, b"")]), tmp_path / "in" / "out"
        )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "e", "in"]


def test_what_a_delta_adds_or_says_falsely_is_refused(a: Path, b: Path, delta: Path, tmp_path: Path) -> None:
    import zstandard as zstd

    plain = [(Part(name=name, way="whole", file=entry(content), part=entry(zstd.compress(content))), zstd.compress(content))
             for name, content in sorted(contents(b).items())]  # fmt: skip
    apply_delta(open_side(a), forge(tmp_path / "good", {}, plain), tmp_path / "b")
    assert contents(tmp_path / "b") == contents(b)
    frame = zstd.compress(b"evil")
    added = (Part(name="sitecustomize.py", way="whole", file=entry(b"evil"), part=entry(frame)), frame)
    bomb = zstd.compress(bytes(50_000_000))
    faults = {
        "does not give a whole bundle: sitecustomize.py: bundle.json does not list it": [*plain, added],
        "does not give a whole bundle: ": plain[1:],
        "its parts do not fit each other": [*plain, plain[0]],
        "gives another evil than the one": [
            *plain, (Part(name="evil", way="whole", file=entry(b"other"), part=entry(frame)), frame)],
        "gives another bomb than the one": [
            *plain, (Part(name="bomb", way="whole", file=entry(b"small"), part=entry(bomb)), bomb)],
        "gives another frame than the one": [
            *plain, (Part(name="frame", way="whole", file=entry(b"no"), part=entry(b"no frame at all")), b"no frame at all")],
    }  # fmt: skip
    for number, (message, files) in enumerate(faults.items()):
        with pytest.raises(EdgekitError, match=message):
            apply_delta(open_side(a), forge(tmp_path / f"d{number}", {}, files), tmp_path / "out")
    source = {"load.py": entry((a / "load.py").read_bytes())}
    moved = replace(plain[0][0], way="difference", source="load.py")
    with pytest.raises(EdgekitError, match="gives another"):
        apply_delta(open_side(a), forge(tmp_path / "e", source, [(moved, plain[0][1]), *plain[1:]]), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]


def test_a_killed_run_leaves_nothing_that_is_taken_for_b(a: Path, b: Path, delta: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from edgekit.diff import delta; from edgekit.diff.sides import open_side\n"
        "delta._check = lambda *given: os._exit(9)\n"
        "a, d, out = map(Path, sys.argv[1:]); delta.apply_delta(open_side(a), d, out)"
    )
    command = [sys.executable, "-c", code, str(a), str(delta), str(tmp_path / "b")]
    assert subprocess.run(command, env=child_environment(), check=False).returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".b.partial"]
    apply_delta(open_side(a), delta, tmp_path / "b")
    assert contents(tmp_path / "b") == contents(b)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    (tmp_path / ".c.partial").mkdir()
    (tmp_path / ".c.partial" / "mine").write_text("mine")
    with pytest.raises(EdgekitError, match=r"\.c\.partial: is there and edgekit did not write it"):
        apply_delta(open_side(a), delta, tmp_path / "c")
    with pytest.raises(EdgekitError, match="is there already"):
        apply_delta(open_side(a), delta, tmp_path / "b")


def test_the_commands(command: Command, a: Path, b: Path, tmp_path: Path) -> None:
    told = command("diff", a, b, "--no-ask", "--delta", "up.delta")
    assert told.code == 0
    assert "up.delta: " in told.out
    assert "edgekit patch makes B of it and A" in told.out
    assert command("diff", a, b, "--no-ask", "--delta", "up.delta").err.endswith(
        "remove it or choose another --delta\n"
    )
    made = command("patch", a, "up.delta", "--out", "new")
    assert (made.code, made.out.startswith("new: b 1.1.0, ")) == (0, True)
    assert contents(tmp_path / "new") == contents(b)
    found = read(command("patch", a, "up.delta", "-o", "again", "--json"))
    assert found.keys() >= set(Patched.__annotations__)
    found = read(command("diff", a, b, "--no-ask", "--delta", "more.delta", "--json"))
    assert (found["delta"]["path"], found["delta"]["bytes"]) == ("more.delta", (tmp_path / "more.delta").stat().st_size)
    (tmp_path / "junk").write_text("no delta")
    refused = command("patch", a, "junk", "-o", "other")
    assert (refused.code, "junk: not a delta that edgekit diff --delta wrote" in refused.err) == (1, True)
    assert file_sha256(tmp_path / "up.delta") == file_sha256(tmp_path / "more.delta")


def test_what_would_not_be_smaller_is_not_written(a: Path, tmp_path: Path) -> None:
    shutil.copytree(a, tmp_path / "b")
    (tmp_path / "b" / "model.onnx").write_bytes(np.random.default_rng(0).bytes(300_000))
    for name in ("README.md", "load.py", "check.py", "golden.json"):
        (tmp_path / "b" / name).unlink()
    (tmp_path / "b" / "tokenizer.json").write_bytes(np.random.default_rng(1).bytes(30_000))
    rewrite(tmp_path / "b", tmp_path / "b", lambda it: it)
    written = write_delta(open_side(a), open_side(tmp_path / "b"), tmp_path / "d")
    assert (written.path, (tmp_path / "d").exists()) == (None, written.bytes < written.archive_bytes)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
