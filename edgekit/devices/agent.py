"""What runs on a remote device while edgekit works there. Its source is sent over SSH; nothing is installed.

It needs Python 3 and the standard library, and imports nothing of ours. It speaks frames on standard input and output: a line of
JSON and, where that has `bytes`, so many bytes behind it. First it says GREETING and what the device is; then it answers each
request. When its input ends, because the link was cut or edgekit ended, it kills what it started and releases the device.

Its files are in `~/.cache/edgekit`: `folders/<sha256>` are what was pushed, named by their content (`.partial` while they
arrive), `work` is one session's, `venv` is what `edgekit devices setup` makes, and `lock` is held while a session lasts
(flock(2): the system releases it when the process ends, however that ends).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # For type checkers only: an old Python must be able to say that it is too old.
    from collections.abc import Callable
    from typing import NoReturn, TypedDict

    from edgekit.inputs import Json

    Reply = dict[str, Json]
    Entry = tuple[str, int, str, bool]
    """A file of a folder: its path there, bytes, sha256, and whether it is executable."""

    class Request(TypedDict, total=False):
        """What is asked: `do` names the function, the rest are its arguments."""

        do: str
        owner: str
        name: str
        files: list[Entry]
        command: list[str]
        env: dict[str, str]
        timeout_s: float
        path: str
        begin: int


VERSION = 1
GREETING = b"EDGEKIT-AGENT "
_CHUNK = 1 << 20
# What nobody has used for so long is deleted.
_KEPT_S = 30 * 86400
# A probe's lines are a few MB; what says more than this is not one.
_LOUD_BYTES = 64 << 20
_ROOT = os.path.join(os.path.expanduser("~"), ".cache", "edgekit")
_FOLDERS = os.path.join(_ROOT, "folders")
_WORK = os.path.join(_ROOT, "work")
_VENV = os.path.join(_ROOT, "venv")
# prctl(2), linux/prctl.h
_PR_SET_PDEATHSIG = 1


class Ended(Exception):
    """Standard input ended, or the session is to end."""


def main() -> None:
    """Answer requests until the input ends."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _end)
    facts: Reply = {"version": VERSION, "arch": platform.machine(), "bits": 8 * struct.calcsize("P")}
    facts.update(python=platform.python_version(), implementation=sys.implementation.name)
    facts.update(libc=" ".join(platform.libc_ver()), executable=sys.executable, boot=_boot())
    os.write(1, b"\n" + GREETING + json.dumps(facts).encode() + b"\n")
    locked: list[int] = []
    try:
        while True:
            request = _request()
            try:
                if request["do"] == "open":
                    locked.append(_open(request))
                else:
                    DO[request["do"]](request)
            except OSError as failed:
                _answer({"failed": failed.strerror, "errno": failed.errno, "path": str(failed.filename or "")})
                if request["do"] in {"open", "push"}:
                    raise Ended from failed
    except (Ended, BrokenPipeError):
        if locked:
            shutil.rmtree(_WORK, ignore_errors=True)


def _boot() -> str | None:
    """What Linux calls the time since it was started (random(4)); None elsewhere."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return None


def _end(_number: int, _frame: object) -> NoReturn:
    raise Ended


def _read(size: int) -> bytes:
    """Exactly so many bytes of standard input."""
    parts = []
    while size:
        part = os.read(0, min(size, _CHUNK))
        if not part:
            raise Ended
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _request() -> Request:
    """The next line of standard input; what is behind it stays unread."""
    (size,) = struct.unpack(">I", _read(4))
    request: Request = json.loads(_read(size).decode())
    return request


def _answer(reply: Reply, *payload: bytes) -> None:
    content = b"".join(payload)
    left = memoryview(json.dumps({**reply, "bytes": len(content)}).encode() + b"\n" + content)
    while left:
        left = left[os.write(1, left) :]


def _open(request: Request) -> int:
    """Take the device, or say who has it; the lock's file."""
    import fcntl  # which Windows lacks, where this module is only read

    os.makedirs(_FOLDERS, mode=0o700, exist_ok=True)
    lock = os.open(os.path.join(_ROOT, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _answer({"locked": os.read(lock, 4096).decode(errors="replace")})
        raise Ended from None
    os.ftruncate(lock, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
    os.pwrite(lock, "{} since {}, process {} there".format(request["owner"], since, os.getpid()).encode(), 0)
    shutil.rmtree(_WORK, ignore_errors=True)
    os.mkdir(_WORK)
    try:
        with open(os.path.join(_VENV, "site"), encoding="utf-8") as stream:
            for path in stream.read().splitlines():
                os.utime(path)
    except OSError:
        pass
    for name in os.listdir(_FOLDERS):
        path = os.path.join(_FOLDERS, name)
        if time.time() - os.stat(path).st_mtime > _KEPT_S:
            shutil.rmtree(path, ignore_errors=True)
    python = os.path.join(_VENV, "bin", "python")
    _answer({"work": _WORK, "venv": _VENV, "python": python if os.path.exists(python) else None})
    return lock


def _push(request: Request) -> None:
    """Take a folder that is not there yet, going on where an earlier session was cut."""
    whole = os.path.join(_FOLDERS, request["name"])
    if os.path.isdir(whole):
        os.utime(whole)
        _answer({"path": whole, "there": True})
        return
    partial, files = whole + ".partial", request["files"]
    try:
        os.makedirs(partial, exist_ok=True)
        _answer({"path": whole, "there": False, "have": [_prefix(os.path.join(partial, name)) for name, *_ in files]})
        for entry in files:
            _take(partial, entry)
        # What a power cut leaves must be whole, too.
        os.sync()
        os.rename(partial, whole)
    except OSError:
        # What has no room must not go on taking it.
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _answer({"path": whole})


def _take(folder: str, entry: Entry) -> None:
    name, size, wanted, executable = entry
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    begin = _request()["begin"]
    digest = hashlib.sha256()
    with open(path, "r+b" if begin else "wb") as stream:
        left = begin
        while left:
            part = stream.read(min(left, _CHUNK))
            digest.update(part)
            left -= len(part)
        left = size - begin
        while left:
            part = _read(min(left, _CHUNK))
            stream.write(part)
            stream.flush()
            digest.update(part)
            left -= len(part)
        stream.truncate()
    os.chmod(path, 0o700 if executable else 0o600)
    if digest.hexdigest() != wanted:
        os.unlink(path)
        raise OSError(0, "arrived with another sha256 than it was sent with", name)


def _prefix(path: str) -> list[Json]:
    """How many bytes of a file are there, and their sha256."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as stream:
            for part in iter(lambda: stream.read(_CHUNK), b""):
                digest.update(part)
                size += len(part)
    except FileNotFoundError:
        pass
    return [size, digest.hexdigest()]


def _run(request: Request) -> None:
    """Run a command and wait for its end, for the deadline or for the end of the link; nothing that it started goes on."""
    wakes, woken = os.pipe()
    for end in (wakes, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    before = signal.set_wakeup_fd(woken)
    try:
        child = subprocess.Popen(
            request["command"],
            cwd=_WORK,
            env={**os.environ, **request["env"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_first,  # noqa: PLW1509 - the agent has one thread
        )
    except OSError as failed:
        _answer({"cannot": failed.strerror or str(failed)})
        return
    try:
        reply, said = _await(child, wakes, time.monotonic() + request["timeout_s"])
    finally:
        signal.set_wakeup_fd(before)
        with suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        os.close(wakes)
        os.close(woken)
    _answer({**reply, "stdout": len(said[0])}, *said)


def _die_first() -> None:
    """Of a command: die with the agent, and before it where memory is short."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
            stream.write("1000")
    except (OSError, AttributeError):
        return


def _await(child: subprocess.Popen[bytes], wakes: int, end: float) -> tuple[Reply, tuple[bytes, bytes]]:
    """How a command ended, and what it said on both streams."""
    assert child.stdout is not None and child.stderr is not None  # noqa: PT018
    streams: dict[int, list[bytes]] = {child.stdout.fileno(): [], child.stderr.fileno(): []}
    waiting, said = [*streams], 0

    def texts() -> tuple[bytes, bytes]:
        out, err = streams.values()
        return b"".join(out), b"".join(err)

    while True:
        ended = child.poll()
        # Where it has ended, only what is in the pipes is of interest: who else holds them may live for long.
        rest = 0.0 if ended is not None else end - time.monotonic()
        if rest < 0:
            return {"late": True}, texts()
        ready = select.select([0, wakes, *waiting], [], [], rest)[0]
        for pipe in [*ready]:
            if pipe == 0:
                raise Ended
            part = os.read(pipe, _CHUNK)
            if pipe == wakes:
                continue
            if not part:
                waiting.remove(pipe)
            streams[pipe].append(part)
            said += len(part)
        if said > _LOUD_BYTES:
            return {"loud": True}, (b"", b"")
        if ended is not None and not {*ready} & {*waiting}:
            return {"returncode": ended}, texts()


def _fetch(request: Request) -> None:
    """Give a folder, each file in a frame of its own."""
    top = os.path.join(_WORK, request["path"])
    if not os.path.isdir(top):
        _answer({"none": top})
        return
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in sorted(names)]
    _answer({"count": len(paths)})
    for path in paths:
        with open(path, "rb") as stream:
            content = stream.read()
        _answer({"file": os.path.relpath(path, top), "sha256": hashlib.sha256(content).hexdigest()}, content)


def _clean(_request: Request) -> None:
    """Delete all that edgekit has on the device."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(_ROOT) for name in names]
    freed = sum(os.lstat(path).st_size for path in paths)
    shutil.rmtree(_ROOT)
    _answer({"freed": freed})


DO: dict[str, Callable[[Request], None]] = {"push": _push, "run": _run, "fetch": _fetch, "clean": _clean}


if __name__ == "__main__":
    main()
