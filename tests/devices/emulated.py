"""An emulated aarch64 board behind a real sshd: Debian's own arm64 programs, run by qemu with the CPU of a Raspberry Pi 4 or 5.

Its root file system is made once (`root_file_system`) and kept in the user's cache, named by what it is made of. A board is this
file run as a program in namespaces of its own: it mounts a layer over the root file system, so that what a test writes is gone
with the board, and registers qemu for aarch64 there only. It ends when its standard input does, so it cannot outlive the tests.

Needs root on Linux 6.7 or newer (a binfmt_misc of a user namespace) and Debian's packages. Skips elsewhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

SUITE, QEMU_SUITE, PYTHON = "bookworm", "bookworm-backports", "3.11"
# A Raspberry Pi's own system has more; these are what edgekit needs, a shell, and what a shell needs.
PACKAGES = ["libc6", "libc-bin", "dash", "bash", "coreutils", "python3", "libgomp1", "libstdc++6", "procps"]
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# An ELF file of 64 bits, little-endian, for machine 183 (elf.h: EM_AARCH64), as qemu's own configuration registers it.
_MAGIC = r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_ROOT = "/mnt"
_NEWNS, _NEWIPC, _NEWUSER, _NEWPID = 0x20000, 0x8000000, 0x10000000, 0x20000000
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\npi:x:1000:1000::/home/pi:/bin/bash\n",
    "group": "root:x:0:\npi:x:1000:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost\n",
}


def root_file_system() -> Path:
    """The folder of the board's root file system and of `qemu`, made where it is not in the cache: about half a minute."""
    recipe = Path(__file__).read_text(encoding="utf-8").partition("\ndef start_board")[0]
    name = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests"
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / f"board-{name}"
    from filelock import FileLock

    with FileLock(cache / "board.lock"):
        if not made.is_dir():
            partial = cache / f"board-{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _unpack_qemu(partial)
            _unpack_root(partial)
            shutil.rmtree(partial / "apt")
            partial.rename(made)
            for old in cache.glob("board-*"):
                if old != made:
                    shutil.rmtree(old, ignore_errors=True)
    return made


def _unpack_qemu(folder: Path) -> None:
    """qemu 10's static program: older ones show the host's /proc/cpuinfo, with which onnxruntime crashes."""
    apt = _apt(folder / "apt" / "qemu", QEMU_SUITE, platform_architecture())
    _run([*apt, "-t", QEMU_SUITE, "download", "qemu-user"], cwd=folder / "apt" / "qemu")
    (package,) = (folder / "apt" / "qemu").glob("qemu-user_*.deb")
    _run(["dpkg-deb", "--extract", package, folder / "apt" / "unpacked"])
    (folder / "apt/unpacked/usr/bin/qemu-aarch64").rename(folder / "qemu")


def _unpack_root(folder: Path) -> None:
    """Debian's arm64 packages, unpacked and never configured: what their scripts would write is written here."""
    root = folder / "root"
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    apt = _apt(folder / "apt" / "root", SUITE, "arm64")
    _run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", *PACKAGES])
    for package in sorted((folder / "apt" / "root" / "archives").glob("*.deb")):
        _run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar x -C "$2" --keep-directory-symlink', "sh", package, root])
    for name in ("doc", "man", "locale", "info"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for name in ("root", "home/pi", "etc", "run", "tmp", "proc", "dev", "sys/devices/system/cpu"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "bin/sh").unlink(missing_ok=True)
    (root / "bin/sh").symlink_to("dash")
    (root / "tmp").chmod(0o1777)
    os.chown(root / "home/pi", 1000, 1000)
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)
    for name in ("possible", "present"):
        (root / "sys/devices/system/cpu" / name).write_text("0-1\n")
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == PYTHON:
        # Its interpreter then begins in half of the time: the bytecode is the same on every machine.
        library = f"usr/lib/python{PYTHON}"
        _run([sys.executable, "-m", "compileall", "-q", "-s", root, "-p", "/", root / library])


def _apt(folder: Path, suite: str, architecture: str) -> list[str | Path]:
    """apt-get with a state of its own in a folder, whose list of packages is fetched from the mirror that this machine uses."""
    sites = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]).split()
    mirror = next((site for site in sites if re.search(r"/debian/?$", site)), None)
    if mirror is None:
        pytest.skip("no mirror of Debian is configured here")
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [arch={architecture} signed-by={_KEYS}] {mirror} {suite} main\n")
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
    }
    apt: list[str | Path] = [
        "apt-get",
        "-qq",
        *(word for key, to in settings.items() for word in ("-o", f"{key}={to}")),
    ]
    _run([*apt, "update"])
    return apt


def platform_architecture() -> str:
    """This machine's, as Debian calls it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
    return done.stdout


def start_board(settings: dict[str, str]) -> None:
    """Become a board, in namespaces of its own, until standard input ends."""
    # One core: threads of llama.cpp wait for each other by turning round, for as long as the other one is emulated.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _isolate()
    if child := os.fork():
        os.waitpid(child, 0)
        return
    root, scratch = settings["root"], settings["scratch"]
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", "size=2g", "board", scratch)
    for name in ("upper", "work"):
        Path(scratch, name).mkdir()
    _mount("-t", "overlay", "-o", f"lowerdir={root},upperdir={scratch}/upper,workdir={scratch}/work", "board", _ROOT)
    _mount("-t", "proc", "proc", f"{_ROOT}/proc")
    _mount("-t", "tmpfs", "dev", f"{_ROOT}/dev")
    for name in ("null", "zero", "random", "urandom"):
        Path(_ROOT, "dev", name).touch()
        _mount("--bind", f"/dev/{name}", f"{_ROOT}/dev/{name}")
    Path(_ROOT, "dev/shm").mkdir(mode=0o1777)
    Path(_ROOT, "etc/keys").write_text(settings["key"])
    _mount("-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc")
    rule = f":edgekit-aarch64:M::{_MAGIC}:{_MASK}:{settings['qemu']}:F"
    Path("/proc/sys/fs/binfmt_misc/register").write_text(rule)
    from tests.devices.sshd import SSHD

    Path("/run/sshd").mkdir(exist_ok=True)
    subprocess.Popen([SSHD, "-D", "-e", "-f", settings["sshd"]], stdin=subprocess.DEVNULL)
    while os.read(0, 1 << 16):
        pass
    # The first process of a namespace takes all others with it.
    os._exit(0)


def _isolate() -> None:
    """Take this process, and those that it starts, into namespaces where it may mount and register what it likes."""
    libc = ctypes.CDLL(None, use_errno=True)
    (reads, writes), mine = os.pipe(), os.getpid()
    if not (mapper := os.fork()):
        os.read(reads, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{mine}/{name}").write_text("0 0 4294967295")
        os._exit(0)
    failed = libc.unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWIPC)
    os.write(writes, b"x")
    os.waitpid(mapper, 0)
    if failed:
        raise OSError(ctypes.get_errno(), "unshare")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def need_board() -> None:
    """Skip where no board can be."""
    from tests.devices.sshd import need_sshd

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("an emulated board needs root on Linux")
    version = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if version < (6, 7):
        pytest.skip(f"an emulated board needs Linux 6.7 or newer, this is {platform.release()}")
    if shutil.which("dpkg-deb") is None or not os.path.exists(_KEYS):
        pytest.skip("an emulated board is made of Debian's packages, and this is no Debian")
    need_sshd()


@contextmanager
def board(folder: Path, cpu: str = "cortex-a76") -> Iterator[Reachable]:
    """A board that is reached as `Reachable` says, until the block ends."""
    need_board()
    made = root_file_system()
    environment = {"QEMU_CPU": cpu, "OMP_NUM_THREADS": "1"}
    port = lay_keys(folder / "ssh", user="root", environment=environment, authorized=Path(_ROOT, "etc/keys"))
    config = folder / "ssh" / "sshd.conf"
    config.write_text(f"{config.read_text()}ChrootDirectory {_ROOT}\n")
    scratch = folder / "scratch"
    scratch.mkdir()
    settings = {
        "root": str(made / "root"),
        "qemu": str(made / "qemu"),
        "scratch": str(scratch),
        "sshd": str(config),
        "key": (folder / "ssh" / "authorized_keys").read_text(),
    }
    log = folder / "board.log"
    with log.open("wb") as stream:
        program = [sys.executable, "-m", "tests.devices.emulated", json.dumps(settings)]
        running = subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=stream, stderr=stream)
        try:
            wait_for(port, running, log)
            yield Reachable(folder=folder / "ssh", port=port, python="python3", home=None)
        finally:
            assert running.stdin is not None
            running.stdin.close()
            running.wait(timeout=30)


from tests.conftest import ROOT  # noqa: E402 - below what the name of the kept root file system is made of
from tests.devices.sshd import Reachable, lay_keys, wait_for  # noqa: E402

if __name__ == "__main__":
    start_board(json.loads(sys.argv[1]))
