"""What float models cost in torch, each timed in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.evidence import FloatModel
from edgekit.typed_json import read_table
from edgekit.weights import weight_files

TIMING = "timing the float models in a process of their own"


def measure_alone(asked: Mapping[Path, Sequence[Sequence[int]]], task: str, longest: int) -> dict[Path, FloatModel]:
    """What float costs on this machine, in torch, in a process of its own, by folder.

    asked: each model's folder with token ids of texts, which are timed one a call at their own lengths, and at the shapes at
    which artifacts are timed (`timing.shapes`), texts of up to `longest` tokens. memory_mb is the peak of the process in MiB,
    torch itself included: models are measured one after another, the smallest first, so that a peak is that of its own model.
    busy is the load average, its own threads included; both None where the system does not tell. Raises EdgekitError where the
    process fails.
    """
    folders = sorted(asked, key=lambda folder: (weight_bytes(folder), str(folder)))
    request = {
        "folders": [str(folder) for folder in folders],
        "ids": [[list(row) for row in asked[folder]] for folder in folders],
        "longest": longest,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "edgekit.record", task],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        why = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "no word")
        names = " and ".join(map(str, folders))
        raise EdgekitError(f"{names}: measuring in torch ended with exit code {ended.returncode}: {why[:300]}")
    tables: list[object] = json.loads(ended.stdout.splitlines()[-1])
    return {
        folder: read_table(FloatModel, table, f"{folder}: measured in torch")
        for folder, table in zip(folders, tables, strict=True)
    }


def by_role(models: Mapping[str, Path], measured: Mapping[Path, FloatModel]) -> dict[str, FloatModel]:
    """What each role's model costs; two roles may be one folder."""
    return {role: measured[folder.resolve()] for role, folder in models.items()}


def weight_bytes(folder: Path) -> int:
    """The bytes of a checkpoint's weight files."""
    return sum(path.stat().st_size for path in weight_files(folder))
