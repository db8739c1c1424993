"""The native probe's program for tests: built once for each of its sources' states, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest
from filelock import FileLock

from edgekit.devices import native
from edgekit.devices.native import Platform, build_probe
from edgekit.modalities.text import of_tokens
from edgekit.probes import Question
from edgekit.runtimes.request import Timing
from edgekit.state import state_folder
from edgekit.verify.measurements import pack_rows
from tests.devices.arm_llama import arm_library
from tests.devices.sshd import install

HERE = Platform(arch=platform.machine())
ARM = Platform(arch="aarch64")
# What no test has asked for in two weeks.
_OLD_S = 14 * 86400


def cached_probe(wanted: Platform) -> Path:
    """The program's folder, compiled where the cache does not have it: about ten seconds."""
    digest = hashlib.sha256(f"{metadata.version('onnxruntime')} {metadata.version('llama-cpp-python')}".encode())
    for path in sorted(Path(native.__file__).parent.rglob("*.*")):
        if path.suffix in {".py", ".h", ".cc"}:
            digest.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests"
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / f"native-{digest.hexdigest()[:16]}"
    with FileLock(cache / "native.lock"), mock.patch.dict(os.environ, EDGEKIT_STATE=str(made)):
        for old in cache.glob("native-*"):
            # Another checkout's, while it is worked on, is not ours to delete.
            if old != made and time.time() - old.stat().st_mtime > _OLD_S:
                shutil.rmtree(old, ignore_errors=True)
        if made.is_dir():
            os.utime(made)
        folder = made / "native" / str(wanted)
        if not folder.is_dir():
            need_compiler(wanted)
            # A board's llama.cpp comes from a wheel.
            build_probe(wanted, llama=arm_library() if wanted == ARM != HERE else None)
        return folder


def lay_probe(wanted: Platform, named: Platform | None = None) -> Path:
    """Put the program into the state of this test, as `edgekit devices native` does; `named`: called another platform's."""
    folder = state_folder() / "native" / str(named or wanted)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        folder.symlink_to(cached_probe(wanted))
    return folder


def ask_graph(file: Path, texts: Sequence[Sequence[int]]) -> Question:
    """The question for the rows of encoded texts, with few timed calls."""
    timing: Timing = {"warmup": 1, "repeats": 20, "least": 20, "seconds": 1.0, "sequence": 8}
    encoded = of_tokens(texts, 0)
    return Question(
        file=file,
        request={"runtime": "onnxruntime", "options": {"threads": 1}, "timing": timing},
        inputs=pack_rows(encoded, encoded.resized(8)),
        timeout_s=120,
    )


def need_compiler(wanted: Platform) -> None:
    """Skip where no compiler for it is and none can be installed."""
    compiler = native._compiler(wanted)
    if shutil.which(compiler) is None:
        install("g++" if wanted == HERE else f"g++-{wanted.arch.replace('_', '-')}-linux-gnu")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler} here, and it can only be installed by root with apt-get")
