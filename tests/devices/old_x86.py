"""An emulated x86-64 machine with AVX2 and without VNNI behind a real sshd: this system's own programs, run by qemu.

qemu emulates no AVX-512 and no AVX-VNNI, so onnxruntime takes the kernels that add pairs of products in 16 bits. /proc/cpuinfo
would still show this machine's CPU: in a mount namespace of its own it shows what qemu executes.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from tests.devices.emulated import QEMU_SUITE, _apt, _run, need_board, platform_architecture
from tests.devices.sshd import Reachable, native

# Of this machine's own text all but what qemu does not execute.
_ABSENT = re.compile(r"\b(avx512\w*|avx_vnni\w*|avx_ifma|avx_ne_convert|amx_\w+|gfni|vaes|vpclmulqdq|sha_ni)\b ?")
_MODEL = "Emulated x86-64 with AVX2, without VNNI"


def qemu() -> Path:
    """qemu's program for x86-64, from the package that the boards' is from, kept in the user's cache."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests" / "qemu-x86_64"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not kept.is_file():
            scratch = kept.with_name("qemu-x86_64.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            apt = _apt(scratch / "apt", QEMU_SUITE, platform_architecture())
            _run([*apt, "-t", QEMU_SUITE, "download", "qemu-user"], cwd=scratch / "apt")
            (package,) = (scratch / "apt").glob("qemu-user_*.deb")
            _run(["dpkg-deb", "--extract", package, scratch / "unpacked"])
            (scratch / "unpacked/usr/bin/qemu-x86_64").rename(kept)
            shutil.rmtree(scratch)
    return kept


def old_python(folder: Path) -> Path:
    """This Python, run by such a machine, as a program in a new folder; skips where none can be."""
    need_board()
    if platform_architecture() != "amd64":
        pytest.skip("an emulated x86-64 machine needs an x86-64 system")
    folder.mkdir(parents=True)
    told = _ABSENT.sub("", Path("/proc/cpuinfo").read_text())
    (folder / "cpuinfo").write_text(re.sub(r"^(model name\s*:).*$", rf"\1 {_MODEL}", told, flags=re.MULTILINE))
    python = folder / "python"
    inner = f'mount --bind {folder}/cpuinfo /proc/cpuinfo && exec {qemu()} -cpu max {sys.executable} "$@"'
    python.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{inner}' sh \"$@\"\n")
    python.chmod(0o755)
    return python


@contextmanager
def old_x86(folder: Path) -> Iterator[Reachable]:
    """Such a machine, reached as `Reachable` says, until the block ends; skips where none can be."""
    python = old_python(folder)
    with native(folder / "native") as reachable:
        yield replace(reachable, python=str(python))
