"""The devices: one conformance test for all kinds, this machine, and what is kept of what remote devices said."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.devices import DEVICES, Device, LocalDevice, ask_facts, device_table, known_facts, open_device
from edgekit.devices.native import Platform
from edgekit.errors import DeviceFailed, EdgekitError
from tests.devices.board import Board, drop_in
from tests.devices.chromium import need_chromium, write_modules
from tests.devices.native import HERE, lay_probe
from tests.devices.phone import Phone
from tests.devices.sshd import HOST, Reachable
from tests.devices.test_ssh import NASTY, words

# A kind -> a table that opens a device of it where tests run.
TABLES: Mapping[str, Mapping[str, object]] = {
    "local": {"kind": "local"},
    "ssh": {"kind": "ssh", "host": HOST},
    "adb": {"kind": "adb", "serial": "1"},
    "browser": {"kind": "browser"},
}
PYTHON = {
    "double": "import sys, pathlib; o = pathlib.Path('out'); o.mkdir(); (o / 'y').write_text(open(sys.argv[1]).read() * 2)",
    "show": "import os, sys; print(sys.argv[1], os.environ['EDGEKIT_X']); sys.stderr.write('\\xff'); sys.exit(7)",
    "sleep": "import time; time.sleep(60)",
}


def command(device: Device, name: str, tmp_path: Path) -> list[str]:
    """One of the commands of PYTHON, or of the modules of a page where the device is a browser."""
    if device.PROBE == "web":
        return [f"{device.push(write_modules(tmp_path / 'modules'))}/{name}.mjs"]
    return [sys.executable, "-c", PYTHON[name]]


@pytest.fixture(params=DEVICES)
def open_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Device]:
    """Opens a device of each kind."""
    if request.param == "ssh":
        stand_in: Reachable = request.getfixturevalue("stand_in")
        monkeypatch.setenv("PATH", f"{stand_in.commands}{os.pathsep}{os.environ['PATH']}")
        return lambda: open_device(stand_in.table(), "my.toml: device")
    if request.param == "browser":
        need_chromium()
    if request.param == "adb":
        request.getfixturevalue("own_adb")
        lay_probe(HERE, Platform(arch=HERE.arch, system="android"))
        phone: Phone = request.getfixturevalue("phone")
        return lambda: open_device(phone.table(), "my.toml: device")
    return lambda: open_device(TABLES[request.param], "my.toml: device")


def test_a_device_conforms(open_kind: Callable[[], Device], tmp_path: Path) -> None:
    """It pushes a folder, runs a list of arguments there and fetches what that made; and is gone without a trace."""
    pushed = tmp_path / "a model; $HOME"
    pushed.mkdir()
    (pushed / "weights").write_text("7", encoding="utf-8")
    device = open_kind()
    assert device.identity == open_kind().identity
    path = device.push(pushed)
    ended = device.run([*command(device, "double", tmp_path), os.path.join(path, "weights")], timeout_s=60)
    assert ended.returncode == 0, ended.stderr
    device.fetch("out", tmp_path / "fetched")
    assert (tmp_path / "fetched/y").read_text(encoding="utf-8") == "77"
    assert sorted(path.name for path in pushed.iterdir()) == ["weights"]
    facts = device.facts()
    assert facts == device.facts()
    assert {"arch", "cpu", "cores", "features", "memory_mb", "system"} <= facts.keys()
    ended = device.run([*command(device, "show", tmp_path), "$HOME; a  b"], timeout_s=60, env={"EDGEKIT_X": "1"})
    assert (ended.returncode, ended.stdout.strip()) == (7, "$HOME; a  b 1")
    assert ended.stderr
    work = device.work
    device.close()
    assert not Path(work).exists()


def test_file_names_arrive_as_they_are(open_kind: Callable[[], Device], tmp_path: Path) -> None:
    """No shell reads them, and no device takes one for an option."""
    folder, device = tmp_path / "-a $(folder)", open_kind()
    # A page's server takes no backslash, which some systems read as a slash.
    refused = "/~\\" if device.PROBE == "web" else "/~"
    for name in NASTY:
        if not set(name) & set(refused):
            path = folder / name / f"{name}.txt"
            path.parent.mkdir(parents=True)
            path.write_text(name)
    pushed, back = device.push(folder), ""
    if device.PROBE == "web":
        # What comes back of a page is what it wrote.
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")]
        ended = device.run([*command(device, "copy", tmp_path), pushed, *names], timeout_s=60)
        assert ended.returncode == 0, ended.stderr
        back = "back"
    device.fetch(back or pushed, tmp_path / "back")
    device.close()
    assert {p.relative_to(tmp_path / "back"): p.read_text() for p in (tmp_path / "back").rglob("*.txt")} == {
        p.relative_to(folder): p.read_text() for p in folder.rglob("*.txt")
    }


def test_a_device_fails_in_one_line(open_kind: Callable[[], Device], tmp_path: Path) -> None:
    device = open_kind()
    started = time.monotonic()
    with pytest.raises(DeviceFailed, match=r"no end after 0.5 s"):
        device.run(command(device, "sleep", tmp_path), timeout_s=0.5)
    assert time.monotonic() - started < (120 if device.PROBE == "web" else 30), "a browser starts before that"
    with pytest.raises(DeviceFailed, match=r"no-such-program: cannot be started"):
        device.run(["no-such-program"], timeout_s=5)
    with pytest.raises(DeviceFailed, match=r"no such folder"):
        device.push(tmp_path / "none")
    with pytest.raises(DeviceFailed, match=r"no such folder"):
        device.fetch("none", tmp_path / "out")
    device.close()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["ssh://", "ssh://pi@", "adb:", "browser://", "browser:", ""]), words | st.sampled_from(NASTY))
def test_any_text_is_an_address_or_refused(kind: str, rest: str) -> None:
    """In a message; nothing is started for it."""
    with (
        contextlib.suppress(EdgekitError),
        contextlib.closing(open_device(device_table(kind + rest), "device")) as device,
    ):
        assert device.identity


@pytest.mark.parametrize("kind", DEVICES)
def test_a_kind_refuses_unknown_options(kind: str) -> None:
    with pytest.raises(EdgekitError, match=r"my.toml: device.hots: unknown key"):
        open_device({**TABLES[kind], "hots": 1}, "my.toml: device")


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(EdgekitError, match=r"device.kind: unknown value 'locl' .did you mean local"):
        open_device({"kind": "locl"}, "my.toml: device")


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> type[Board]:
    return drop_in(monkeypatch)


def open_board(address: str) -> Device:
    return open_device({"kind": "board", "address": address}, "my.toml: device")


def test_a_kind_that_is_dropped_in(board: type[Board]) -> None:
    """One class and one line; what it said is kept under its identity, and asked for anew where that is wanted."""
    first, other = open_board("pi"), open_board("pj")
    assert (known_facts(first), known_facts(other), board.calls) == (None, None, {})
    board.says = {"cpu": "a board"}
    assert ask_facts(first)["cpu"] == "a board"
    board.says = {"cpu": "another board"}
    assert ask_facts(other) == known_facts(other)
    kept = known_facts(first)
    assert kept is not None
    assert kept["cpu"] == "a board", "as it said when it was asked"
    assert board.calls == {"facts": 2}
    assert ask_facts(first) == known_facts(first) != kept


@pytest.mark.parametrize(
    "content", ["", "[]", '{"device": "board pi"}', '{"device": "board pj", "facts": {}}'], ids=repr
)
def test_what_is_kept_and_damaged_is_no_answer(board: type[Board], state: Path, content: str) -> None:
    device = open_board("pi")
    ask_facts(device)
    (path,) = (state / "devices").glob("*.json")
    path.write_text(content, encoding="utf-8")
    assert known_facts(device) is None
    assert ask_facts(device) == known_facts(device)


def test_this_machine_is_always_asked(state: Path) -> None:
    with LocalDevice({}) as device:
        assert ask_facts(device)["cores"] == device.facts()["cores"]
        assert known_facts(device) is None
    assert not (state / "devices").exists()
