"""What float models cost in torch, each timed in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.evidence import FloatModel
from edgekit.modalities.encoded import Encoded, Input
from edgekit.runtimes.request import pack, unpack
from edgekit.typed_json import read_table
from edgekit.weights import weight_files

TIMING = "timing the float models in a process of their own"


def measure_alone(asked: Mapping[Path, Encoded], task: str, longest: int) -> dict[Path, FloatModel]:
    """What float costs on this machine, in torch, in a process of its own, by folder.

    asked: each model's folder with prompts, which are timed one a call at their own sizes, and at the shapes at
    which artifacts are timed (`timing.shapes`), texts of up to `longest` tokens. memory_mb is the peak of the process in MiB,
    torch itself included: models are measured one after another, the smallest first, so that a peak is that of its own model.
    busy is the load average, its own threads included; both None where the system does not tell. Raises EdgekitError where the
    process fails.
    """
    folders = sorted(asked, key=lambda folder: (weight_bytes(folder), str(folder)))
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        models = [
            write_prompts(folder, asked[folder], Path(scratch, f"{index}.npz")) for index, folder in enumerate(folders)
        ]
        ended = subprocess.run(
            [sys.executable, "-m", "edgekit.record", task],
            input=json.dumps({"models": models, "longest": longest}),
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


def write_prompts(folder: Path, encoded: Encoded, file: Path) -> dict[str, object]:
    """Write prompts into `file`; the request for a model on them."""
    import numpy as np

    np.savez(file, allow_pickle=False, **pack(encoded.prompts))
    return {
        "folder": str(folder),
        "prompts": str(file),
        "inputs": {name: vars(one) for name, one in encoded.inputs.items()},
    }


def read_prompts(file: Path, inputs: Mapping[str, Mapping[str, object]]) -> Encoded:
    """The prompts that `write_prompts` wrote."""
    import numpy as np

    with np.load(file, allow_pickle=False) as arrays:
        prompts = unpack(dict(arrays))
    read = {name: read_table(Input, one, f"{file}: {name}") for name, one in inputs.items()}
    return Encoded(inputs=read, prompts=prompts, owners=range(len(prompts)))


def by_role(models: Mapping[str, Path], measured: Mapping[Path, FloatModel]) -> dict[str, FloatModel]:
    """What each role's model costs; two roles may be one folder."""
    return {role: measured[folder.resolve()] for role, folder in models.items()}


def weight_bytes(folder: Path) -> int:
    """The bytes of a checkpoint's weight files."""
    return sum(path.stat().st_size for path in weight_files(folder))
