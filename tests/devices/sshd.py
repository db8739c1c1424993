"""A real sshd on loopback with keys of its own, and an `ssh` first on PATH that knows how to reach it.

The user's own keys, configuration and known_hosts are neither read nor written.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = "/usr/sbin/sshd"
HOST = "stand-in"
_CONFIG = """\
Host {host}
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/key
Host *
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
"""
_SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {keys}
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
SetEnv {variables}
"""


@dataclass(frozen=True, kw_only=True)
class Reachable:
    """A device that a test can reach: `folder` has its keys, `commands` the `ssh` that finds it by the name `stand-in`."""

    folder: Path
    port: int
    python: str
    home: Path | None
    """The home folder of its user, where this machine sees it."""

    @property
    def commands(self) -> Path:
        return self.folder / "bin"

    @property
    def url(self) -> str:
        return f"ssh://{HOST}"

    def table(self, **more: object) -> dict[str, object]:
        """A target's `[device]` table."""
        return {"kind": "ssh", "host": HOST, "python": self.python, **more}

    def own_files(self) -> list[Path]:
        """What edgekit has on the device."""
        assert self.home is not None
        return sorted((self.home / ".cache" / "edgekit").rglob("*"))

    def processes(self) -> list[int]:
        """What runs on the device for its user: all has its home folder, but for sshd itself."""
        mark = f"HOME={self.home}".encode()
        found = []
        for process in filter(str.isdecimal, os.listdir("/proc")):
            try:
                if mark in Path("/proc", process, "environ").read_bytes().split(b"\0"):
                    found.append(int(process))
            except OSError:
                continue
        return found


def lay_keys(folder: Path, *, user: str, environment: Mapping[str, str], authorized: Path | None = None) -> int:
    """Fill a folder with keys, known_hosts, the configurations of both sides and an `ssh` that takes them; the port."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    shutil.copyfile(folder / "key.pub", folder / "authorized_keys")
    variables = " ".join(f'"{name}={value}"' for name, value in environment.items())
    keys = authorized or folder / "authorized_keys"
    (folder / "sshd.conf").write_text(_SSHD_CONFIG.format(port=port, folder=folder, keys=keys, variables=variables))
    (folder / "ssh.conf").write_text(_CONFIG.format(host=HOST, port=port, user=user, folder=folder))
    (folder / "bin").mkdir()
    shim = folder / "bin" / "ssh"
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh.conf "$@"\n')
    shim.chmod(0o755)
    return port


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when something listens on a port of loopback; fail with the server's log where it ends before."""
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail(f"sshd does not listen: {log.read_text(errors='replace')[-2000:]}")


def need_sshd() -> None:
    """Skip where there is no sshd and none can be installed."""
    if not os.path.exists(SSHD):
        install("openssh-server")
    if not os.path.exists(SSHD) or shutil.which("ssh") is None:
        pytest.skip("there is no OpenSSH here, and it can only be installed by root with apt-get")


def install(*packages: str) -> None:
    """Install Debian packages where this user may, one worker after the other; without a word where not."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    from filelock import FileLock

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests"
    cache.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with FileLock(cache / "apt.lock"):
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, timeout=300, check=False)


@contextmanager
def native(folder: Path) -> Iterator[Reachable]:
    """This machine behind an sshd of its own, with an empty home folder; all that it started is gone at the end."""
    with startable(folder) as (reachable, _):
        yield reachable


@contextmanager
def startable(folder: Path) -> Iterator[tuple[Reachable, Server]]:
    """The same, with the server, that a test may end and start again."""
    need_sshd()
    home = folder / "home"
    home.mkdir(parents=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd lays down its rights
    user = os.environ.get("USER", "root") if os.geteuid() else "root"
    environment = {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    port = lay_keys(folder / "ssh", user=user, environment=environment)
    server = Server(folder, port)
    server.start()
    try:
        yield Reachable(folder=folder / "ssh", port=port, python=sys.executable, home=home), server
    finally:
        server.end()


class Server:
    """An sshd on loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, boot: str | None = None) -> None:
        """Start it; boot: what Linux calls its time since it was started, for all that is behind this sshd (needs root)."""
        command = [SSHD, "-D", "-e", "-f", str(self._folder / "ssh" / "sshd.conf")]
        if boot is not None:
            (self._folder / "boot").write_text(f"{boot}\n", encoding="ascii")
            script = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, "sh", str(self._folder / "boot"), *command]
        log = self._folder / "sshd.log"
        with log.open("wb") as stream:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream, start_new_session=True)
        wait_for(self._port, self._process, log)

    def end(self) -> None:
        """Kill it with all that it started, as when a machine's power goes."""
        assert self._process is not None
        for process in [*descendants(self._process.pid), self._process.pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()


def descendants(parent: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(of) for pid, of in map(str.split, listed.splitlines())}
    found = [parent]
    for process in found:
        found += [pid for pid, of in parents.items() if of == process]
    return found[1:]
