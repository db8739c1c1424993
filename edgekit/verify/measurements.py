"""Measurements: the artifact answers the verify prompts on its device, in a process that holds nothing but its runtime."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import DeviceFailed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.devices import Device

# A slow board may need ten minutes for a thousand prompts; an hour is a hang.
_TIMEOUT_S = 3600.0
# 59 is what an upper bound of p95 needs (gate.runs_needed); 200 calls narrow it.
TIMING = {"warmup": 10, "repeats": 200, "least": 59, "seconds": 20.0}
_OUTPUTS = "measured/outputs.npz"


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What the probe reported. Times in ms, peak_mb in MiB; None where the device does not tell.

    device is what the machine is, speed how fast (bandwidth_gbs, fp32_gflops, int8_gops), work what one call does at the
    budget's shape (see `runtimes.ort.work`); times are at that shape, real_times at the prompts' own lengths. busy is the load
    average after the timed calls, their own threads included. Of a decoder a call is one new token, and generation has what
    the probe says of prompts, threads and memory (see `runtimes.generation`).
    """

    device: Mapping[str, Any]
    speed: Mapping[str, float]
    work: Mapping[str, Any]
    runtime: Mapping[str, str]
    available: Sequence[str]
    shape: Mapping[str, int | None]
    load_ms: float
    first_ms: float
    times: Sequence[float]
    real_times: Sequence[float]
    real_lengths: Sequence[int]
    peak_mb: float | None
    busy: float | None
    outputs: NDArray[np.float32]
    generation: Mapping[str, Any] | None = None


def measure(
    *,
    artifact: Path,
    file: str,
    runtime: str,
    ids: Sequence[Sequence[int]],
    pad_id: int,
    options: Mapping[str, Any],
    sequence: int,
    device: Device,
    out: Path,
) -> Measurements:
    """Run the probe on the device over `ids` and write measurements.json (all its lines) and outputs.npz into `out`.

    Raises DeviceFailed where the probe does not finish.
    """
    import numpy as np

    request = {"runtime": runtime, "options": dict(options), "timing": TIMING | {"sequence": sequence}}
    inputs = flat(ids) | {"pad_id": np.int64(pad_id)}
    events, arrays = run_probe(artifact, file, request, inputs, device, out)
    load = events["load"]
    return Measurements(
        device=events["device"],
        speed=events["machine"],
        work=events["work"],
        runtime={"name": load["runtime"], "version": load["version"]},
        available=load["available"],
        shape=events["latency"]["shape"],
        load_ms=load["ms"],
        first_ms=events["first"]["ms"],
        times=events["latency"]["ms"],
        real_times=events["latency_real"]["ms"],
        real_lengths=events["latency_real"]["lengths"],
        peak_mb=events["memory"]["peak_mb"],
        busy=events["latency"]["load"],
        outputs=arrays["outputs"],
    )


def flat(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Rows of token ids as the probe reads them: all behind each other, and where each begins."""
    import numpy as np

    return {
        "ids": np.array([token for row in rows for token in row], dtype=np.int64),
        "offsets": np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
    }


def run_probe(
    artifact: Path, file: str, request: Mapping[str, Any], inputs: Mapping[str, Any], device: Device, out: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray[Any]]]:
    """Send the artifact, what runs it and a request to the device; the probe's lines by event, and the arrays that it made.

    Both are written into `out` too. Raises DeviceFailed where the probe does not finish.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        code, asked = Path(scratch, "code"), Path(scratch, "request")
        _copy_runtimes(code)
        asked.mkdir()
        np.savez(asked / "inputs.npz", allow_pickle=False, **inputs)
        places = {"file": f"{device.push(artifact)}/{file}", "inputs": "inputs.npz", "outputs": _OUTPUTS}
        (asked / "request.json").write_text(json.dumps({**request, **places}), encoding="utf-8")
        place = device.push(asked)
        ended = device.run(
            [device.python, "-m", "edgekit.runtimes.probe", f"{place}/request.json"],
            timeout_s=_TIMEOUT_S,
            env={"PYTHONPATH": device.push(code)},
        )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    events = {event.pop("event"): event for event in map(json.loads, lines)}
    if ended.returncode != 0 or "done" not in events:
        raise DeviceFailed(f"{artifact / file}: {_why(ended.returncode, ended.stderr, str(request['runtime']))}")
    (out / "measurements.json").write_text(json.dumps(events, indent=1) + "\n", encoding="utf-8")
    device.fetch(Path(_OUTPUTS).parent.as_posix(), out)
    with np.load(out / Path(_OUTPUTS).name, allow_pickle=False) as arrays:
        return events, {name: arrays[name] for name in arrays.files}


def _copy_runtimes(folder: Path) -> None:
    """The part of edgekit that travels: its version and the runtimes."""
    source = Path(__file__).resolve().parents[1]
    shutil.copytree(source / "runtimes", folder / "edgekit" / "runtimes", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(source / "__init__.py", folder / "edgekit" / "__init__.py")


def _why(code: int, stderr: str, runtime: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "nothing on standard error")
    if code in {-9, 137}:
        return (
            "the system killed the probe, most likely for want of memory; free some, or use a smaller student or scheme"
        )
    if last.startswith("ModuleNotFoundError"):
        return f"the device's Python lacks a library ({last}); install {runtime} and numpy there"
    return f"the probe ended with exit code {code}: {last[:400]}; `edgekit inspect` on the artifact says what is in it"
