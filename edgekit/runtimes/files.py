"""What a system tells in files, such as those of /proc and /sys."""

from __future__ import annotations

from pathlib import Path


def read_file(path: str | Path) -> str:
    """A file's text without white space around it; "" where it is not there or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
