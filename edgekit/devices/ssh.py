"""A device that is reached by OpenSSH's own `ssh`: the user's configuration, agent, jump hosts and known_hosts apply.

One connection and one session carry everything: files, commands and answers (see `edgekit.devices.agent`). Nothing that a user
named passes a remote shell but the interpreter's path, which is quoted.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self
from urllib.parse import unquote, urlsplit

from annotated_types import Ge, Le

from edgekit.devices.code import copy_runtimes
from edgekit.devices.device import Facts, Finished, cannot_write
from edgekit.devices.link import Address, Link, connect
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.schema import parse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from edgekit.devices.agent import Entry

_CHUNK = 1 << 20
# What the device may need beyond a command's own time, to end it and to send what it said.
_GRACE_S = 60.0
_DESCRIBE = "import json\nfrom edgekit.runtimes.machine import describe\nprint(json.dumps(describe()))"


@dataclass(frozen=True, kw_only=True)
class SshOptions:
    """`[device]` of a target that is reached over SSH.

    host: a name or address, or an alias of ssh's configuration; user and port: where that does not say them. python: the
    interpreter there, with NumPy and the engine; without it the one that `edgekit devices setup` made, else python3.
    """

    kind: Literal["ssh"]
    host: str
    user: str | None = None
    port: Annotated[int, Ge(1), Le(65535)] | None = None
    python: str | None = None


class SshDevice:
    """A machine behind sshd; connected when it is first asked for something, and ours alone until it is closed."""

    Options: ClassVar[type[DataclassInstance]] = SshOptions
    REMOTE: ClassVar[bool] = True
    PROBE: ClassVar[str] = "python"

    def __init__(self, table: Mapping[str, object], where: str = "device") -> None:
        options = parse(SshOptions, dict(table), where)
        _check_word(options.host, f"{where}.host")
        if options.user is not None:
            _check_word(options.user, f"{where}.user")
        self._options = options
        self._address = Address(host=options.host, user=options.user, port=options.port)
        self._opened: tuple[Link, Mapping[str, object]] | None = None
        self.sent_bytes = 0

    @property
    def identity(self) -> str:
        """Its address as the user wrote it."""
        return str(self._address)

    @property
    def work(self) -> str:
        """The session's folder there."""
        return str(self._session[1]["work"])

    @property
    def python(self) -> str:
        """The interpreter that the target names, else that of `edgekit devices setup`, else python3."""
        return self._options.python or str(self._session[1]["python"] or "python3")

    @property
    def interpreter(self) -> str:
        """The system's own interpreter, or the one that the target names: what makes an environment."""
        return self._options.python or "python3"

    @property
    def venv(self) -> str:
        """Where `edgekit devices setup` makes its environment."""
        return str(self._session[1]["venv"])

    @property
    def hello(self) -> Mapping[str, object]:
        """What the interpreter there is: python, implementation, arch, libc ("glibc 2.36")."""
        return self._link.hello

    @property
    def _session(self) -> tuple[Link, Mapping[str, object]]:
        if self._opened is None:
            owner = f"{getpass.getuser()}@{socket.gethostname()} (process {os.getpid()})"
            self._opened = connect(self._address, self._options.python or "python3", owner)
        return self._opened

    @property
    def _link(self) -> Link:
        return self._session[0]

    def push(self, folder: Path) -> str:
        """Bring a folder's files there, unless they are there; what an earlier session sent of them is not sent again.

        Raises DeviceFailed where the folder is not there, where the link ends, and where the device has no room.
        """
        if not folder.is_dir():
            raise DeviceFailed(f"{folder}: no such folder to send to {self.identity}")
        files = list_files(folder)
        name = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        there = self._link.ask({"do": "push", "name": name, "files": files}, within_s=_GRACE_S * 10).facts
        if not there["there"]:
            have = there["have"]
            assert isinstance(have, list)
            for entry, (size, digest) in zip(files, have, strict=True):
                self._send(folder / entry[0], entry, int(size), str(digest))
            self._link.receive(within_s=_GRACE_S * 10)
        return str(there["path"])

    def _send(self, path: Path, entry: Entry, there: int, digest: str) -> None:
        """Send a file, or the rest of it where the device has its beginning."""
        size = entry[1]
        with path.open("rb") as stream:
            begin = there if there <= size and _digest_of(stream.read(there)) == digest else 0
            stream.seek(begin)
            self._link.send_request({"begin": begin})
            left = size - begin
            while left:
                part = stream.read(min(left, _CHUNK))
                if not part:
                    self.close()
                    raise DeviceFailed(f"{path}: became shorter while it was sent; run the same command again")
                self._link.send(part)
                self.sent_bytes += len(part)
                left -= len(part)

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        """Run a command in `work` there; the device stops it after `timeout_s`, and when the link ends."""
        frame = self._link.ask(
            {"do": "run", "command": list(command), "env": dict(env or {}), "timeout_s": timeout_s},
            within_s=timeout_s + _GRACE_S,
        )
        facts = frame.facts
        if "cannot" in facts:
            raise DeviceFailed(f"{self.identity}: {command[0]}: cannot be started: {facts['cannot']}")
        if "late" in facts:
            raise DeviceFailed(f"{self.identity}: {command[0]}: no end after {timeout_s:g} s; it was stopped")
        if "loud" in facts:
            raise DeviceFailed(f"{self.identity}: {command[0]}: said more than a probe can have to say; it was stopped")
        split, code = facts["stdout"], facts["returncode"]
        assert isinstance(split, int) and isinstance(code, int)  # noqa: PT018
        return Finished(
            returncode=code,
            stdout=frame.payload[:split].decode("utf-8", errors="replace"),
            stderr=frame.payload[split:].decode("utf-8", errors="replace"),
        )

    def fetch(self, path: str, out: Path) -> None:
        """Copy a folder, whose path is relative to `work` or absolute, into `out`, which gets all of it or nothing."""
        facts = self._link.ask({"do": "fetch", "path": path}).facts
        if "none" in facts:
            raise DeviceFailed(
                f"{self.identity}: {facts['none']}: no such folder; the command that should have made it did not"
            )
        count = facts["count"]
        assert isinstance(count, int)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".edgekit-", dir=out.parent) as scratch:
                for _ in range(count):
                    self._receive(Path(scratch))
                shutil.copytree(scratch, out, dirs_exist_ok=True)
        except OSError as failed:
            raise cannot_write(out, failed) from failed

    def _receive(self, folder: Path) -> None:
        """The next file of a folder that the device sends."""
        frame = self._link.receive(within_s=_GRACE_S * 10)
        name = PurePosixPath(str(frame.facts["file"]))
        if name.is_absolute() or ".." in name.parts or _digest_of(frame.payload) != frame.facts["sha256"]:
            self.close()
            raise DeviceFailed(
                f"{self.identity}: {name}: arrived with another sha256 than it was sent with; run the same command again"
            )
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(frame.payload)

    def facts(self) -> Facts:
        """What `edgekit.runtimes.machine` tells of the device, by the code that is pushed there."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
            copy_runtimes(Path(scratch))
            code = self.push(Path(scratch))
        ended = self.run([self.python, "-c", _DESCRIBE], timeout_s=120, env={"PYTHONPATH": code})
        try:
            facts = json.loads(ended.stdout)
        except ValueError:
            facts = None
        if ended.returncode != 0 or not isinstance(facts, dict):
            last = (ended.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
            raise DeviceFailed(
                f"{self.identity}: does not say what it is (exit code {ended.returncode}: {last[:300]}); is {self.python} there a"
                " Python 3.11 or newer? run: edgekit devices setup"
            )
        return facts

    def clean(self) -> int:
        """Delete everything that edgekit has on the device; the bytes that it took there."""
        freed = self._link.ask({"do": "clean"}).facts["freed"]
        assert isinstance(freed, int)
        return freed

    def close(self) -> None:
        """End the session: its work is removed, the device is free."""
        if self._opened is not None:
            self._opened[0].close()
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ssh_table(url: str) -> dict[str, object]:
    """The `[device]` table of `ssh://[user@]host[:port]`.

    Raises EdgekitError for what is no such address, and for one with a password in it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as bad:
        raise EdgekitError(f"{url}: {bad}; write it as ssh://user@host or ssh://user@host:port") from bad
    if parts.password is not None:
        raise EdgekitError(
            "a password does not belong in an address: every user of this machine could read it; run ssh-copy-id once, so that"
            " a key opens the device"
        )
    if parts.scheme != "ssh" or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise EdgekitError(f"{url}: not a device's address; write it as ssh://user@host or ssh://user@host:port")
    # urlsplit writes a host in small letters; an alias of ssh's configuration has capitals.
    authority = parts.netloc.rpartition("@")[2]
    host = parts.hostname if authority.startswith("[") else authority.partition(":")[0]
    table: dict[str, object] = {"kind": "ssh", "host": unquote(host)}
    if parts.username:
        table["user"] = unquote(parts.username)
    if port is not None:
        table["port"] = port
    return table


def list_files(folder: Path) -> list[Entry]:
    """The files of a folder with their bytes, sha256 and whether they are executable, sorted by path."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                for part in iter(lambda: stream.read(_CHUNK), b""):
                    digest.update(part)
            status = path.stat()
            name = path.relative_to(folder).as_posix()
            found.append((name, status.st_size, digest.hexdigest(), bool(status.st_mode & 0o100)))
    return found


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_word(word: str, where: str) -> None:
    """Refuse what ssh would take for an option or its configuration for a command: it is a name, not a shell's text."""
    if not re.fullmatch(r"[\w.:%+][\w.:%+-]*", word):
        raise EdgekitError(f"{where}: {word!r}: not a name; use letters, digits, '.', '-', '_', ':' and '%'")
