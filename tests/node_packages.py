"""What the JavaScript that apps copy needs of npm, installed once into the user's cache, as `edgekit embed` says it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from edgekit.bundle.platforms import EMBEDDINGS
from edgekit.workspace import fingerprint

NODE = EMBEDDINGS["onnxruntime", "text", "logits", "node"]
WORDS = EMBEDDINGS["llama-cpp", "text", "tokens", "node"]
# The checker of types, and the types of what is checked; no script of them runs.
CHECKERS = ("typescript@5.9.3", "electron@45.5.0", "@types/node@24.9.1")


def need_node() -> str:
    """The program; a test is skipped without it, or without npm."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed here (Debian, Ubuntu: sudo apt install nodejs npm)")
    return node


def node_modules() -> Path:
    """A folder node_modules with all of it."""
    need_node()
    (line,) = NODE.install
    *settings, _npm, _install, first, second = line.split()
    (small,) = WORDS.notes
    names = [first, second, *small.split("--ignore-scripts ")[1].split(), *CHECKERS]
    return installed(names, settings)


def installed(names: Sequence[str], settings: Sequence[str] = ()) -> Path:
    """A folder node_modules with these packages of npm; settings: of its environment, NAME=VALUE."""
    need_node()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"node-{fingerprint(names)[:16]}"
    with FileLock(cache / ".node.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as scratch:
                made = Path(scratch, "made")
                made.mkdir()
                (made / "package.json").write_text("{}", encoding="utf-8")
                command = [
                    "npm",
                    "install",
                    "--ignore-scripts",
                    "--omit=optional",
                    "--no-audit",
                    "--no-fund",
                    "--silent",
                    *names,
                ]
                env = os.environ | dict(setting.split("=", 1) for setting in settings)
                done = subprocess.run(
                    command, cwd=made, env=env, capture_output=True, text=True, check=False, timeout=600
                )
                if done.returncode != 0:
                    pytest.skip(f"npm cannot install {' '.join(names)}: {done.stderr.strip()[-300:]}")
                made.rename(folder)
    return folder / "node_modules"
