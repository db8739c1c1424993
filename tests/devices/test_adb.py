"""Devices behind adb, by Android's own client and a phone that speaks its protocol: what is sent, what a fault says, and that
nothing goes on running."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.devices import AdbDevice, device_table, there
from edgekit.devices.bridge import choose, parse_devices
from edgekit.devices.native import Platform
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.modalities.text import of_tokens
from edgekit.probes import PROBES
from edgekit.probes.lines import Calls
from edgekit.runtimes import RUNTIMES
from edgekit.runtimes.neighbours import disturbances
from tests.devices.native import HERE, ask_graph, lay_probe
from tests.devices.phone import PROPERTIES, THERMAL, Phone, adb_server, plug, plugged
from tests.devices.test_ssh import NASTY, SHOW, big_folder, check_names, names, running, wait_until, words
from tests.verify.verify_folders import make_graph

ANDROID = Platform(arch=HERE.arch, system="android")


@pytest.fixture(scope="module")
def kept(adb_variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    """A phone for all tests that leave it as it was."""
    with plugged(tmp_path_factory.mktemp("kept") / "a phone", adb_variables) as made:
        yield made


@pytest.fixture(autouse=True)
def _own_adb(own_adb: None) -> None:
    pass


@pytest.fixture
def connected(kept: Phone) -> Iterator[AdbDevice]:
    with AdbDevice(kept.table()) as device:
        yield device


def test_a_second_run_sends_nothing(phone: Phone, tmp_path: Path) -> None:
    folder = big_folder(tmp_path / "a model", megabytes=2)
    with AdbDevice(phone.table()) as device:
        first = device.push(folder)
        assert device.sent_bytes == (2 << 20) + 1
    with AdbDevice(phone.table()) as device:
        assert device.push(folder) == first
        assert device.sent_bytes == 0
        (folder / "small").write_text("8")
        assert device.push(folder) != first
        assert device.clean() > 4 << 20
    assert phone.own_files() == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(words | st.sampled_from(NASTY), max_size=5), words | st.sampled_from(NASTY))
def test_arguments_and_variables_arrive_as_they_are(connected: AdbDevice, arguments: list[str], value: str) -> None:
    """Through adb's shell and the script's."""
    code = f"{SHOW}; sys.stderr.buffer.write(os.fsencode(os.environ['EDGEKIT_X']))"
    ended = connected.run([sys.executable, "-c", code, *arguments], timeout_s=60, env={"EDGEKIT_X": value})
    assert ended.stdout.split("\0") == (arguments or [""])
    assert ended.stderr == value


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_files_arrive_with_their_names(connected: AdbDevice, tmp_path: Path, files: list[str]) -> None:
    check_names(connected, tmp_path / "made", files)


def test_addresses() -> None:
    assert device_table("adb:") == {"kind": "adb"}
    assert device_table("adb:emulator-5554") == {"kind": "adb", "serial": "emulator-5554"}
    assert AdbDevice(device_table("adb:192.168.1.9:5555")).identity == "adb:192.168.1.9:5555"
    assert device_table("adb:7/userdata/tmp") == {"kind": "adb", "serial": "7", "folder": "/userdata/tmp"}
    assert device_table("adb:/tmp") == {"kind": "adb", "folder": "/tmp"}
    for table in ({"serial": "-s"}, {"serial": "$(id)"}, {"serial": "a b"}, {"folder": "data"}):
        with pytest.raises(EdgekitError, match=r"device\.(serial|folder)"):
            AdbDevice({"kind": "adb", **table})
    with pytest.raises(EdgekitError, match="not a device's address; it begins with"):
        device_table("abd:x")


# What the real client prints, with a device in each state.
LISTED = """\
List of devices attached
R5CT20ABCDE            device usb:1-2 product:p3sxxx model:SM_G998B device:p3s transport_id:1
0123456789             unauthorized usb:1-3 transport_id:2
emulator-5554          offline transport_id:3
XYZ                    no permissions (user in plugdev group; are your udev rules wrong?); see [http://developer.android.com/tools/device.html] usb:1-4 transport_id:4

"""


@pytest.mark.parametrize(
    ("serial", "message"),
    [
        ("0123456789", "adb:0123456789: it has not allowed this machine: unlock it, accept 'Allow USB debugging'"),
        ("emulator-5554", r"adb:emulator-5554: .*\(offline\): unplug it .* adb reconnect"),
        ("XYZ", r"adb:XYZ: .*\(no permissions\): install the udev rules"),
        (
            "none",
            r"adb:none: no such device is connected; adb sees R5CT20ABCDE \(SM G998B\), 0123456789 \(unauthorized\)",
        ),
    ],
)
def test_a_device_that_cannot_be_used(serial: str, message: str) -> None:
    rows = parse_devices(LISTED)
    assert choose(rows, None) == choose(rows, "R5CT20ABCDE") == "R5CT20ABCDE"
    with pytest.raises(DeviceFailed, match=message) as failed:
        choose(rows, serial)
    assert (failed.value.exit_code, failed.value.message.count("\n")) == (4, 0)


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with adb_server(tmp_path) as variables:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", variables["ANDROID_ADB_SERVER_PORT"])
        with pytest.raises(DeviceFailed, match=r"adb: adb sees no device: switch on USB debugging .* plug it in"):
            AdbDevice({"kind": "adb"}).facts()
        with pytest.raises(DeviceFailed, match=r"adb:7: no such device is connected; adb sees none"):
            AdbDevice({"kind": "adb", "serial": "7"}).facts()


def test_two_devices(phone: Phone, kept: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {key: value for key, value in phone.table().items() if key != "serial"}
    with pytest.raises(DeviceFailed, match=r"adb: several devices .*Pretend 8.*; name one: --device adb:SERIAL"):
        AdbDevice(table).facts()
    monkeypatch.setenv("ANDROID_SERIAL", phone.serial)
    with AdbDevice(table) as device:
        assert device.work.startswith(str(phone.folder))


def test_a_phone_that_has_not_allowed_this_machine(adb_variables: dict[str, str], tmp_path: Path) -> None:
    with (
        plugged(tmp_path / "phone", adb_variables, authorized=False) as phone,
        pytest.raises(DeviceFailed, match=r"(has not allowed|asks whether to allow) this machine: unlock it"),
    ):
        AdbDevice(phone.table()).facts()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"features": "cmd"}, "too old to tell how a program ended: Android 7 or newer"),
        ({"properties": PROPERTIES | {"ro.product.cpu.abilist64": ""}}, r"a system of 32 bits .* 64-bit system"),
    ],
)
def test_a_phone_that_does_not_do(
    adb_variables: dict[str, str], tmp_path: Path, facts: dict[str, object], message: str
) -> None:
    with (
        plugged(tmp_path / "phone", adb_variables, **facts) as phone,
        pytest.raises(DeviceFailed, match=message) as failed,
    ):
        AdbDevice(phone.table()).facts()
    assert (failed.value.exit_code, failed.value.message.count("\n")) == (4, 0)


def test_without_adb(kept: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceFailed, match=r"adb cannot be started .*: install Android's platform tools"):
        AdbDevice(kept.table()).facts()


def test_without_a_probe(connected: AdbDevice) -> None:
    with pytest.raises(
        DeviceFailed, match=rf"no native probe is built for {ANDROID}; run: edgekit devices native --arch"
    ):
        connected.facts()
    with pytest.raises(DeviceFailed, match="has no Python"):
        connected.python  # noqa: B018 - asking raises


def test_a_phone_says_what_it_is_and_how_it_is(connected: AdbDevice, kept: Phone) -> None:
    lay_probe(HERE, ANDROID)
    facts = connected.facts()
    assert (facts["arch"], facts["system"], facts["python"]) == (HERE.arch, "Android 14, Pretend 8", "")
    condition = {"battery_percent": 87, "plugged": 1, "temperature_c": 33.5, "thermal_status": 0, "low_power": 0}
    assert connected.condition() == condition
    hot = "  level: 50\n  scale: 200\n  temperature: 441\n  AC powered: false\nThermal Status: 3\nlow_power: 1\n"
    assert there.read_condition(hot) == {
        "battery_percent": 25, "plugged": 0, "temperature_c": 44.1, "thermal_status": 3, "low_power": 1,
    }  # fmt: skip
    assert there.read_condition("Can't find service: thermalservice\n") == {}


def test_the_probe_answers_on_a_phone(connected: AdbDevice, tmp_path: Path) -> None:
    """The same rows as here; with its heat and battery beside the times, and nothing is pushed a second time."""
    lay_probe(HERE, ANDROID)
    artifact = tmp_path / "an artifact"
    artifact.mkdir()
    make_graph(artifact / "model.onnx")
    question = ask_graph(artifact / "model.onnx", [[4, 7, 5], [9, 10], [8]])
    answer = PROBES[connected.PROBE].ask(connected, question)
    rows = RUNTIMES["onnxruntime"].outputs(question.file, of_tokens([[4, 7, 5], [9, 10], [8]], 0).prompts, options={})
    assert np.allclose(answer.arrays["outputs"], rows, atol=1e-5)
    calls = answer.lines.read("latency", Calls)
    assert calls.before == calls.after
    assert calls.before is not None
    assert (calls.before["temperature_c"], calls.before["power"]) == (33.5, "mains")
    assert (calls.neighbours["battery_percent"], calls.neighbours["slowed"]) == (87, 0)
    sent = connected.sent_bytes
    PROBES[connected.PROBE].ask(connected, question)
    assert connected.sent_bytes == sent


def test_a_hot_phone_is_a_slow_one(connected: AdbDevice, kept: Phone, tmp_path: Path) -> None:
    lay_probe(HERE, ANDROID)
    make_graph(tmp_path / "model.onnx")
    question = ask_graph(tmp_path / "model.onnx", [[4]]).only_times()
    kept.say("dumpsys", THERMAL.replace("Thermal Status: 0", "Thermal Status: 2"))
    try:
        seen = PROBES["native"].ask(connected, question).lines.read("latency", Calls).neighbours
    finally:
        kept.lay_services()
    assert (seen["thermal_status"], seen["slowed"]) == (2, 1)
    assert "heat or the power supply lowered its clock" in disturbances([seen], 1)


def test_a_cable_that_is_pulled_while_pushing_goes_on_where_it_was(phone: Phone, tmp_path: Path) -> None:
    folder = big_folder(tmp_path / "model", megabytes=12)
    for index in range(3):
        (folder / f"a{index}").write_bytes(os.urandom(1 << 20))
    with AdbDevice(phone.table()) as device:
        assert device.work
        phone.lost_after = 6 << 20
        with pytest.raises(
            DeviceFailed, match=r"adb:\S+: the connection was lost .*; plug it in and run the same"
        ) as failed:
            device.push(folder)
        assert failed.value.message.count("\n") == 0
    plug(phone)
    with AdbDevice(phone.table()) as device:
        path = Path(device.push(folder))
        assert device.sent_bytes == (12 << 20) + 1
        assert (path / "large.bin").read_bytes() == (folder / "large.bin").read_bytes()
    assert not [path for path in phone.own_files() if path.name.endswith(".partial")]


SLEEPS = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]])"


def test_a_cable_that_is_pulled_while_running_leaves_no_process(phone: Phone) -> None:
    mark = f"edgekit-unplugged-{os.getpid()}"
    with AdbDevice(phone.table()) as device:
        assert device.work
        threading.Timer(0.2, lambda: (wait_until(lambda: len(running(mark)) >= 2), phone.unplug())).start()
        with pytest.raises(DeviceFailed, match=r"the connection was lost.*nothing there goes on running"):
            device.run([sys.executable, "-c", SLEEPS, mark], timeout_s=60)
    wait_until(lambda: not running(mark))
    wait_until(lambda: not (phone.folder / "data/edgekit/lock").exists())
    plug(phone)
    with AdbDevice(phone.table()) as device:
        assert device.run(["true"], timeout_s=10).returncode == 0


def test_a_cable_that_is_pulled_while_fetching_leaves_nothing_half(phone: Phone, tmp_path: Path) -> None:
    make = "import os; os.mkdir('out')\nfor i in range(4): open(f'out/{i}', 'wb').write(os.urandom(2 << 20))"
    with AdbDevice(phone.table()) as device:
        device.run([sys.executable, "-c", make], timeout_s=60)
        phone.lost_after = 5 << 20
        with pytest.raises(DeviceFailed, match="the connection was lost"):
            device.fetch("out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["phone"]


def test_a_deadline_ends_all_that_was_started(connected: AdbDevice) -> None:
    mark = f"edgekit-late-{os.getpid()}"
    with pytest.raises(DeviceFailed, match=r"no end after 1.5 s; it was stopped"):
        connected.run([sys.executable, "-c", SLEEPS, mark], timeout_s=1.5)
    wait_until(lambda: not running(mark))
    assert connected.run(["true"], timeout_s=10).returncode == 0


def test_a_board_with_another_shell(adb_variables: dict[str, str], tmp_path: Path) -> None:
    """No Android: a Linux with adbd, whose shell is dash."""
    mark = f"edgekit-dash-{os.getpid()}"
    with plugged(tmp_path / "board", adb_variables, android=False, shell="dash") as board:
        with AdbDevice(board.table()) as device:
            assert (device.platform, device.condition()) == (HERE, {})
            with pytest.raises(DeviceFailed, match=r"no end after 1 s; it was stopped"):
                device.run([sys.executable, "-c", SLEEPS, mark], timeout_s=1)
            ended = device.run(
                ["sh", "-c", 'mkdir out; echo 7 >"out/a b"; echo "$X"; exit 3'], timeout_s=20, env={"X": "'1'"}
            )
            assert (ended.returncode, ended.stdout) == (3, "'1'\n")
            device.fetch("out", tmp_path / "back")
            assert (tmp_path / "back/a b").read_text() == "7\n"
            with pytest.raises(DeviceFailed, match="in use by"):
                AdbDevice(board.table()).clean()
        assert [path.name for path in board.own_files()] == ["folders"]
    wait_until(lambda: not running(mark))


def test_a_deadline_is_kept_there_too(kept: Phone, tmp_path: Path) -> None:
    """Where nobody tells the device that this side has had enough; and what counts the time ends with the command."""
    mark = f"edgekit-later-{os.getpid()}"
    command = there.line(there.RUN, [str(tmp_path), "1", sys.executable, "-c", SLEEPS, mark])
    said = subprocess.run(
        ["adb", "-s", kept.serial, "shell", "-T", command],
        stdin=subprocess.PIPE,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert b"EDGEKIT-ENDED 137" in said.stderr
    wait_until(lambda: not running(mark))
    subprocess.run(
        ["adb", "-s", kept.serial, "shell", "-T", there.line(there.RUN, [str(tmp_path), "54321", "true"])], check=True
    )
    wait_until(lambda: not running("54321"))


def test_how_a_command_ended_is_not_mistaken(connected: AdbDevice) -> None:
    """adb itself ends with 1 where the device is lost, and a system that has no memory left kills."""
    for code, ended in {
        "sys.exit(1)": 1,
        "sys.exit(255)": 255,
        "os.kill(os.getpid(), 4)": -4,
        "os.kill(os.getpid(), 9)": -9,
    }.items():
        assert connected.run([sys.executable, "-c", f"import os, sys; {code}"], timeout_s=60).returncode == ended


def test_two_edgekits_on_one_phone(kept: Phone) -> None:
    with AdbDevice(kept.table()) as first, AdbDevice(kept.table()) as second:
        assert first.work
        with pytest.raises(DeviceFailed, match=rf"in use by \S+@\S+ \(process {os.getpid()}\) since .*; wait until"):
            second.work  # noqa: B018 - asking opens it
        first.close()
        assert second.work


@pytest.mark.parametrize("left", ["of another boot", "of a process that is gone"])
def test_a_lock_that_nobody_holds(kept: Phone, left: str) -> None:
    lock = kept.folder / "data/edgekit/lock"
    lock.mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text() if left != "of another boot" else "another\n"
    (lock / "boot").write_text(boot)
    (lock / "pid").write_text(f"{os.getpid() if left == 'of another boot' else 2**22 + 1}\n")
    (lock / "owner").write_text("somebody\n")
    with AdbDevice(kept.table()) as device:
        assert device.work
        assert "somebody" not in (lock / "owner").read_text()
    assert not lock.exists()


def test_a_command_that_says_too_much(connected: AdbDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.devices.bridge._LOUD_BYTES", 1 << 20)
    with pytest.raises(DeviceFailed, match="said more than a probe can have to say"):
        connected.run([sys.executable, "-c", "while True: print('x' * 4095)"], timeout_s=60)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk, as only Linux does so")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=2m", r"its storage is full; free space there, or run: edgekit devices clean adb:\S+ \(.*No space left"),
        ("ro", r"is read-only there; name a folder that is not: folder = in \[device\] \(.*Read-only"),
        (
            "noexec",
            r"does not let adb's shell run programs there \(file rights or SELinux: permission denied\); name another folder",
        ),
    ],
)
def test_a_disk_that_does_not_do(phone: Phone, tmp_path: Path, options: str, message: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a disk")
    data = phone.folder / "data"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", data], check=True)
    try:
        folder = big_folder(tmp_path / "model", megabytes=4 if options == "size=2m" else 1)
        program = folder / "program"
        shutil.copyfile("/bin/true", program)
        program.chmod(0o755)
        with AdbDevice(phone.table()) as device, pytest.raises(DeviceFailed, match=message) as failed:
            device.run([f"{device.push(folder)}/program"], timeout_s=10)
        assert (failed.value.exit_code, failed.value.message.count("\n")) == (4, 0)
        if options == "size=2m":
            assert not [path for path in phone.own_files() if path.name == "large.bin"]
    finally:
        subprocess.run(["umount", "-l", data], check=True)


def test_a_phone_that_refuses_files(phone: Phone, tmp_path: Path) -> None:
    """As SELinux does: a file cannot be made, whatever the rights of its folder."""
    phone.refuse = "couldn't create file: Permission denied"
    message = r"does not let adb's shell write to \S+ \(file rights or SELinux\)"
    with AdbDevice(phone.table()) as device, pytest.raises(DeviceFailed, match=message):
        device.push(big_folder(tmp_path / "model", megabytes=1))


def test_scripts_are_those_of_any_posix_shell() -> None:
    """A Linux board's adbd runs them in its own shell; they parse in dash and bash too."""
    for name in ("FACTS", "SURVEY", "HOLD", "RUN", "LOOK", "DIGESTS", "COUNT", "CLEAN", "CONDITION"):
        for shell in filter(shutil.which, ("dash", "bash", "mksh")):
            done = subprocess.run(
                [shell, "-n", "-c", getattr(there, name)], capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, ""), (shell, name)
    assert re.match(r"A=", there.line(there.LOOK, ["x"], {"A": "b c"}))
    assert shlex.split(there.line(there.LOOK, ["a'b"]))[-1] == "a'b"
