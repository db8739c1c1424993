"""Kills a build at random moments, a hundred times over, and looks at what is left.

Goals:
- after every kill the next run goes on, and the archive at the end has the same sha256 as that of a build that was left alone;
- no torn file and no left-over temporary folder.

Every round deletes the products of one step and of all after it, starts a build, and kills it (SIGKILL) within the time that an
undisturbed build takes; `--kills N` says how often.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny_project import make_project

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("finetune", "distill", "record", "calibrate", "export", "verify")


def main() -> int:
    """Kill, print a table or one JSON object, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--kills", type=int, default=100, help="how many kills (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(Path(scratch), options.kills, random.Random(options.seed))
    missed = found["different"] + found["left_over"] + found["errors"] > 0
    if options.json:
        print(json.dumps({"measured": found, "missed": ["soak"] if missed else []}, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:<12} {value}")
        print("missed" if missed else "met")
    return 1 if missed else 0


def soak(folder: Path, kills: int, rng: random.Random) -> dict[str, int]:
    """Count kills that hit, runs that failed, archives that differ and temporary folders that stayed."""
    make_project(folder / "project")
    project = folder / "project"
    begin = time.monotonic()
    build(project).wait()
    whole = time.monotonic() - begin
    expected = archive_sha256(project)
    found = {"kills": 0, "too_late": 0, "errors": 0, "different": 0, "left_over": 0}
    while found["kills"] < kills:
        first = rng.randrange(len(STEPS))
        for step in STEPS[first:]:
            shutil.rmtree(project / ".edgekit" / step, ignore_errors=True)
        shutil.rmtree(project / "dist", ignore_errors=True)
        for _ in range(rng.randint(1, 4)):
            process = build(project)
            time.sleep(rng.uniform(0.2, whole))
            process.kill()
            found["kills" if process.wait() == -9 else "too_late"] += 1
        if build(project).wait() != 0:
            found["errors"] += 1
            continue
        found["different"] += archive_sha256(project) != expected
        found["left_over"] += sum(1 for _ in project.rglob(".*.partial*"))
    return found


def build(project: Path) -> subprocess.Popen[bytes]:
    """Start a build in a project's folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", "build", "--target", "first"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "EDGEKIT_CACHE": str(project / ".edgekit")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def archive_sha256(project: Path) -> str:
    """The hash of the only archive in dist, or "" where there is none."""
    archives = list((project / "dist").glob("*.tar.gz"))
    return hashlib.sha256(archives[0].read_bytes()).hexdigest() if archives else ""


if __name__ == "__main__":
    sys.exit(main())
