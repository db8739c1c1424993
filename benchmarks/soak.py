"""Kills a build at random moments, a hundred times over, and looks at what is left; or, with --projects, tries random projects.

Goals:
- after every kill the next run goes on, and the archive at the end has the same sha256 as that of a build that was left alone;
- no torn file and no left-over temporary folder;
- the same of conversions to GGUF, which are killed too (`--conversions N`): what has the final name is whole;
- the same of builds that measure on a device behind SSH (`--cuts N`, device_cuts.py): edgekit, its ssh, the session's sshd or
  the probe is killed while files are pushed, the probe runs, or its answers are fetched: 0 wrong verdicts, 0 lost results,
  0 processes left on either side;
- random recipes, targets, data files and checkpoints (`--projects`, random_projects.py) through `build --dry-run`, every tenth
  (`--every`) also through `build`: 0 tracebacks, 0 half-written folders, 0 files changed outside edgekit's own.

Every round deletes the products of one step and of all after it, starts a build, and kills it (SIGKILL) within the time that an
undisturbed build takes; `--kills N` says how often. With `--rows FILE` each cut is kept, and the next run goes on behind it.

Projects come in batches of 50, each from a seed of its own: `--first 120` goes on behind the 120th batch, and `--keep FOLDER`
leaves there the projects in which something is wrong.
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
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from device_cuts import Bench, cut_and_finish, finish
from device_cuts import plan as plan_cuts
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_llama import Shape, write_checkpoint
from random_projects import Project, attempt, make_checkpoints, projects
from rows import Rows
from tiny_project import make_project

from tests.devices.sshd import native

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ("errors", "different", "left_over", "torn_conversions", "different_conversions")
CUT_FAULTS = {"wrong": "wrong_verdicts", "lost": "lost_results", "left": "processes_left"}
# What is wrong with a project begins with one of these; all else is a traceback, or an exit code that says nothing.
WRONG = {"changed": "changed_files", "beside": "changed_files", "half": "half_written", "made": "half_written"}
BATCH = 50
# 66 MB in two shards: a second or two of work.
SHAPE = Shape(layers=8, hidden=512, intermediate=1536, heads=8, kv_heads=4, vocabulary=6000)
CONVERT = """
import sys
from pathlib import Path
from edgekit.formats.gguf.convert import Quantization, convert, plan
from edgekit.model import Model
model = Model(folder=Path(sys.argv[1]))
types = {one.name: "q4_k" if len(one.shape) > 1 else "f32" for one in plan(model)}
convert(model, Path(sys.argv[2]), Quantization(types=types), {}, threads=2)
"""
STEPS = ("finetune", "distill", "record", "calibrate", "export", "verify")


def main() -> int:
    """Kill, print a table or one JSON object, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--kills", type=int, default=100, help="how many kills (default: 100)")
    parser.add_argument("--conversions", type=int, default=100, help="how many kills of conversions (default: 100)")
    parser.add_argument("--cuts", type=int, default=100, help="how many cuts of builds on a device (default: 100)")
    parser.add_argument("--rows", type=Path, help="keep each cut in this file, and go on from it")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument(
        "--projects", type=int, nargs="?", const=5000, default=0, help="so many random projects, and no kills (5000)"
    )
    parser.add_argument("--first", type=int, default=0, help="the first batch of projects (default: 0)")
    parser.add_argument("--every", type=int, default=10, help="build every so manieth project, too (default: 10)")
    parser.add_argument("--keep", type=Path, help="an empty folder for the projects in which something is wrong")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, int] = {}
        if options.projects:
            found = soak_projects(Path(scratch), options.projects, options.first, options.every, options.keep)
            options.kills = options.conversions = options.cuts = 0
        if options.kills:
            found |= soak(Path(scratch), options.kills, random.Random(options.seed))
        if options.conversions:
            found |= soak_conversions(Path(scratch), options.conversions, random.Random(options.seed))
        if options.cuts:
            found |= soak_cuts(Path(scratch), options.cuts, options.seed, Rows(options.rows))
    missed = sum(found.get(name, 0) for name in (*FAULTS, *CUT_FAULTS.values(), "tracebacks", *WRONG.values())) > 0
    if options.json:
        print(json.dumps({"measured": found, "missed": ["soak"] if missed else []}, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:<22} {value}")
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


def soak_conversions(folder: Path, kills: int, rng: random.Random) -> dict[str, int]:
    """Count kills that hit a conversion, files under the final name that were not whole, and whole ones that differ."""
    source, out = folder / "llama", folder / "model.gguf"
    source.mkdir()
    write_checkpoint(source, SHAPE)
    command = [sys.executable, "-c", CONVERT, str(source), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    subprocess.run(command, check=True, env=environment)
    whole = time.monotonic() - begin
    expected = hashlib.sha256(out.read_bytes()).hexdigest()
    found = {"conversion_kills": 0, "conversions_too_late": 0, "torn_conversions": 0, "different_conversions": 0}
    while found["conversion_kills"] < kills:
        out.unlink(missing_ok=True)
        process = subprocess.Popen(command, env=environment)
        time.sleep(rng.uniform(0.3, 1.0) * whole)
        process.kill()
        found["conversion_kills" if process.wait() == -9 else "conversions_too_late"] += 1
        if out.exists():
            found["torn_conversions"] += hashlib.sha256(out.read_bytes()).hexdigest() != expected
        if found["conversion_kills"] % 10 == 0:
            subprocess.run(command, check=True, env=environment)
            found["different_conversions"] += hashlib.sha256(out.read_bytes()).hexdigest() != expected
    return found


def soak_cuts(folder: Path, cuts: int, seed: int, rows: Rows) -> dict[str, int]:
    """Count cuts that hit, by what was killed and when, and what must not be after them."""
    make_project(folder / "project")
    project = folder / "project"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EDGEKIT_CACHE": str(project / ".edgekit")}
    environment |= {"EDGEKIT_STATE": str(folder / "state"), "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    found = Counter({"cuts": 0, "cuts_too_late": 0, **dict.fromkeys(CUT_FAULTS.values(), 0)})
    with native(folder / "device") as host:
        environment["PATH"] = f"{host.commands}{os.pathsep}{os.environ['PATH']}"
        command = [sys.executable, "-m", "edgekit", "build", "--target", "first", "--json"]
        target = project / "targets" / "first.toml"
        device = "".join(f"{key} = {json.dumps(value)}\n" for key, value in host.table().items())
        target.write_text(f"{target.read_text()}\n[device]\n{device}")

        def start() -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            return subprocess.Popen(command, cwd=project, env=environment, stdout=pipe, stderr=pipe, text=True)

        bench = Bench(host=host, cache=project / ".edgekit", out=project / "dist", state=folder / "state", start=start)
        code, expected = finish(bench)
        if code != 0:
            raise SystemExit(f"the build that nobody cuts ends with {code}")
        for index, (victim, moment, chance) in enumerate(plan_cuts(cuts, seed)):
            row = rows.take(f"cut {index} {seed}", partial(cut_and_finish, bench, victim, moment, chance, expected))
            found["cuts" if row["hit"] else "cuts_too_late"] += 1
            found[f"{moment}_{victim}"] += bool(row["hit"])
            for key, name in CUT_FAULTS.items():
                found[name] += bool(row[key])
            sys.stderr.write(f"cut {index + 1} of {cuts}: {moment}, {victim}: {json.dumps(row)}\n")
    return dict(found)


def soak_projects(folder: Path, count: int, first: int, every: int, keep: Path | None) -> dict[str, int]:
    """Count random projects by how they ended, and what must not be; a line after each batch says how fast it goes."""
    checkpoints = make_checkpoints(folder / "checkpoints")
    found = Counter({"dry_runs": 0, "builds": 0, "tracebacks": 0, "half_written": 0, "changed_files": 0})
    begin, batches = time.monotonic(), -(-count // BATCH)
    for number in range(first, first + batches):
        try_batch(number, every, checkpoints, found, keep)
        spent = time.monotonic() - begin
        done = number + 1 - first
        wrong = sum(found[name] for name in ("tracebacks", "half_written", "changed_files"))
        print(
            f"batch {number}: {found['dry_runs']} dry runs, {found['builds']} builds, {wrong} wrong,"
            f" {found['dry_runs'] / spent:.1f} projects a second, about {spent / done * (batches - done) / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
    return dict(found)


def try_batch(number: int, every: int, checkpoints: Mapping[str, Path], found: Counter[str], keep: Path | None) -> None:
    """The projects of one seed, counted in `found`."""

    @seed(number)
    @settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(project=projects())
    def try_one(project: Project) -> None:
        found["dry_runs"] += 1
        runs: list[tuple[str, ...]] = [("--dry-run",)]
        if found["dry_runs"] % every == 0:
            runs.append(())
        for options in runs:
            with tempfile.TemporaryDirectory() as scratch:
                code, wrong = attempt(project, checkpoints, Path(scratch), *options)
                found["builds"] += not options
                found[f"exit_{code}"] += 1
                for line in wrong:
                    found[WRONG.get(line.split(maxsplit=1)[0].rstrip(":"), "tracebacks")] += 1
                    print(f"batch {number}, build {' '.join((*project.arguments, *options))}: {line}", file=sys.stderr)
                if wrong and keep is not None:
                    shutil.copytree(scratch, keep / f"{number}-{found['dry_runs']}", dirs_exist_ok=True)

    try_one()


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
