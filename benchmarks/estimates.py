"""Does the dry run tell what a build takes? Bytes, memory and disk of real models, told before and measured after.

Goals:
- the artifact's bytes within 2 % of what was told, or of what was told for the case that layers stay float
- the memory of the largest process (the system's own figure of its peak), and the bytes that the build left in cache and out
  folder, within 30 %

Each build has a cache of its own. Models and data are those of `real_models.py`; the demo trains an epoch of each kind instead of
all, which takes as much memory and disk.

Usage: python benchmarks/estimates.py [--only NAME ...] [--scheme SCHEME ...] [--data ../shared/data] [--json]; exit code 1 where
a goal is missed, 2 where data is missing. Memory is not measured where the system does not tell it (Windows).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from real_models import MODELS, SHARED, TARGET, Asked, Missing, Real

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("banking77", "demo", "code-llama-46m")
EPOCHS = ("--set", "teacher.finetune.epochs=1", "--set", "distill.epochs=1")
BYTES, PLACE = 0.02, 0.30
MB = 1e6


def main() -> int:
    """Build, show a row each, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, action="append", help="a model; again for more (default: three)")
    parser.add_argument("--scheme", action="append", help="this scheme alone; again for more (default: all)")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    asked = Asked(data=given.data, smollm2=None, prompts=300, answers=100)
    rows = []
    try:
        for name in given.only or NAMES:
            real = MODELS[name]
            for format_, scheme in real.builds:
                if given.scheme is None or scheme in given.scheme:
                    with tempfile.TemporaryDirectory(prefix=f"edgekit-{name}-") as scratch:
                        rows.append({"model": name} | build(real, Path(scratch), asked, format_, scheme))
                    print(line(rows[-1]), file=sys.stderr, flush=True)
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    missed = [line(row) for row in rows if row["missed"]]
    print(json.dumps(rows, indent=2) if given.json else "\n".join(missed) or "every goal is met")
    return 1 if missed else 0


def build(real: Real, folder: Path, asked: Asked, format_: str, scheme: str) -> dict[str, Any]:
    """What was told of one build, and what it took."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine := platform.machine().lower(), machine)
    (folder / "here.toml").write_text(TARGET.replace("TASK", real.task).replace("ARCH", arch), encoding="utf-8")
    recipe = ["--example", "assistant", *EPOCHS]
    if real.write is not None:
        real.write(folder, asked)
        recipe = ["--recipe", "recipe.toml"]
    line_ = [*recipe, "--target", "./here.toml", "--format", format_, "--scheme", scheme, "--out", "made", "--json"]
    told, _ = run(folder, [*line_, "--dry-run"])
    shutil.rmtree(folder / "cache", ignore_errors=True)
    made, peak = run(folder, line_)
    guess = told["plans"][0]["estimate"]
    left = sum(
        path.stat().st_size for place in ("cache", "made") for path in (folder / place).rglob("*") if path.is_file()
    )
    size = made["bundles"][0]["bytes"] / MB
    sizes = [guess["artifact_mb"], *([guess["artifact_most_mb"]] if "artifact_most_mb" in guess else [])]
    pairs = {
        "bytes": (min(sizes, key=lambda one: abs(one - size)), size, BYTES),
        "memory": (guess["memory_mb"], peak, PLACE),
        "disk": (guess["disk_mb"], left / MB, PLACE),
    }
    missed = [name for name, (one, other, limit) in pairs.items() if other and abs(one / other - 1) > limit]
    figures = {
        name: {"told_mb": one, "measured_mb": other and round(other, 2)} for name, (one, other, _) in pairs.items()
    }
    return {"format": format_, "scheme": scheme} | figures | {"missed": missed}


def run(folder: Path, arguments: list[str]) -> tuple[dict[str, Any], float | None]:
    """What `edgekit build` printed, and the peak memory of its largest process in MB."""
    child = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "build", *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), "NO_COLOR": "1"}
        | {"EDGEKIT_CACHE": str(folder / "cache"), "EDGEKIT_STATE": str(folder / "state"), "HF_HUB_OFFLINE": "1"},
        stdout=(folder / "told.json").open("w", encoding="utf-8"),
        stderr=subprocess.DEVNULL,
    )
    peak = None
    if hasattr(os, "wait4"):
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        # Linux tells KiB, macOS bytes.
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB
    child.wait()
    text = (folder / "told.json").read_text(encoding="utf-8")
    answer = json.loads(text) if text else {}
    if "error" in answer or not answer:
        raise SystemExit(f"{' '.join(arguments)}: ended with {child.returncode}: {answer.get('error')}")
    return answer, peak


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    said = [f"{row['model']} {row['format']} {row['scheme']}"]
    for name in ("bytes", "memory", "disk"):
        told, measured = row[name]["told_mb"], row[name]["measured_mb"]
        share = f" ({told / measured:.3f})" if measured else ""
        said.append(f"{name} {told} MB told, {measured} MB measured{share}{' MISSED' if name in row['missed'] else ''}")
    return "; ".join(said)


if __name__ == "__main__":
    sys.exit(main())
