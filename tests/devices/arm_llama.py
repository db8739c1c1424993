"""libllama for 64-bit ARM, cross-compiled once by edgekit's own command and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from edgekit.devices import libllama
from tests.devices.sshd import install

# Compiling is what it costs here; what it computes is the same.
FASTER = ("-DCMAKE_C_FLAGS_RELEASE=-O1", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
COMPILERS = ("gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu")


@cache
def arm_library(variant: str = "armv8-a") -> Path:
    """A folder with it, compiled by whoever asks first (two minutes of one core); skips where no cross compiler can be had."""
    named = os.environ.get("EDGEKIT_TEST_CACHE")
    cached = (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests"
    )
    recipe = f"{libllama.SETTINGS}{libllama.CROSS}{FASTER}{libllama.version()}"
    folder = cached / f"libllama-{variant}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            if shutil.which("aarch64-linux-gnu-g++") is None:
                install(*COMPILERS)
            if shutil.which("aarch64-linux-gnu-g++") is None:
                pytest.skip("no cross compiler for 64-bit ARM, and it cannot be installed here")
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            libllama.cross_build(partial, variant=variant, more=FASTER)
            partial.rename(folder)
    return folder
