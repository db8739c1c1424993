"""edgekit's own wheel and sdist, built twice and compared: `python -m tests.packages dist`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(out: Path, environment: Mapping[str, str]) -> dict[str, bytes]:
    """Build both from a copy of the sources in another folder, as somebody else would; their bytes by name."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "sources"
        ignored = shutil.ignore_patterns(".git", ".venv", "dist", ".edgekit", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=ignored)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
        subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def build_twice(scratch: Path) -> dict[str, bytes]:
    """The packages, the same bytes in another time zone, locale and with another umask; ValueError names what is not."""
    plain = {"SOURCE_DATE_EPOCH": epoch()}
    first = build(scratch / "first", plain)
    before = os.umask(0o077)
    try:
        second = build(scratch / "second", {**plain, "TZ": "Asia/Kolkata", "LC_ALL": "C", "PYTHONHASHSEED": "7"})
    finally:
        os.umask(before)
    apart = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if apart:
        raise ValueError(f"{', '.join(apart)}: not the same bytes when built again")
    return first


def epoch() -> str:
    """The date of the packages: $SOURCE_DATE_EPOCH, else that of the last commit, else the oldest that a wheel can hold."""
    said = os.environ.get("SOURCE_DATE_EPOCH")
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return said or told or "315532800"


def main(out: Path) -> None:
    """Build twice and write what both gave."""
    with tempfile.TemporaryDirectory() as scratch:
        built = build_twice(Path(scratch))
    out.mkdir(parents=True, exist_ok=True)
    for name, content in built.items():
        (out / name).write_bytes(content)
        print(out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
