"""The link to a remote device: one `ssh` process, the agent at its end (`edgekit.devices.agent`), and frames between them."""

from __future__ import annotations

import json
import queue
import shlex
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices import agent
from edgekit.errors import DeviceFailed
from edgekit.inputs import Json

# BatchMode: nobody is there to be asked. The host's key is checked whatever the user's configuration says; all else in it
# applies. An existing shared connection is used; none is left behind. A link that is silent for 45 s is lost.
_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "ControlMaster": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "LogLevel": "ERROR",
}
# Reads the agent's source, whose length in bytes comes first, from standard input and runs it.
_BOOT = "import os;r=lambda n,b=b'':b if len(b)>=n else r(n,b+(os.read(0,n-len(b)) or exit(1)));exec(r(int(r(8))))"
_GREETING_S = 60.0
# Of the question, once a link is lost, how the device is now: seconds to connect, and to be greeted.
_AGAIN_S, _AGAIN_GREETING_S = 5, 15.0
# A login script may say something before the agent does.
_LEAST_GREETING = 1 << 20
_CHUNK = 1 << 20
# What ssh says on standard error -> what is wrong, and what to do; {where} is the device, {host} what ssh knows it by.
_REFUSALS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is not the one that this machine knows: another machine answers"
    " there, or the system was installed anew; if you know why, run: ssh-keygen -R {host}, then: ssh {host}",
    "Host key verification failed": "its host key is not known to this machine; compare it once by hand, run: ssh {host}",
    "Permission denied": "it refuses this user or key, and nobody is asked for a password; run: ssh-copy-id {host}",
    "Could not resolve hostname": "this name is not known on the network; check its spelling, or give its address",
    "Connection refused": "nothing answers there at SSH's port; is SSH switched on (on a Raspberry Pi: sudo raspi-config)?",
    "timed out": "it does not answer; is it on, and in this network?",
    "No route to host": "no way leads there; is it on, and in this network?",
    "not found": "there is no Python 3 on it; install it there (sudo apt install python3), or name it: python = in [device]",
    "No such file or directory": "there is no such Python on it; name the right one: python = in [device]",
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a device is, as ssh is told it: what is None is the user's configuration's business."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port else "")

    @property
    def arguments(self) -> list[str]:
        """The arguments of ssh that name it."""
        user = ["-l", self.user] if self.user else []
        return [*(["-p", str(self.port)] if self.port else []), *user, "--", self.host]


@dataclass(frozen=True)
class Frame:
    """What the agent said: its facts, and the bytes behind them."""

    facts: dict[str, Json]
    payload: bytes = b""


@dataclass
class Link:
    """A connection to the agent on a device, open until `close`."""

    address: Address
    python: str
    hello: dict[str, Json]
    process: subprocess.Popen[bytes]
    frames: queue.Queue[Frame | None]
    errors: list[bytes]
    collector: threading.Thread
    """Fills `errors` with the lines of standard error."""

    def ask(self, request: agent.Request, *, within_s: float = 120.0) -> Frame:
        """Send a request and wait for its answer; DeviceFailed where none comes."""
        self.send_request(request)
        return self.receive(within_s=within_s)

    def send_request(self, request: agent.Request) -> None:
        """Send a request, whose answer is not awaited."""
        content = json.dumps(request).encode()
        self.send(struct.pack(">I", len(content)) + content)

    def send(self, content: bytes) -> None:
        """Send bytes; DeviceFailed where nobody takes them."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(content)
            self.process.stdin.flush()
        except (BrokenPipeError, OSError) as broken:
            # The agent may have said why it ended.
            self.receive(within_s=5)
            raise self._lost() from broken

    def receive(self, *, within_s: float) -> Frame:
        """The next frame; DeviceFailed where the link ends before it, and for what the device cannot do."""
        try:
            frame = self.frames.get(timeout=within_s)
        except queue.Empty:
            self.process.kill()
            raise DeviceFailed(
                f"{self.address}: no answer for {within_s:g} s; the connection was closed; check the device, then run it again"
            ) from None
        if frame is None:
            raise self._lost()
        if "garbage" in frame.facts:
            self.process.kill()
            raise DeviceFailed(
                f"{self.address}: said something that is no answer: {str(frame.facts['garbage'])[:80]!r}; does a login script"
                " or another program there write to this connection?"
            )
        if "failed" in frame.facts:
            raise DeviceFailed(f"{self.address}: {_disk(frame.facts)}")
        return frame

    def _lost(self) -> DeviceFailed:
        """What is said where the link has ended; the device is asked once how it is now."""
        reason = self._last_words()
        lost = f"{self.address}: the connection was lost{f' ({reason})' if reason else ''}"
        again = "run the same command again: it goes on from what is there"
        try:
            now = _start(self.address, self.python, connect_s=_AGAIN_S, greeting_s=_AGAIN_GREETING_S)
        except DeviceFailed as silent:
            why = silent.message.removeprefix(f"{self.address}: ").partition(";")[0]
            return DeviceFailed(f"{lost}, and it cannot be reached now ({why}); when it is back, {again}")
        now.close()
        if now.hello.get("boot") != self.hello.get("boot"):
            return DeviceFailed(
                f"{lost}: the device was restarted meanwhile, and nothing of the run is left there; look at its power supply and"
                f" its log if nobody did that, then {again}"
            )
        return DeviceFailed(f"{lost}; nothing there goes on running; {again}")

    def _last_words(self) -> str:
        """What ssh said last."""
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.collector.join(timeout=5)
        lines = b"".join(self.errors).decode("utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """End the agent, which removes its work and releases the device, and wait for that."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def connect(address: Address, python: str, owner: str) -> tuple[Link, dict[str, Json]]:
    """A link to a device that is ours until it is closed, and what the agent says of its folders.

    Raises DeviceFailed where it cannot be reached, is somebody else's now, or is no device for edgekit: of 32 bits, or with a
    Python older than 3.11.
    """
    link = _start(address, python)
    try:
        _check_hello(link)
        opened = link.ask({"do": "open", "owner": owner}).facts
    except DeviceFailed:
        link.close()
        raise
    if "locked" in opened:
        link.close()
        raise DeviceFailed(
            f"{address}: in use by {opened['locked'] or 'another edgekit'}; wait until it ends, or end that process"
        )
    return link, opened


def _start(address: Address, python: str, *, connect_s: int | None = None, greeting_s: float = _GREETING_S) -> Link:
    """A link to an agent that holds nothing there yet; within so many seconds, where that is less than ever."""
    limits = {} if connect_s is None else {"ConnectTimeout": str(connect_s)}
    options = [word for key, value in (_OPTIONS | limits).items() for word in ("-o", f"{key}={value}")]
    command = ["ssh", "-T", *options, *address.arguments, f"exec {shlex.join([python, '-c', _BOOT])}"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as failed:
        raise DeviceFailed(
            f"{address}: ssh cannot be started ({failed.strerror}): install OpenSSH's client on this machine"
        ) from failed
    errors: list[bytes] = []
    frames: queue.Queue[Frame | None] = queue.Queue()
    collector = threading.Thread(target=_collect, args=(process, errors), daemon=True)
    collector.start()
    threading.Thread(target=_listen, args=(process, frames), daemon=True).start()
    link = Link(
        address=address, python=python, hello={}, process=process, frames=frames, errors=errors, collector=collector
    )
    source = Path(agent.__file__).read_bytes()
    assert process.stdin is not None
    # Where it takes nothing, ssh says why; that is read below.
    with suppress(OSError):
        process.stdin.write(b"%8d" % len(source) + source)
        process.stdin.flush()
    try:
        hello = frames.get(timeout=greeting_s)
    except queue.Empty:
        hello = None
        process.kill()
    if hello is None or "garbage" in hello.facts:
        raise DeviceFailed(f"{address}: {_refusal(link)}")
    link.hello.update(hello.facts)
    return link


def _refusal(link: Link) -> str:
    """Why no agent answered: what ssh or the shell there said of it."""
    last = link._last_words()
    text = b"".join(link.errors).decode("utf-8", errors="replace")
    port = f" -p {link.address.port}" if link.address.port else ""
    user = f"{link.address.user}@" if link.address.user else ""
    for sign, reason in _REFUSALS.items():
        if sign in text:
            return reason.format(host=f"{user}{link.address.host}{port}")
    return f"Python did not start there ({last or f'exit code {link.process.returncode}, and nothing said'})"


def _check_hello(link: Link) -> None:
    """Refuse a device that no engine is made for."""
    hello = link.hello
    if hello.get("bits") != 64 or str(hello.get("arch")).startswith(("armv6", "armv7", "i386", "i686")):
        raise DeviceFailed(
            f"{link.address}: a system of 32 bits ({hello.get('arch')}), for which there is no onnxruntime; install the 64-bit"
            " system (Raspberry Pi OS 64-bit)"
        )
    version = str(hello.get("python", "0.0")).split(".")
    if [int(part) for part in version[:2]] < [3, 11]:
        raise DeviceFailed(
            f"{link.address}: Python {hello.get('python')}, too old: 3.11 is needed; install a newer one there and name it:"
            " python = in [device]"
        )


def _disk(facts: dict[str, Json]) -> str:
    """What the device could not do with its files, and the remedy."""
    path, reason = facts.get("path") or "its disk", facts.get("failed")
    remedies = {
        28: "free space there, or run: edgekit devices clean",
        122: "free space there, or run: edgekit devices clean",
        30: "make it writable there: edgekit keeps its files in ~/.cache/edgekit",
        13: "make it writable for this user there: edgekit keeps its files in ~/.cache/edgekit",
        0: "run the same command again",
    }
    errno = facts.get("errno")
    remedy = remedies.get(errno if isinstance(errno, int) else -1, "look at the disk there")
    return f"{path}: {reason}; {remedy}"


def _collect(process: subprocess.Popen[bytes], errors: list[bytes]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        # The last words count.
        errors.append(line)
        del errors[:-200]


def _listen(process: subprocess.Popen[bytes], frames: queue.Queue[Frame | None]) -> None:
    """Put what the agent says into a queue, None at its end; what comes before its greeting is a login script's."""
    stream = process.stdout
    assert stream is not None
    skipped = 0
    for line in iter(stream.readline, b""):
        skipped += len(line)
        if line.startswith(agent.GREETING):
            frames.put(_parsed(line[len(agent.GREETING) :]))
            break
        if skipped > _LEAST_GREETING:
            break
    for line in iter(stream.readline, b""):
        frame = _parsed(line)
        size = frame.facts.get("bytes", 0)
        payload = stream.read(size) if isinstance(size, int) else b""
        if isinstance(size, int) and len(payload) < size:
            break
        frames.put(Frame(frame.facts, payload))
    frames.put(None)


def _parsed(line: bytes) -> Frame:
    try:
        facts = json.loads(line)
    except ValueError:
        facts = None
    return Frame(facts if isinstance(facts, dict) else {"garbage": line.decode("utf-8", errors="replace")})
