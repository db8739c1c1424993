"""The part of edgekit that travels to a device: its version and the runtimes."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_runtimes(folder: Path) -> None:
    """Write it to a folder that is to be on PYTHONPATH there."""
    source = Path(__file__).resolve().parents[1]
    shutil.copytree(source / "runtimes", folder / "edgekit" / "runtimes", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(source / "__init__.py", folder / "edgekit" / "__init__.py")
