"""A machine, measured and written down as a target."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from edgekit import __version__
from edgekit.devices import open_device
from edgekit.devices.survey import ask_survey
from edgekit.errors import EdgekitError
from edgekit.probes import web
from edgekit.runtimes import RUNTIMES, neighbours
from edgekit.runtimes.machine import KERNEL_FEATURES, saturates
from edgekit.runtimes.survey import Survey
from edgekit.target import check_new_name, load_target
from edgekit.workspace import write_atomically

# By which factor the measurements of a machine's speed may differ.
_AGREE = 1.3
_SPEEDS = ("bandwidth_gbs", "fp32_gflops", "int8_gops")
# What a browser calls its machine.
_PAGES = "wasm32"
# The execution providers that a probed target asks for, where onnxruntime has them and they were measured.
_ACCELERATED = ("CUDAExecutionProvider", "DmlExecutionProvider")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The budget of a new target; None is no limit."""

    p95_ms: float | None = None
    memory_mb: float | None = None


def probe_target(
    name: str,
    *,
    device: Mapping[str, object] | None = None,
    limits: Limits = Limits(),
    out: Path = Path("targets"),
    force: bool = False,
    busy: bool = False,
) -> Path:
    """Measure a machine and write `out`/NAME.toml, a target that describes it; the file's path.

    device: its `[device]` table; None is this machine. What is measured runs there. A budget is written only of the limits
    given. Of an emulated machine no speed is written as the board's. Raises EdgekitError for a name that is no file name, a
    target that is there already (unless `force`), a folder that cannot be written, and a machine that other programs keep busy
    or whose measurements differ: its speeds are not the machine's. With `busy` they are written, and the file says so. Raises
    DeviceFailed where the device does not answer.
    """
    path = check_new_name(name, out=out, force=force)
    table = device or {"kind": "local"}
    opened = open_device(table, "device")
    try:
        survey = web.ask_survey(opened) if opened.PROBE == web.NAME else ask_survey(opened, speed=True)
    finally:
        opened.close()
    disturbed = [] if survey["emulated"] else _disturbances(survey)
    if disturbed and not busy:
        raise EdgekitError(
            f"{path}: not written: the machine is busy ({'; '.join(disturbed)}), and a target that states its speed now would"
            " be of nothing; close other programs and probe again, or write it all the same with --busy (the file will say so)"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as failed:
        raise EdgekitError(f"{out}: cannot be made: {failed.strerror or failed}; choose another --out") from failed
    write_atomically(path, _target_text(survey, table, disturbed, limits))
    load_target(str(path))
    return path


def _disturbances(survey: Survey) -> list[str]:
    """Why the measured speeds are not to be trusted."""
    speed = survey["speed"]
    assert speed is not None
    # One thread measures, but bandwidth and caches are shared by all.
    disturbed = neighbours.disturbances([speed["seen"]], survey["machine"]["cores"])
    rounds = speed["rounds"]
    for key in rounds[0]:
        low, high = min(one[key] for one in rounds), max(one[key] for one in rounds)
        if high > _AGREE * low:
            disturbed.append(f"{key} was {low:.3g} and {high:.3g} in {len(rounds)} measurements")
    return disturbed


def _best(survey: Survey) -> dict[str, float]:
    """The best of each measured speed, in three digits: the next ones change from run to run."""
    rounds = survey["speed"]["rounds"] if survey["speed"] else []
    return {key: _three_digits(max(one[key] for one in rounds)) for key in (rounds[0] if rounds else {})}


def _three_digits(figure: float) -> float:
    return float(f"{figure:.3g}")


def _target_text(survey: Survey, device: Mapping[str, object], disturbed: Sequence[str], limits: Limits) -> str:
    """The measured machine as a target file: facts, every task, its runtimes on all cores."""
    machine, speed = survey["machine"], _best(survey)
    saturating = survey["speed"]["saturates"].get("u8s8") if survey["speed"] else None
    if saturating is None:
        saturating = saturates(machine["arch"], machine["features"]) is not False
    provider, pages = _provider(survey), machine["arch"] == _PAGES
    export: dict[str, object] = {
        "format": "onnx",
        "scheme": "auto",
        # Unsigned activations keep more accuracy, and signed ones are slow on x86.
        "activation": "uint8",
        "reduce_range": saturating,
        # What apps on phones load, and a runtime without what no model needs (docs of onnxruntime: "ORT model format").
        "container": "ort" if survey["system"].startswith("Android ") else None,
    }
    if provider:
        export = {"format": "onnx", "scheme": "fp16"}
    budget = {"p95_ms": limits.p95_ms, "memory_mb": limits.memory_mb}
    name = survey["board"] or _cpu(survey)
    named = survey["accelerators"][0]["name"] if provider and survey["accelerators"] else None
    tables: dict[str, Mapping[str, object]] = {
        "": {
            "title": ", ".join(filter(None, [name, f"{machine['cores']} cores", named, survey["system"]])),
        },
        "hardware": _hardware(survey, speed, disturbed),
        "hardware.gpu": _gpu(survey, speed) if provider else {},
        "export.text-classification": export,
        "export.feature-extraction": export,
        "export.text-generation": {"format": "gguf", "scheme": "auto"},
        **{
            f"runtime.{name}": _runtime(name, survey, provider)
            for name in (web.WEB_RUNTIMES.values() if pages else RUNTIMES)
        },
        "device": device,
        "budget": {key: value for key, value in budget.items() if value is not None},
        "probed": _probed(survey, speed),
    }
    blocks = []
    for title, table in tables.items():
        lines = [f"[{title}]"] if title else []
        lines += [f"{key} = {_toml_value(value)}" for key, value in table.items() if value is not None]
        if table:
            blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _cpu(survey: Survey) -> str:
    """The cores' names, the largest first."""
    names = list(dict.fromkeys(cluster["cpu"] for cluster in survey["clusters"]))
    return " + ".join(names) if len(names) > 1 else survey["machine"]["cpu"]


def _provider(survey: Survey) -> str | None:
    """The execution provider of an accelerator that was measured."""
    there = next((engine["providers"] for engine in survey["engines"] if engine["name"] == "onnxruntime"), [])
    if "gpu_copy_gbs" not in _best(survey):
        return None
    return next((provider for provider in _ACCELERATED if provider in there), None)


def _hardware(survey: Survey, speed: Mapping[str, float], disturbed: Sequence[str]) -> dict[str, object]:
    machine = survey["machine"]
    known = machine["features"] if machine["arch"] == _PAGES else KERNEL_FEATURES
    clocks = [cluster["clock_ghz"] for cluster in survey["clusters"] if cluster["clock_ghz"]]
    clock = machine["clock_ghz"] or max(clocks, default=None)
    notes = None
    if survey["emulated"]:
        notes = (
            f"Emulated ({'; '.join(survey['emulated'])}): no speed of the board is known. Measure on the board itself."
        )
    elif disturbed:
        notes = f"Measured on a busy machine ({'; '.join(disturbed)}): its speeds are higher; probe again."
    return {
        "arch": machine["arch"],
        "cpu": _cpu(survey),
        "cores": machine["cores"],
        "features": [feature for feature in known if feature in machine["features"]],
        "memory_mb": machine["memory_mb"],
        "clock_ghz": _three_digits(clock) if clock else None,
        **({} if survey["emulated"] else {key: speed[key] for key in _SPEEDS if key in speed}),
        "accelerator": survey["accelerators"][0]["name"] if survey["accelerators"] else None,
        "notes": notes,
        "sources": [f"edgekit targets probe, {date.today().isoformat()}, {survey['system']}"],
    }


def _gpu(survey: Survey, speed: Mapping[str, float]) -> dict[str, object]:
    """`[hardware.gpu]` of the accelerator that was measured: the first one, on which sessions run."""
    first = survey["accelerators"][0] if survey["accelerators"] else None
    facts = {key: first[key] for key in ("memory_mb", "driver", "cuda", "vulkan")} if first else {}
    measured = {key: speed.get(f"gpu_{key}") for key in ("copy_gbs", "fp16_gflops")}
    return {"name": first["name"] if first else "unknown", **facts, **measured}


def _runtime(name: str, survey: Survey, provider: str | None) -> dict[str, object]:
    """A runtime's table: all cores, or the accelerator that was measured."""
    table: dict[str, object] = dict(RUNTIMES[name].defaults(survey["machine"]["cores"]))
    if provider and name == "onnxruntime":
        return {**table, "provider": provider, "threads": 1}
    there = next((engine["providers"] for engine in survey["engines"] if engine["name"] == name), [])
    return {**table, "gpu_layers": -1} if provider and name == "llama-cpp" and len(there) > 1 else table


def _probed(survey: Survey, speed: Mapping[str, float]) -> dict[str, object]:
    """What the board was on that day, beside what verdicts are made of."""
    machine, memory = survey["machine"], survey["memory"]
    measured = survey["speed"]
    governors = sorted({cluster["governor"] for cluster in survey["clusters"] if cluster["governor"]})
    return {
        "date": date.today().isoformat(),
        "edgekit": __version__,
        "emulated": bool(survey["emulated"]),
        "system": survey["system"],
        "board": survey["board"],
        "part": machine["part"],
        "governor": ", ".join(governors) or None,
        "clusters": survey["clusters"],
        # A page is not told.
        "memory_free_mb": memory["available_mb"] or None,
        "memory_free_share": round(memory["available_mb"] / memory["total_mb"], 2) if memory["available_mb"] else None,
        "engines": {one["name"]: one["version"] for one in survey["engines"] if one["version"]},
        "thermal_zones": survey["heat"]["zones"],
        "accelerators": survey["accelerators"],
        # Of an emulated machine: the emulator's, which are nothing of the board's.
        "measured": speed,
        "saturates": measured["saturates"] if measured else None,
    }


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key)


def _toml_value(value: object) -> str:
    """A value as TOML writes it, tables inside a line; a key without a value is left out."""
    if isinstance(value, Mapping):
        pairs = (f"{_toml_key(str(key))} = {_toml_value(inner)}" for key, inner in value.items() if inner is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    # The same as JSON for what a target holds, but for the one control character that JSON leaves.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
