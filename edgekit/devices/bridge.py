"""Android's own `adb`: which device is meant, one command of it at a time, and what its messages mean."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from edgekit.errors import DeviceFailed

_ADB = "adb"
_LIST_S = 30.0
# What `adb devices` says of a device that cannot be used -> what is wrong, and what to do.
_STATES = {
    "unauthorized": "it has not allowed this machine: unlock it, accept 'Allow USB debugging', and run this again",
    "authorizing": "it asks whether to allow this machine: unlock it, accept 'Allow USB debugging', and run this again",
    "offline": "it is connected and does not answer (offline): unplug it and plug it in again, or run: adb reconnect",
    "connecting": "it is connected and does not answer yet (connecting): wait, or run: adb reconnect",
    "no permissions": "this user may not open its USB port (no permissions): install the udev rules (Debian: apt install"
    " android-sdk-platform-tools-common), join the group plugdev, and plug it in again",
    "recovery": "it runs its recovery system, not its own: restart it",
    "sideload": "it waits for an update (sideload): restart it",
    "bootloader": "it runs its boot loader: restart it",
    "rescue": "it runs its rescue system: restart it",
}
# What adb says on standard error when the device is gone, as far as it is not in a file's own error.
_GONE = re.compile(
    r"device '[^']*' not found|no devices/emulators found|device offline|device still|error: closed|protocol fault"
    r"|connect failed|connection reset|couldn't read from device|failed to read copy response|EOF|failed to stat remote"
    r"|transport.*gone|device unauthorized",
    re.IGNORECASE,
)
# What a device's system says of its storage -> the remedy, {folder} is edgekit's there.
_DISK = {
    "No space left on device": "its storage is full; free space there, or run: edgekit devices clean {address}",
    "Disk quota exceeded": "its storage is full; free space there, or run: edgekit devices clean {address}",
    "Read-only file system": "{folder} is read-only there; name a folder that is not: folder = in [device]",
    "Permission denied": "its system does not let adb's shell write to {folder} (file rights or SELinux); name another folder:"
    " folder = in [device]",
    "Operation not permitted": "its system does not let adb's shell write to {folder} (SELinux); name another folder: folder = in"
    " [device]",
}
# A probe's lines are a few MB; what says more than this is not one.
_LOUD_BYTES = 64 << 20
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of `adb devices -l`: the serial number, the state, and the model where it is told."""

    serial: str
    state: str
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class Said:
    """How an adb command ended: its exit code (None: it was stopped at its deadline), and what it said."""

    code: int | None
    out: bytes
    err: bytes
    loud: bool = False

    @property
    def error(self) -> str:
        """The last line that names an error, else the last one on standard error; both are on either stream, beside progress."""
        text = self.out + b"\n" + self.err
        lines = [line.strip() for line in text.decode(errors="replace").splitlines() if not line.startswith("[")]
        named = [line for line in lines if "error" in line or "failed" in line]
        return next((line for line in reversed(named or lines) if line), "")


def parse_devices(text: str) -> list[Row]:
    """The devices that `adb devices -l` lists. A state may be several words: "no permissions (...)"."""
    rows = []
    for line in text.splitlines():
        found = re.match(r"(\S+)\s+(no permissions|\w+)\b(.*)", line)
        if found is None or line.startswith(("List of devices", "*")):
            continue
        model = re.search(r"\bmodel:(\S+)", found[3])
        rows.append(Row(serial=found[1], state=found[2], model=model[1].replace("_", " ") if model else ""))
    return rows


def choose(rows: Sequence[Row], serial: str | None) -> str:
    """The serial number of the device that is meant: the one that is named, else the only one that answers.

    Raises DeviceFailed where there is none, where it cannot be used, and where one of several has to be named.
    """
    address = f"adb:{serial or ''}"
    named = ", ".join(f"{row.serial} ({row.model or row.state})" for row in rows)
    if serial is not None:
        rows = [row for row in rows if row.serial == serial]
        if not rows:
            raise DeviceFailed(f"{address}: no such device is connected; adb sees {named or 'none'}")
    if not rows:
        raise DeviceFailed(
            f"{address} adb sees no device: switch on USB debugging in the phone's developer options and plug it in, then look"
            " at: adb devices"
        )
    ready = [row for row in rows if row.state == "device"]
    if len(ready) == 1:
        return ready[0].serial
    if ready:
        raise DeviceFailed(f"{address} several devices are connected: {named}; name one: --device adb:SERIAL")
    row = rows[0]
    reason = _STATES.get(row.state, f"adb calls its state {row.state!r}; restart it")
    raise DeviceFailed(f"adb:{row.serial}: {reason}")


def find_serial(serial: str | None) -> str:
    """The serial number of the device that is meant (`choose`); $ANDROID_SERIAL names one as it does for adb itself."""
    listed = run_adb(["devices", "-l"], within_s=_LIST_S)
    if listed.code != 0:
        raise DeviceFailed(f"adb: {listed.error or 'no answer'}; run: adb kill-server, then: adb devices")
    return choose(parse_devices(listed.out.decode(errors="replace")), serial or os.environ.get("ANDROID_SERIAL"))


def why(said: Said, address: str, behind: str, folder: str) -> str:
    """Why an adb command failed, with the remedy. behind: what `--device` has behind the address, folder: edgekit's there."""
    text = (said.out + b"\n" + said.err).decode(errors="replace")
    for sign, reason in _DISK.items():
        if sign in text:
            return f"{address}: {reason.format(address=address + behind, folder=folder)} ({sign})"
    if not is_gone(said):
        return f"{address}: {said.error[:300]}"
    reason = f" ({said.error[:200]})" if said.error else ""
    return (
        f"{address}: the connection was lost{reason}; nothing there goes on running; plug it in and run the same command again:"
        " it goes on from what is there"
    )


def is_gone(said: Said) -> bool:
    """Whether a command failed because the device is gone: adb says so or, of a file that it was fetching, nothing at all."""
    text = (said.out + b"\n" + said.err).decode(errors="replace")
    return _GONE.search(text) is not None or not said.error


def start_adb(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """adb as a process with pipes, which Ctrl-C does not reach: who started it ends it."""
    try:
        return subprocess.Popen(
            [_ADB, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as failed:
        raise DeviceFailed(
            f"adb cannot be started ({failed.strerror}): install Android's platform tools on this machine (Debian: apt install"
            " adb)"
        ) from failed


def run_adb(arguments: Sequence[str], *, within_s: float, grace_s: float = 0.0) -> Said:
    """Run an adb command to its end, or to its deadline.

    Its standard input stays open until then, and is closed at the deadline: what was started by `adb shell` there takes that for
    the end of the link. grace_s: how long it then may take to end by itself.
    """
    process = start_adb(arguments)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    loud = threading.Event()
    readers = [
        threading.Thread(target=_collect, args=(stream, into, loud, process), daemon=True)
        for stream, into in zip((process.stdout, process.stderr), parts, strict=True)
    ]
    for reader in readers:
        reader.start()
    code: int | None = None
    try:
        code = process.wait(timeout=within_s)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_s)
    finally:
        with suppress(OSError):
            process.stdin.close()
        if process.poll() is None:
            if code is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=2.0)
            process.kill()
        process.wait()
        for reader in readers:
            reader.join(timeout=5)
    return Said(code=code, out=b"".join(parts[0]), err=b"".join(parts[1]), loud=loud.is_set())


def _collect(stream: IO[bytes], into: list[bytes], loud: threading.Event, process: subprocess.Popen[bytes]) -> None:
    size = 0
    with suppress(OSError, ValueError):
        while part := stream.read1(_CHUNK):  # type: ignore[attr-defined]
            size += len(part)
            if size > _LOUD_BYTES:
                loud.set()
                assert process.stdin is not None
                with suppress(OSError):
                    process.stdin.close()
                process.kill()
                return
            into.append(part)
