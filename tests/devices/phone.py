"""A phone for the real `adb`: the device's half of adb's protocol on a TCP port, with Android's own shell and tools behind it.

Spoken is what adbd speaks (platform/packages/modules/adb: protocol.txt, SYNC.TXT, shell_protocol.h): messages CNXN, AUTH, OPEN,
OKAY, WRTE and CLSE, the services `shell,v2` with exit codes and `sync:`. Commands run on this machine, in mksh with toybox first
on PATH, as on Android, and what dumpsys, getprop and settings say is text of a real phone's form. It is no Android: it has no
bionic, no SELinux and no radio.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.devices.sshd import install

BATTERY = """\
Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  status: 2
  health: 2
  present: true
  level: 87
  scale: 100
  voltage: 4235
  temperature: 291
  technology: Li-ion
"""
THERMAL = """\
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=31.4, mType=3, mName=skin, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=48.0, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=33.5, mType=3, mName=skin, mStatus=0}
"""
PROPERTIES = {
    "ro.build.version.release": "14",
    "ro.product.cpu.abilist64": "arm64-v8a",
    "ro.product.model": "Pretend 8",
}
_MAX = 256 * 1024
_TOOLS = """
cat chmod cp cut date df du echo env find grep head kill ls mkdir mv ps pwd rm rmdir sed setsid sha256sum sleep sort stat sync tail
tee test timeout touch true uname wc xargs
"""


@dataclass(kw_only=True)
class Phone:
    """What a test can do with it. lost_after: bytes of a file's content until the cable is pulled, either way; refuse: the
    message with which each file that is sent is refused; says: what the tools of Android print, by command line."""

    folder: Path
    port: int = 0
    features: str = "shell_v2,cmd"
    authorized: bool = True
    lost_after: int | None = None
    refuse: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    connections: list[socket.socket] = field(default_factory=list)
    shells: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"adb:{self.serial}{self.folder / 'data'}"

    def table(self, **more: object) -> dict[str, object]:
        """A target's `[device]` table."""
        return {"kind": "adb", "serial": self.serial, "folder": str(self.folder / "data"), **more}

    def own_files(self) -> list[Path]:
        """What edgekit has there."""
        return sorted((self.folder / "data" / "edgekit").rglob("*"))

    def unplug(self) -> None:
        """As when the cable is pulled: adbd ends all that it carried."""
        for connection in [*self.connections]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def say(self, tool: str, text: str) -> None:
        """Let a tool of Android print a text, whatever it is asked."""
        self.write_tool(tool, f"cat <<'EOT'\n{text}EOT\n")

    def write_tool(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)

    def lay_tools(self, android: bool = True, shell: str = "mksh", properties: Mapping[str, str] = PROPERTIES) -> None:
        """Fill the folder of its programs: toybox's, a shell, and where it is an Android its services."""
        tools = self.folder / "bin"
        tools.mkdir()
        toybox = shutil.which("toybox")
        assert toybox is not None
        for name in _TOOLS.split():
            (tools / name).symlink_to(toybox)
        (tools / "sh").symlink_to(shutil.which(shell) or "/bin/sh")
        if android:
            self.lay_services(properties)

    def lay_services(self, properties: Mapping[str, str] = PROPERTIES) -> None:
        """Let Android's tools say what they say of a phone that is well."""
        cases = "".join(f"{name}) echo '{value}';;\n" for name, value in properties.items())
        self.write_tool("getprop", f'case "$1" in\n{cases}esac\n')
        self.write_tool("settings", "echo 0\n")
        both = f"battery) cat <<'EOT'\n{BATTERY}EOT\n;;\nthermalservice) cat <<'EOT'\n{THERMAL}EOT\n;;\n"
        self.write_tool("dumpsys", f'case "$1" in\n{both}esac\n')


class Transport:
    """One connection of adb's server: streams over it, each a thread."""

    def __init__(self, phone: Phone, connection: socket.socket) -> None:
        self.phone, self.connection = phone, connection
        self.writing = threading.Lock()
        self.streams: dict[int, Stream] = {}
        self.count = 0

    def send(self, command: bytes, first: int, second: int, payload: bytes = b"") -> None:
        number = struct.unpack("<I", command)[0]
        header = struct.pack(
            "<4s5I", command, first, second, len(payload), sum(payload) & 0xFFFFFFFF, number ^ 0xFFFFFFFF
        )
        with self.writing, suppress(OSError):
            self.connection.sendall(header + payload)

    def read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            part = self.connection.recv(size - len(content))
            if not part:
                raise ConnectionError
            content += part
        return content

    def serve(self) -> None:
        try:
            while True:
                command, first, second, size, _, _ = struct.unpack("<4s5I", self.read(24))
                self.take(command, first, second, self.read(size))
        except OSError:
            pass
        finally:
            with suppress(ValueError):
                self.phone.connections.remove(self.connection)
            self.connection.close()
            for stream in [*self.streams.values()]:
                stream.closed()

    def take(self, command: bytes, first: int, second: int, payload: bytes) -> None:
        if command in {b"CNXN", b"AUTH"} and not self.phone.authorized:
            self.send(b"AUTH", 1, 0, os.urandom(20))
        elif command == b"CNXN":
            banner = f"device::ro.product.name=pretend;ro.product.model=Pretend 8;ro.product.device=pretend;features={self.phone.features}"
            self.send(b"CNXN", 0x01000000, _MAX, banner.encode())
        elif command == b"OPEN":
            self.count += 1
            stream = Stream(self, self.count, first)
            self.streams[self.count] = stream
            service = payload.rstrip(b"\0").decode(errors="surrogateescape")
            threading.Thread(target=stream.run, args=(service,), daemon=True).start()
        elif stream_ := self.streams.get(second):
            if command == b"OKAY":
                stream_.ready.set()
            elif command == b"WRTE":
                stream_.inbox.write(payload)
                self.send(b"OKAY", second, first)
            elif command == b"CLSE":
                stream_.closed()


class Inbox:
    """Bytes that came and were not read yet."""

    def __init__(self) -> None:
        self.content, self.ended, self.changed = b"", False, threading.Condition()

    def write(self, content: bytes | None) -> None:
        with self.changed:
            self.content += content or b""
            self.ended = self.ended or content is None
            self.changed.notify_all()

    def read(self, size: int) -> bytes:
        with self.changed:
            self.changed.wait_for(lambda: self.ended or len(self.content) >= size)
            if len(self.content) < size:
                raise ConnectionError
            part, self.content = self.content[:size], self.content[size:]
            return part


class Stream:
    """One service that adb asked for."""

    def __init__(self, transport: Transport, own: int, other: int) -> None:
        self.transport, self.own, self.other = transport, own, other
        self.inbox, self.ready, self.gone = Inbox(), threading.Event(), False
        self.one_at_a_time = threading.Lock()

    def closed(self) -> None:
        self.gone = True
        self.inbox.write(None)
        self.ready.set()
        self.transport.streams.pop(self.own, None)

    def write(self, content: bytes) -> None:
        with self.one_at_a_time:
            for index in range(0, len(content), _MAX):
                self.ready.clear()
                if self.gone:
                    raise ConnectionError
                self.transport.send(b"WRTE", self.own, self.other, content[index : index + _MAX])
                self.ready.wait()

    def run(self, service: str) -> None:
        self.transport.send(b"OKAY", self.own, self.other)
        try:
            if service == "sync:":
                self.sync()
            elif service.startswith("shell,v2"):
                self.shell(service.partition(":")[2])
        except (ConnectionError, OSError):
            pass
        self.transport.send(b"CLSE", self.own, self.other)
        self.closed()

    # shell_protocol.h: an id (0 to 2: the streams, 3: exit, 4: close the input), a length, the content.
    def shell(self, command: str) -> None:
        """As adbd does it without a terminal: input and output are one socket pair, which is at its end when all have closed it."""
        ours, theirs = socket.socketpair()
        phone = self.transport.phone
        environment = {"PATH": str(phone.folder / "bin"), "HOME": "/", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(
            [phone.folder / "bin" / "sh", "-c", os.fsencode(command)],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        phone.shells.append(child)
        theirs.close()
        feeding = threading.Thread(target=self.feed, args=(ours,), daemon=True)
        feeding.start()
        assert child.stderr is not None
        streams = {1: lambda: ours.recv(1 << 16), 2: lambda: os.read(child.stderr.fileno(), 1 << 16)}  # type: ignore[union-attr]
        pumps = [
            threading.Thread(target=self.pump, args=(number, read), daemon=True) for number, read in streams.items()
        ]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        code = child.wait()
        child.stderr.close()
        ours.close()
        self.write(struct.pack("<BIB", 3, 1, 128 - code if code < 0 else code))

    def feed(self, into: socket.socket) -> None:
        with suppress(ConnectionError, OSError):
            while True:
                number, size = struct.unpack("<BI", self.inbox.read(5))
                content = self.inbox.read(size)
                if number == 0:
                    into.sendall(content)
                elif number == 4:
                    break
        with suppress(OSError):
            into.shutdown(socket.SHUT_WR)

    def pump(self, number: int, read: Callable[[], bytes]) -> None:
        with suppress(OSError):
            while part := read():
                with suppress(ConnectionError):
                    self.write(struct.pack("<BI", number, len(part)) + part)

    # SYNC.TXT: a word of four letters, a length, the content.
    def sync(self) -> None:
        while True:
            word, size = struct.unpack("<4sI", self.inbox.read(8))
            if word == b"QUIT":
                return
            path = self.inbox.read(size).decode(errors="surrogateescape")
            {b"STAT": self.stat, b"SEND": self.receive, b"RECV": self.give, b"LIST": self.list}[word](path)

    def stat(self, path: str) -> None:
        try:
            status = os.lstat(path)
            facts = (status.st_mode, status.st_size & 0xFFFFFFFF, int(status.st_mtime))
        except OSError:
            facts = (0, 0, 0)
        self.write(struct.pack("<4s3I", b"STAT", *facts))

    def list(self, path: str) -> None:
        for name in sorted(os.listdir(path)) if os.path.isdir(path) else []:
            status, encoded = os.lstat(os.path.join(path, name)), os.fsencode(name)
            self.write(
                struct.pack("<4s4I", b"DENT", status.st_mode, status.st_size, int(status.st_mtime), len(encoded))
                + encoded
            )
        self.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))

    def receive(self, path: str) -> None:
        path, _, mode = path.rpartition(",")
        failed = self.transport.phone.refuse
        stream = None
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        except OSError as error:
            failed = failed or f"couldn't create file: {error.strerror}"
        while True:
            word, size = struct.unpack("<4sI", self.inbox.read(8))
            if word == b"DONE":
                break
            content = self.inbox.read(size)
            self.lose(size)
            try:
                if stream is not None and failed is None:
                    stream.write(content)
                    stream.flush()
            except OSError as error:
                failed = f"write failed: {error.strerror}"
                with suppress(OSError):
                    stream.close()
        if stream is not None:
            with suppress(OSError):
                stream.close()
            if failed is None:
                os.chmod(path, int(mode) & 0o777)
                os.utime(path, (size, size))
            else:
                os.unlink(path)
        content = (failed or "").encode()
        self.write(struct.pack("<4sI", b"FAIL" if failed else b"OKAY", len(content)) + content)

    def give(self, path: str) -> None:
        try:
            with open(path, "rb") as stream:
                while part := stream.read(1 << 16):
                    self.write(struct.pack("<4sI", b"DATA", len(part)) + part)
                    self.lose(len(part))
            self.write(struct.pack("<4sI", b"DONE", 0))
        except OSError as error:
            content = f"open failed: {error.strerror}".encode()
            self.write(struct.pack("<4sI", b"FAIL", len(content)) + content)

    def lose(self, size: int) -> None:
        """Count a file's bytes until the cable is pulled."""
        phone = self.transport.phone
        if phone.lost_after is not None:
            phone.lost_after -= size
            if phone.lost_after < 0:
                phone.lost_after = None
                phone.unplug()
                raise ConnectionError


def need_adb() -> None:
    """Skip where there is no adb and none can be installed."""
    missing = [name for name in ("adb", "mksh", "toybox") if shutil.which(name) is None]
    if missing:
        install(*missing)
    if any(shutil.which(name) is None for name in missing):
        pytest.skip("there is no adb here (or mksh, or toybox), and it can only be installed by root with apt-get")


@contextmanager
def plugged(folder: Path, variables: Mapping[str, str], **facts: object) -> Iterator[Phone]:
    """A phone that the adb server of these variables knows; it is gone at the end, with all that ran on it."""
    folder.mkdir(parents=True)
    phone = Phone(folder=folder, environment=os.environ | dict(variables))
    for name in ("features", "authorized"):
        setattr(phone, name, facts.pop(name, getattr(phone, name)))
    phone.lay_tools(**facts)  # type: ignore[arg-type]
    (folder / "data").mkdir()
    listener = socket.create_server(("127.0.0.1", 0))
    phone.port = listener.getsockname()[1]

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                phone.connections.append(connection)
                threading.Thread(target=Transport(phone, connection).serve, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        plug(phone)
        yield phone
    finally:
        subprocess.run(
            ["adb", "disconnect", phone.serial], env=phone.environment, capture_output=True, timeout=30, check=False
        )
        listener.close()
        phone.unplug()
        for shell in phone.shells:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)


def plug(phone: Phone) -> None:
    """Let adb know it, as when the cable is put in again."""
    subprocess.run(
        ["adb", "disconnect", phone.serial], env=phone.environment, capture_output=True, timeout=30, check=False
    )
    subprocess.run(
        ["adb", "connect", phone.serial], env=phone.environment, capture_output=True, timeout=30, check=False
    )


@contextmanager
def adb_server(folder: Path) -> Iterator[Mapping[str, str]]:
    """The variables of an adb server of its own, with a home of its own; it ends with the block."""
    need_adb()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    variables = {
        "ANDROID_ADB_SERVER_PORT": str(port),
        "HOME": str(folder),
        "ANDROID_USER_HOME": str(folder),
        "ADB_MDNS": "0",
    }
    environment = os.environ | variables
    started = subprocess.run(
        ["adb", "start-server"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert started.returncode == 0, started.stderr
    try:
        yield variables
    finally:
        subprocess.run(["adb", "kill-server"], env=environment, capture_output=True, timeout=30, check=False)
