"""The Kotlin compiler, as npm's package of it has it, kept in the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.llama_programs import made_once

_PACKAGE = "kotlin-compiler@2.4.20"


@cache
def compiler_folder() -> Path:
    """The folder of the compiler's .jar files. Skips without a JDK or npm."""
    if shutil.which("javac") is None or shutil.which("npm") is None:
        pytest.skip("there is no JDK or no npm here, and Kotlin is compiled with both")
    return made_once(_PACKAGE, _fetch)


def _fetch(made: Path) -> None:
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        command = ["npm", "pack", _PACKAGE, "--silent", "--ignore-scripts", "--pack-destination", scratch]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot fetch {_PACKAGE}: {done.stderr.strip()[:200]}")
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            archive.extractall(scratch, filter="data")
        Path(scratch, "package/lib").rename(made)


def java_home() -> Path:
    """The JDK's folder, which has jni.h."""
    compiler_folder()
    return Path(os.path.realpath(str(shutil.which("javac")))).parent.parent


def compile_kotlin(sources: Sequence[Path], out: Path) -> Sequence[str | Path]:
    """Compile to a .jar; the words that run it, before the class's name."""
    folder = compiler_folder()
    command = [
        "java",
        "-Xshare:auto",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        f"{folder}/*",
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
    ]
    done = subprocess.run(
        [*command, *sources, "-Werror", "-no-stdlib", "-classpath", folder / "kotlin-stdlib.jar", "-d", out],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ["java", "-cp", f"{out}:{folder / 'kotlin-stdlib.jar'}"]
