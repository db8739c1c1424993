"""Devices behind SSH, by a real sshd on loopback: what is sent, what a fault says, and that nothing goes on running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.devices import Device, SshDevice, ssh_table
from edgekit.errors import DeviceFailed, EdgekitError
from tests.devices.sshd import Reachable, native

SHOW = "import sys, os; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"


@pytest.fixture(autouse=True)
def own_ssh(stand_in: Reachable, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", f"{stand_in.commands}{os.pathsep}{os.environ['PATH']}")
    yield
    shutil.rmtree(stand_in.home / ".cache", ignore_errors=True)  # type: ignore[operator]


def open_ssh(stand_in: Reachable, **more: object) -> SshDevice:
    return SshDevice(stand_in.table(**more))


def big_folder(path: Path, *, megabytes: int = 24) -> Path:
    path.mkdir()
    (path / "large.bin").write_bytes(os.urandom(1 << 20) * megabytes)
    (path / "small").write_text("7")
    return path


def running(mark: str) -> list[int]:
    """The processes that have a word in their command line, but for ssh's own clients."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words:
            found.append(int(process))
    return found


def wait_until(true: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def cut(device: SshDevice) -> None:
    """As when the network goes: the process of ssh is gone at once."""
    device._link.process.send_signal(signal.SIGKILL)


def test_a_second_run_sends_nothing(stand_in: Reachable, tmp_path: Path) -> None:
    folder = big_folder(tmp_path / "a model", megabytes=2)
    with open_ssh(stand_in) as device:
        first = device.push(folder)
        assert device.sent_bytes == (2 << 20) + 1
    with open_ssh(stand_in) as device:
        assert device.push(folder) == first
        assert device.sent_bytes == 0
        (folder / "small").write_text("8")
        assert device.push(folder) != first
        assert device.clean() > 4 << 20
    assert stand_in.own_files() == []


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
NASTY = ["-rf", "--", "$(touch x)", "`id`", "; rm -rf ~", "a'b\"c\\", "new\nline", "*", "~", "zwölf ☃", "%h", " "]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(words | st.sampled_from(NASTY), max_size=5), words | st.sampled_from(NASTY))
def test_arguments_and_variables_arrive_as_they_are(connected: SshDevice, arguments: list[str], value: str) -> None:
    """No shell sees them."""
    code = f"{SHOW}; sys.stderr.buffer.write(os.fsencode(os.environ['EDGEKIT_X']))"
    ended = connected.run([sys.executable, "-c", code, *arguments], timeout_s=60, env={"EDGEKIT_X": value})
    assert ended.stdout.split("\0") == (arguments or [""])
    assert ended.stderr == value


def is_name(text: str) -> bool:
    """Whether a file may be called so on Linux (path_resolution(7)), with room for an ending."""
    return text not in {".", ".."} and "/" not in text and len(os.fsencode(text)) < 200


names = words.filter(is_name) | st.sampled_from([*filter(is_name, NASTY)])
LIST = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(sorted(map(os.fsencode, os.listdir(sys.argv[1])))))"


def check_names(device: Device, folder: Path, files: Sequence[str]) -> None:
    """Push files of these names in a folder of the first, look at them there, and fetch them into one of the last."""
    shutil.rmtree(folder, ignore_errors=True)
    (own := folder / "own" / files[0]).mkdir(parents=True)
    for name in files:
        (own / name).write_bytes(name.encode())
    pushed = device.push(own)
    ended = device.run([sys.executable, "-c", LIST, pushed], timeout_s=60)
    assert ended.stdout.encode().split(b"\0") == sorted(name.encode() for name in files), ended.stderr
    back = folder / "back" / files[-1]
    device.fetch(pushed, back)
    assert {path.name: path.read_bytes().decode() for path in back.iterdir()} == {name: name for name in files}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_files_arrive_with_their_names(connected: SshDevice, tmp_path: Path, files: list[str]) -> None:
    check_names(connected, tmp_path / "made", files)


@pytest.fixture
def connected(stand_in: Reachable) -> Iterator[SshDevice]:
    with open_ssh(stand_in) as device:
        yield device


@pytest.mark.parametrize(
    "url",
    ["ssh://pi:secret@pi", "ssh://", "pi@pi", "ssh://pi/folder", "ssh://pi:port", "http://pi", "ssh://pi?x=1"],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(EdgekitError) as refused:
        ssh_table(url)
    assert "secret" not in refused.value.message


def test_addresses() -> None:
    assert ssh_table("ssh://pi@raspberrypi.local") == {"kind": "ssh", "host": "raspberrypi.local", "user": "pi"}
    assert ssh_table("ssh://My-Pi:2222") == {"kind": "ssh", "host": "My-Pi", "port": 2222}
    assert ssh_table("ssh://pi@[fe80::1%25eth0]:22")["host"] == "fe80::1%eth0"
    for table in ({"host": "-oProxyCommand=id"}, {"host": "pi", "user": "-l"}, {"host": "a b"}, {"host": "$(id)"}):
        with pytest.raises(EdgekitError, match="not a name"):
            SshDevice({"kind": "ssh", **table})


# How a device refuses, by what is done to the keys, and what must be in its message.
def change_host_key(folder: Path) -> None:
    other = (folder / "key.pub").read_text().split()[1]
    text = (folder / "known_hosts").read_text().split()
    (folder / "known_hosts").write_text(" ".join([*text[:2], other]) + "\n")


def forget_host(folder: Path) -> None:
    (folder / "known_hosts").write_text("")


def take_another_key(folder: Path) -> None:
    shutil.copyfile(folder / "host_key", folder / "key")


def name_nobody(folder: Path) -> None:
    config = folder / "ssh.conf"
    config.write_text(config.read_text().replace("127.0.0.1", "no-such-host.invalid"))


def name_a_closed_port(folder: Path) -> None:
    config = folder / "ssh.conf"
    config.write_text(config.read_text().replace("Port ", "Port 1\n#"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (change_host_key, r"host key is not the one that .* ssh-keygen -R stand-in"),
        (forget_host, r"host key is not known .* run: ssh stand-in"),
        (take_another_key, r"refuses this user or key.*ssh-copy-id stand-in"),
        (name_nobody, r"not known on the network"),
        (name_a_closed_port, r"nothing answers there"),
    ],
)
def test_a_device_that_cannot_be_reached(
    stand_in: Reachable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(stand_in.folder, tmp_path / "ssh")
    for name in ("ssh.conf", "bin/ssh"):
        (folder / name).write_text((folder / name).read_text().replace(str(stand_in.folder), str(folder)))
    break_it(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DeviceFailed, match=f"(?s)ssh://stand-in: .*{message}") as failed:
        open_ssh(stand_in).facts()
    assert (failed.value.exit_code, failed.value.message.count("\n")) == (4, 0)


# A program in the place of the device's Python, and what must be said of it.
PYTHONS = {
    "missing": (None, "no such Python on it"),
    "32 bits": ("import ctypes, struct; struct.calcsize = lambda _: 4", r"a system of 32 bits .* 64-bit"),
    "armv7l": ("import platform; platform.machine = lambda: 'armv7l'", r"32 bits \(armv7l\), for which there is no"),
    "old": ("import platform; platform.python_version = lambda: '3.9.2'", r"Python 3.9.2, too old: 3.11"),
    "broken": ("raise SystemExit('no memory')", r"Python did not start there \(no memory\)"),
}


@pytest.mark.parametrize("kind", PYTHONS)
def test_a_python_that_does_not_do(stand_in: Reachable, tmp_path: Path, kind: str) -> None:
    before, message = PYTHONS[kind]
    python = tmp_path / "a python's place" / "python"
    if before is not None:
        python.parent.mkdir()
        code = f"import sys; {before}; exec(sys.argv[1])"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$2"\n')
        python.chmod(0o755)
    with pytest.raises(DeviceFailed, match=message) as failed:
        open_ssh(stand_in, python=str(python)).facts()
    assert "\n" not in failed.value.message


def test_a_link_that_is_cut_while_pushing_goes_on_where_it_was(stand_in: Reachable, tmp_path: Path) -> None:
    folder = big_folder(tmp_path / "model", megabytes=64)
    with open_ssh(stand_in) as device:
        device.push(big_folder(tmp_path / "first", megabytes=1))
        sent = device.sent_bytes

        def push_in_vain() -> None:
            with pytest.raises(DeviceFailed, match="connection was lost"):
                device.push(folder)

        pushing = threading.Thread(target=push_in_vain)
        pushing.start()
        wait_until(lambda: device.sent_bytes > sent + (8 << 20))
        cut(device)
        pushing.join(30)
        assert not pushing.is_alive()
        sent = device.sent_bytes - sent
    with open_ssh(stand_in) as device:
        path = Path(device.push(folder))
        assert 0 < device.sent_bytes < (64 << 20)
        assert (path / "large.bin").read_bytes() == (folder / "large.bin").read_bytes()
    assert not [path for path in stand_in.own_files() if path.name.endswith(".partial")]


def test_a_link_that_is_cut_while_running_leaves_no_process(stand_in: Reachable) -> None:
    mark = f"edgekit-cut-{os.getpid()}"
    with open_ssh(stand_in) as device:
        assert device.work
        threading.Timer(0.5, lambda: (wait_until(lambda: len(running(mark)) == 2), cut(device))).start()
        script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]])"
        with pytest.raises(DeviceFailed, match=r"connection was lost.*; nothing there goes on running; run the same"):
            device.run([sys.executable, "-c", script, mark], timeout_s=60)
    wait_until(lambda: not running(mark))
    with open_ssh(stand_in) as device:
        assert device.run(["true"], timeout_s=10).returncode == 0


def test_a_link_that_is_cut_while_fetching_leaves_nothing_half(stand_in: Reachable, tmp_path: Path) -> None:
    make = "import os; os.mkdir('out')\nfor i in range(8): open(f'out/{i}', 'wb').write(os.urandom(8 << 20))"
    with open_ssh(stand_in) as device:
        device.run([sys.executable, "-c", make], timeout_s=60)
        receive = device._receive

        def receive_and_cut(folder: Path) -> None:
            receive(folder)
            cut(device)

        device._receive = receive_and_cut  # type: ignore[method-assign]
        with pytest.raises(DeviceFailed, match="connection was lost"):
            device.fetch("out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_deadline_ends_all_that_was_started(stand_in: Reachable) -> None:
    mark = f"edgekit-late-{os.getpid()}"
    script = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]])"
    )
    with open_ssh(stand_in) as device:
        with pytest.raises(DeviceFailed, match=r"no end after 1.5 s; it was stopped"):
            device.run([sys.executable, "-c", script, mark], timeout_s=1.5)
        wait_until(lambda: not running(mark))
        assert device.run(["true"], timeout_s=10).returncode == 0


def test_how_a_command_ended_is_not_mistaken(connected: SshDevice) -> None:
    """ssh itself ends with 255 where the link is lost, and where a command is killed."""
    for code, ended in {"sys.exit(255)": 255, "os.kill(os.getpid(), 4)": -4, "os.kill(os.getpid(), 9)": -9}.items():
        assert connected.run([sys.executable, "-c", f"import os, sys; {code}"], timeout_s=60).returncode == ended


def test_two_edgekits_on_one_device(stand_in: Reachable) -> None:
    with open_ssh(stand_in) as first, open_ssh(stand_in) as second:
        assert first.work
        with pytest.raises(DeviceFailed, match=rf"in use by \S+@\S+ \(process {os.getpid()}\) since .*; wait until"):
            second.facts()
        first.close()
        assert second.work


def test_a_command_that_says_too_much(connected: SshDevice) -> None:
    with pytest.raises(DeviceFailed, match="said more than a probe can have to say"):
        connected.run([sys.executable, "-c", "while True: print('x' * 4095)"], timeout_s=60)


def test_a_login_script_that_talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says before is skipped; what writes between the answers is noticed."""
    with native(tmp_path) as device_:
        python = tmp_path / "python"
        python.write_text(
            f'#!/bin/sh\necho "{{\\"welcome\\": 1}}"; (sleep 2; echo garbage) & exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        monkeypatch.setenv("PATH", f"{device_.commands}{os.pathsep}{os.environ['PATH']}")
        with open_ssh(device_, python=str(python)) as device:
            assert device.run(["true"], timeout_s=5).returncode == 0
            with pytest.raises(DeviceFailed, match=r"said something that is no answer: 'garbage"):
                device.run(["sleep", "5"], timeout_s=20)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk, as only Linux does so")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=2m", r"No space left.*; free space there, or run: edgekit devices clean"),
        ("ro", r"Read-only.*; make it writable"),
    ],
)
def test_a_disk_that_takes_nothing(stand_in: Reachable, tmp_path: Path, options: str, message: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a disk")
    home = stand_in.home
    assert home is not None
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", home], check=True)
    try:
        folder = big_folder(tmp_path / "model", megabytes=8)
        with open_ssh(stand_in) as device, pytest.raises(DeviceFailed, match=message) as failed:
            device.push(folder)
        assert failed.value.exit_code == 4
        if options != "ro":
            assert not [path for path in stand_in.own_files() if path.name == "large.bin"]
    finally:
        subprocess.run(["umount", home], check=True)
