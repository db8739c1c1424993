"""A browser as a device: who may reach its page, how commands fail, and that nothing stays behind. Chromium is real."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgekit.devices import BrowserDevice, browser, device_table
from edgekit.devices.browser.exchange import Exchange
from edgekit.devices.browser.program import find_program, start
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.probes.web.npm import PACKAGES
from tests.conftest import ROOT, Answer, child_environment
from tests.devices.chromium import descendants, need_chromium, write_modules


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Exchange]:
    """A server with a folder that has one file, and no browser."""
    (tmp_path / "work").mkdir()
    (tmp_path / "pushed" / "ä b").mkdir(parents=True)
    (tmp_path / "pushed" / "ä b" / "x.txt").write_text("inside", encoding="utf-8")
    (tmp_path / "secret").write_text("outside", encoding="utf-8")
    with closing(Exchange(tmp_path / "work")) as opened:
        opened.folders.append(tmp_path / "pushed")
        yield opened


def ask(
    exchange: Exchange, path: str, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(exchange.authority, timeout=30)
    with closing(connection):
        connection.request(method, path, body=body or None, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


def test_a_page_is_isolated_and_runs_no_text_as_code(exchange: Exchange) -> None:
    status, content, headers = ask(exchange, f"/{exchange.token}/")
    assert (status, b"page.mjs" in content) == (200, True)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "Access-Control-Allow-Origin" not in headers
    scripts = re.search(r"script-src ([^;]*)", headers["Content-Security-Policy"])
    assert scripts is not None
    assert "'unsafe-eval'" not in scripts[1]
    assert "'unsafe-inline'" not in scripts[1]
    assert ask(exchange, f"/{exchange.token}/folder/0/%C3%A4%20b/x.txt")[:2] == (200, b"inside")


@pytest.mark.parametrize(
    "path",
    [
        "/", "//[", "/job", "/{wrong}/", "/{wrong}/job", "/{token}", "/{token}/nothing", "/{token}/keep.py", "/{token}/folder/1/x",
        "/{token}/folder/0/../secret", "/{token}/folder/0/%2e%2e/secret", "/{token}/folder/0/..%2fsecret",
        "/{token}/folder/0//etc/passwd", "/{token}/folder/-1/x", "/{token}/folder/0/ä b", "/{token}/folder/0/",
    ],
)  # fmt: skip
def test_nothing_else_is_reached(exchange: Exchange, path: str) -> None:
    full = path.format(token=exchange.token, wrong=exchange.token[:-1] + "!").replace("ä b", "%C3%A4%20b")
    assert ask(exchange, full)[0] == 404


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}], ids=str
)
def test_another_site_reaches_nothing(exchange: Exchange, headers: dict[str, str]) -> None:
    assert ask(exchange, f"/{exchange.token}/", **headers)[0] == 404


def test_only_the_command_that_is_waited_for_is_heard(exchange: Exchange, tmp_path: Path) -> None:
    base = f"/{exchange.token}"
    first = exchange.begin(["a.mjs"], {})
    assert ask(exchange, f"{base}/out/1", "POST", b"too early")[0] == 410
    told = json.loads(ask(exchange, f"{base}/job")[1])
    assert told == {"number": 1, "command": ["a.mjs"], "env": {}}
    assert ask(exchange, f"{base}/out/1", "POST", b"said")[0] == 200
    assert ask(exchange, f"{base}/work/1/out/y", "PUT", b"made")[0] == 200
    assert ask(exchange, f"{base}/work/1/../y", "PUT", b"made")[0] == 410
    second = exchange.begin(["b.mjs"], {})
    for path, method in (
        ("out/1", "POST"),
        ("alive/1", "POST"),
        ("end/1", "POST"),
        ("work/1/z", "PUT"),
        ("x/2", "POST"),
    ):
        assert ask(exchange, f"{base}/{path}", method, b"late")[0] == 410
    assert (b"".join(first.out), second.out, first.is_over()) == (b"said", [], False)
    assert [path.name for path in (tmp_path / "work").rglob("*") if path.is_file()] == ["y"]
    ask(exchange, f"{base}/job")
    assert ask(exchange, f"{base}/end/2", "POST", b"3")[0] == 200
    assert (second.is_over(), second.code) == (True, 3)


@pytest.mark.parametrize(
    "address", ["browser://firefox", "browser://chromium?x=1", "browser:chromium/x#y", "browser://own/x", "browser://["]
)
def test_what_is_no_browser(address: str) -> None:
    with pytest.raises(EdgekitError, match="not a browser's address; write browser://chromium"):
        device_table(address)


def test_addresses_of_browsers() -> None:
    assert device_table("browser:") == device_table("browser://chromium") == {"kind": "browser", "program": "chromium"}
    assert device_table("browser://own")["program"] == "own"
    assert device_table("browser:///opt/a%20b/chrome")["program"] == "/opt/a b/chrome"


def test_a_browser_that_is_not_there(tmp_path: Path) -> None:
    with closing(BrowserDevice({"kind": "browser", "program": "/no/such"})) as device:
        with pytest.raises(DeviceFailed, match=r"browser:///no/such: no such browser here; install it"):
            device.run(["x.mjs"], timeout_s=5)
        with pytest.raises(DeviceFailed, match="a browser has no Python"):
            assert device.python


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("libnss3.so: cannot open shared object file", "libnss3.so: cannot open shared object file"),
        # As Chromium says it where its sandbox may not work.
        (
            "[7:7:0101/0.1:ERROR:dbus/bus.cc:405] Failed to connect\n[7:7:0101/0.2:FATAL:zygote_host_impl_linux.cc(127)]"
            " No usable sandbox!\n" + "#0 0x55d0c0ffee\n" * 60 + "[end of stack trace]",
            "[7:7:0101/0.2:FATAL:zygote_host_impl_linux.cc(127)] No usable sandbox!",
        ),
        ("", "exit code 127"),
    ],
    ids=["a library", "its sandbox", "nothing"],
)
def test_a_browser_that_ends_by_itself(tmp_path: Path, said: str, shown: str) -> None:
    (tmp_path / "said").write_text(said, encoding="utf-8")
    program = tmp_path / "chrome"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\nexit 127\n", encoding="utf-8")
    program.chmod(0o755)
    with (
        closing(BrowserDevice({"kind": "browser", "program": str(program)})) as device,
        pytest.raises(DeviceFailed, match=re.escape(f"the browser ended by itself: {shown}")),
    ):
        device.run(["x.mjs"], timeout_s=60)


def test_how_commands_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a module throws; what says too much; a tab that crashes; and the server's address is in no message."""
    need_chromium()
    with closing(BrowserDevice({"kind": "browser"})) as device:
        modules = device.push(write_modules(tmp_path / "modules"))
        ended = device.run([f"{modules}/throw.mjs"], timeout_s=60)
        assert (ended.returncode, ended.stderr.strip().splitlines()[-1]) == (1, "RangeError: too far")
        assert "http" not in ended.stderr
        with pytest.raises(DeviceFailed, match="said more than a probe can have to say"):
            device.run([f"{modules}/shout.mjs"], timeout_s=60)
        monkeypatch.setattr(browser, "_SILENT_S", 3.0)
        killer = threading.Thread(target=crash_tab, args=(device,))
        killer.start()
        with pytest.raises(DeviceFailed, match=r"the page stopped answering: the tab was closed or crashed") as failed:
            device.run([f"{modules}/sleep.mjs"], timeout_s=120)
        killer.join()
        assert "127.0.0.1" not in str(failed.value)


def test_the_memory_of_a_page_has_webassemblys(tmp_path: Path) -> None:
    """Once, whether this Chromium counts it or not: 100 MiB here, 40 in a worker of the worker, as long as that runs, and 50 that
    threads share, of which each has a view."""
    need_chromium()
    with closing(BrowserDevice({"kind": "browser"})) as device:
        ended = device.run([f"{device.push(write_modules(tmp_path / 'modules'))}/hold.mjs"], timeout_s=120)
    assert ended.returncode == 0, ended.stderr
    before, own, both, after, threaded, held = json.loads(ended.stdout)
    assert held == 1600
    assert own - before == pytest.approx(1600, abs=80)
    assert both - own == pytest.approx(640, abs=80)
    assert after - before == pytest.approx(1600, abs=80)
    assert threaded - after == pytest.approx(800, abs=80)


def crash_tab(device: BrowserDevice) -> None:
    """Kill the processes of its tabs, once a page has taken the command."""
    exchange, end = device._open, time.monotonic() + 90
    while (exchange.job is None or not exchange.job.taken) and time.monotonic() < end:
        time.sleep(0.05)
    assert device._running is not None
    for pid, line in descendants(device._running.process.pid).items():
        if "--type=renderer" in line:
            os.kill(pid, signal.SIGKILL)


def all_processes() -> set[int]:
    """Those that run: one that has ended, and that nobody asked how, has no command line any more."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found |= {int(path.parent.name)} if path.read_bytes() else set()
        except OSError:
            continue
    return found


STAYS = """
import sys
from pathlib import Path
from edgekit.devices import open_device
device = open_device({"kind": "browser"}, "device")
device.facts()
print(device.work, flush=True)
device.run([f"{device.push(Path(sys.argv[1]))}/sleep.mjs"], timeout_s=600)
"""


def test_a_browser_does_not_outlive_edgekit(tmp_path: Path) -> None:
    """Even where edgekit is killed: no process, no profile. A temporary folder of a long name is no hindrance."""
    need_chromium()
    modules = write_modules(tmp_path / "modules")
    (long := tmp_path / ("long " * 20)).mkdir()
    environment = child_environment() | {"TMPDIR": str(long)}
    running = subprocess.Popen(
        [sys.executable, "-c", STAYS, str(modules)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline()
    started = descendants(running.pid)
    assert len(started) > 3
    (profile,) = {found[1] for line in started.values() if (found := re.search(r"user-data-dir=(\S+)/profile", line))}
    running.kill()
    running.wait()
    running.stdout.close()
    end = time.monotonic() + 30
    while (alive := bool(started.keys() & all_processes()) or Path(profile).exists()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive


def test_the_users_own_browser(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The page's address is shown, and whoever opens it runs all commands, each in a fresh page."""
    need_chromium()
    caplog.set_level(logging.WARNING, logger="edgekit")
    with closing(BrowserDevice({"kind": "browser", "program": "own"})) as device:
        address = device._open.address
        opened = start(find_program("chromium"), address)
        try:
            assert device.facts()["arch"] == "wasm32"
            modules = device.push(write_modules(tmp_path / "modules"))
            for word in ("one", "two"):
                ended = device.run([f"{modules}/show.mjs", word], timeout_s=60, env={"EDGEKIT_X": "1"})
                assert ended.stdout == f"{word} 1\n"
        finally:
            opened.stop()
    assert address in caplog.text


def test_what_doctor_and_devices_say_of_a_browser(command: Callable[..., Answer]) -> None:
    """Its page's facts and engines, and the state of this machine, on which it runs; there is nothing to set up."""
    need_chromium()
    asked = command("doctor", "--device", "browser:", "--json")
    found = {one["name"]: one for one in json.loads(asked.out)["findings"]}
    assert (asked.code, found["onnxruntime"]["status"]) == (0, "ok"), asked.err
    assert found["llama-cpp"]["found"] == f"{PACKAGES['wllama'].engine}, CPU"
    assert "simd128" in found["device cpu"]["found"]
    assert " MB" in found["free memory"]["found"]
    refused = command("devices", "setup", "browser:")
    assert (refused.code, "it needs none" in refused.err) == (1, True)
    assert "edgekit devices native" in command("devices", "setup", "adb:").err
    assert command("devices", "clean", "browser:").out == "browser://chromium: removed 0.0 MB\n"
