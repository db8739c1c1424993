"""The machine at hand, measured and written down as a target."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.runtimes import RUNTIMES, neighbours
from edgekit.runtimes.machine import KERNEL_FEATURES, Machine, describe, measure, saturates
from edgekit.target import check_new_name, load_target
from edgekit.workspace import write_atomically

# How often the machine's speed is measured, and by which factor the measurements may differ.
_ROUNDS, _AGREE = 3, 1.3
_Value = str | bool | float | Sequence[str]


def probe_target(
    name: str,
    *,
    p95_ms: float | None = None,
    memory_mb: float | None = None,
    out: Path = Path("targets"),
    force: bool = False,
    busy: bool = False,
) -> Path:
    """Measure this machine and write `out`/NAME.toml, a target that describes it; the file's path.

    A budget is written only of the limits given. Raises EdgekitError for a name that is no file name, a target that is there
    already (unless `force`), a folder that cannot be written, and a machine that other programs keep busy or whose
    measurements differ: its speeds are not the machine's. With `busy` they are written, and the file says so.
    """
    path = check_new_name(name, out=out, force=force)
    speed, disturbed = _measure_speed()
    if disturbed and not busy:
        raise EdgekitError(
            f"{path}: not written: this machine is busy ({'; '.join(disturbed)}), and a target that states its speed now would"
            " be of nothing; close other programs and probe again, or write it all the same with --busy (the file will say so)"
        )
    notes = (
        f"Measured on a busy machine ({'; '.join(disturbed)}): its speeds are higher; probe again."
        if disturbed
        else None
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as failed:
        raise EdgekitError(f"{out}: cannot be made: {failed.strerror or failed}; choose another --out") from failed
    write_atomically(path, _target_text(describe(), speed, notes, p95_ms=p95_ms, memory_mb=memory_mb))
    load_target(str(path))
    return path


def _measure_speed() -> tuple[dict[str, float], list[str]]:
    """The machine's speeds, the best of several measurements, and why they are not to be trusted."""
    tell = neighbours.watch()
    rounds = [measure() for _ in range(_ROUNDS)]
    # One thread measures, but bandwidth and caches are shared by all.
    disturbed = neighbours.disturbances([tell()], int(describe()["cores"]))
    for key in rounds[0]:
        low, high = min(one[key] for one in rounds), max(one[key] for one in rounds)
        if high > _AGREE * low:
            disturbed.append(f"{key} was {low:.3g} and {high:.3g} in {_ROUNDS} measurements")
    return {key: max(one[key] for one in rounds) for key in rounds[0]}, disturbed


def _target_text(
    machine: Machine, speed: Mapping[str, float], notes: str | None, *, p95_ms: float | None, memory_mb: float | None
) -> str:
    """The measured machine as a target file: facts, every task, its runtimes on all cores."""
    features = [feature for feature in KERNEL_FEATURES if feature in machine["features"]]
    hardware: dict[str, _Value] = {"arch": machine["arch"], "cpu": machine["cpu"], "cores": machine["cores"]}
    hardware |= {"features": features, "memory_mb": machine["memory_mb"]}
    speeds = {"clock_ghz": machine["clock_ghz"], **speed}
    for key in ("clock_ghz", "bandwidth_gbs", "fp32_gflops", "int8_gops"):
        if (figure := speeds.get(key)) is not None:
            # Three digits: the next ones change from run to run.
            hardware[key] = float(f"{figure:.3g}")
    if notes:
        hardware["notes"] = notes
    hardware["sources"] = [f"edgekit targets probe, {date.today().isoformat()}, {platform.platform(aliased=True)}"]
    export: dict[str, _Value] = {
        "format": "onnx",
        "scheme": "auto",
        # Unsigned activations keep more accuracy, and signed ones are slow on x86.
        "activation": "uint8",
        "reduce_range": saturates(machine["arch"], machine["features"]) is not False,
    }
    budget = {"p95_ms": p95_ms, "memory_mb": memory_mb}
    tables: dict[str, Mapping[str, _Value]] = {
        "": {"title": f"{machine['cpu']}, {machine['cores']} cores, {platform.system()}"},
        "hardware": hardware,
        "export.text-classification": export,
        "export.feature-extraction": export,
        "export.text-generation": {"format": "gguf", "scheme": "auto"},
        **{f"runtime.{name}": runtime.defaults(machine["cores"]) for name, runtime in RUNTIMES.items()},
        "device": {"kind": "local"},
        "budget": {key: value for key, value in budget.items() if value is not None},
    }
    blocks = []
    for name, table in tables.items():
        lines = [f"[{name}]"] if name else []
        lines += [f"{key} = {_toml_value(value)}" for key, value in table.items()]
        if table:
            blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _toml_value(value: _Value) -> str:
    """A value as TOML writes it: the same as JSON for what a target holds, but for the one control character JSON leaves."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
