"""What edgekit itself costs: its help, a build in which nothing changed, and a second target.

Goals:
- `edgekit --help` answers in under 0.2 s (median of 20 runs);
- a build in which nothing changed ends in under 2 s (median of 5);
- a second target with an equal export section takes at most 5 % of the first's time;
- a second target with another scheme takes at most 30 % of it.

The project is the packaged example with its teacher and student (a few minutes), or `--tiny`, a project made from nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny_project import make_project

ROOT = Path(__file__).resolve().parents[1]
GOALS = {"help_s": 0.2, "no_op_s": 2.0, "equal_target_share": 0.05, "other_scheme_share": 0.30}


def main() -> int:
    """Measure, print a table or one JSON object, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tiny", action="store_true", help="use a project made from nothing (a minute)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), tiny=options.tiny)
    missed = [name for name, goal in GOALS.items() if found[name] > goal]
    if options.json:
        print(json.dumps({"goals": GOALS, "measured": found, "missed": missed}, indent=2))
    else:
        for name, goal in GOALS.items():
            print(f"{name:<20} {found[name]:8.3f}   goal <= {goal:<6} {'missed' if name in missed else 'met'}")
    return 1 if missed else 0


def measure(folder: Path, *, tiny: bool) -> dict[str, float]:
    """Seconds and shares, in one process tree on one machine."""
    recipe = make_project(folder / "project") if tiny else copy_example(folder / "project")
    helps = [run(folder, "--help") for _ in range(20)]
    project = recipe.parent
    first = run(project, "build", "--target", "first")
    no_op = [run(project, "build", "--target", "first") for _ in range(5)]
    return {
        "help_s": statistics.median(helps),
        "first_build_s": first,
        "no_op_s": statistics.median(no_op),
        "equal_target_share": run(project, "build", "--target", "second") / first,
        "other_scheme_share": run(project, "build", "--target", "third") / first,
    }


def copy_example(folder: Path) -> Path:
    """The packaged example with three targets: two alike, one with another scheme."""
    from edgekit.recipe import packaged

    shutil.copytree(packaged("examples/assistant"), folder)
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace("../../calib_data", packaged("calib_data").as_posix()))
    target = (packaged("targets") / "raspberrypi.toml").read_text()
    (folder / "targets").mkdir()
    for name, scheme in {"first": "auto", "second": "auto", "third": "int8-dynamic"}.items():
        (folder / "targets" / f"{name}.toml").write_text(target.replace('scheme = "auto"', f'scheme = "{scheme}"'))
    return folder / "recipe.toml"


def run(folder: Path, *arguments: str) -> float:
    """Seconds that a run of edgekit takes in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EDGEKIT_CACHE": str(folder / ".edgekit")}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments], cwd=folder, env=environment, capture_output=True, check=False
    )
    took = time.perf_counter() - begin
    if done.returncode != 0:
        raise SystemExit(f"edgekit {' '.join(arguments)}: exit {done.returncode}\n{done.stderr.decode()}")
    return took


if __name__ == "__main__":
    sys.exit(main())
