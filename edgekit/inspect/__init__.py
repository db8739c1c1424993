"""What is in a file or folder, ours or not: models, ONNX files, artifacts, bundles, calibrations, prompts, targets, recipes.

Nothing is executed and no weight is read where a header tells the same; torch is never imported.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.inspect.gguf_file import inspect_gguf
from edgekit.inspect.onnx_file import inspect_onnx
from edgekit.inspect.tensors import MOST_TENSORS, by_type, largest
from edgekit.schema import read_json, read_toml
from edgekit.typed_json import as_list, as_table
from edgekit.weights import ADAPTER, ADAPTER_CONFIG

KINDS = (
    "a model folder (config.json), an adapter (adapter_config.json), a .safetensors, .onnx, .ort or .gguf file, a folder that a"
    " step wrote (export, calibrate, record, verify), a bundle or its .tar.gz, a prompts folder, a target's or recipe's .toml"
)


def inspect(path: Path) -> dict[str, object]:
    """Everything that can be told of a file or folder, `kind` first.

    Raises EdgekitError for what is not there, damaged, or of no known kind.
    """
    if not path.exists():
        raise EdgekitError(f"{path}: no such file or folder")
    if path.is_dir():
        return _inspect_folder(path)
    if path.suffix == ".safetensors":
        return _inspect_safetensors(path)
    if path.suffix in {".onnx", ".ort"}:
        return inspect_onnx(path)
    if path.suffix == ".gguf":
        return inspect_gguf(path)
    if path.name.endswith((".tar.gz", ".tgz")):
        return _inspect_bundle(path)
    if path.suffix == ".toml":
        return _inspect_toml(path)
    if path.name.endswith(".report.json"):
        return _inspect_report(path)
    if path.name in _folder_readers():
        return _folder_readers()[path.name](path.parent)
    raise EdgekitError(f"{path}: not a kind of file that edgekit knows: {KINDS}")


# --- folders


def _folder_readers() -> dict[str, Callable[[Path], dict[str, object]]]:
    """Who reads a folder, by the file that tells what it is."""
    return {
        "bundle.json": _inspect_bundle,
        "export.json": _inspect_artifact,
        "calibrate.json": _inspect_calibration,
        "calibration.npz": _inspect_calibration,
        "report.json": _inspect_report,
        "record.json": _inspect_reference,
        "config.json": _inspect_model,
        ADAPTER_CONFIG: _inspect_adapter,
        "prompts.json": _inspect_prompts,
        "calibrate.jsonl": _inspect_prompts,
        "verify.jsonl": _inspect_prompts,
        "train.jsonl": _inspect_prompts,
        "recipe.toml": lambda folder: _inspect_toml(folder / "recipe.toml"),
    }


def _inspect_folder(folder: Path) -> dict[str, object]:
    for name, reader in _folder_readers().items():
        if (folder / name).is_file():
            return reader(folder)
    weights = sorted((*folder.glob("*.onnx"), *folder.glob("*.gguf")))
    if len(weights) == 1:
        return inspect(weights[0])
    raise EdgekitError(f"{folder}: not a kind of folder that edgekit knows: {KINDS}")


def _inspect_model(folder: Path) -> dict[str, object]:
    from edgekit.checkpoint_keys import look_up, look_up_files
    from edgekit.model import Model

    model = Model(folder=folder)
    config, tensors = model.config, model.tensors
    return {
        "kind": "model",
        "path": str(folder),
        "family": config.get("model_type"),
        "architectures": config.get("architectures"),
        "parameters": model.parameters,
        "layers": next((config[key] for key in ("num_hidden_layers", "n_layers", "num_layers") if key in config), None),
        "hidden": config.get("hidden_size", config.get("dim")),
        "labels": model.labels,
        "bytes": sum(info.end - info.begin for info in tensors.values()),
        "types": by_type((info.dtype, info.shape, info.end - info.begin) for info in tensors.values()),
        "tensors": len(tensors),
        "largest": largest((name, info.dtype, info.shape, info.end - info.begin) for name, info in tensors.items()),
        "tokenizer": _tokenizer(folder),
        "keys": look_up(folder),
        "files": look_up_files(folder),
        "made_by": {step: _facts(folder, step) for step in ("finetune", "distill") if _facts(folder, step)},
        "remote_code": "auto_map: edgekit refuses it" if "auto_map" in config else None,
    }


def _inspect_adapter(folder: Path) -> dict[str, object]:
    """An adapter that PEFT saved: what it changes in which base, and what edgekit does with each key."""
    from edgekit.checkpoint_keys import look_up, look_up_files

    content = as_table(read_json(folder / ADAPTER_CONFIG))
    weights = folder / ADAPTER
    return {
        "kind": "adapter",
        "path": str(folder),
        "base": content.get("base_model_name_or_path"),
        "rank": content.get("r"),
        "alpha": content.get("lora_alpha"),
        "weights": _inspect_safetensors(weights) if weights.is_file() else None,
        "keys": look_up(folder),
        "files": look_up_files(folder),
    }


def _inspect_safetensors(path: Path) -> dict[str, object]:
    from edgekit.weights import read_header

    tensors = read_header(path)
    return {
        "kind": "safetensors file",
        "path": str(path),
        "parameters": sum(math.prod(info.shape) for info in tensors.values()),
        "bytes": path.stat().st_size,
        "types": by_type((info.dtype, info.shape, info.end - info.begin) for info in tensors.values()),
        "tensors": len(tensors),
        "largest": largest((name, info.dtype, info.shape, info.end - info.begin) for name, info in tensors.items()),
    }


def _inspect_artifact(folder: Path) -> dict[str, object]:
    facts = _facts(folder, "export")
    keys = ("format", "scheme", "task", "output", "bytes", "bytes_float", "sha256", "settings", "max_length")
    own = {key: facts.get(key) for key in (*keys, "minimum_runtime", "runtime_options", "quantized", "choices")}
    return (
        {"kind": "artifact", "path": str(folder)}
        | own
        | {
            "labels": facts.get("classes"),
            "tokenizer": _tokenizer(folder),
            "model": _model_in(folder, str(facts["file"])),
        }
    )


def _inspect_bundle(path: Path) -> dict[str, object]:
    from edgekit.bundle.open import open_bundle
    from edgekit.typed_json import to_table

    bundle = open_bundle(path)
    manifest = to_table(bundle.manifest)
    issued = ("version", "compatible_with")
    keys = ("name", *issued, "recipe", "target", "target_title", "task", "output", "artifact", "labels", "out_of_scope")
    own = {key: manifest.get(key) for key in (*keys, "threshold", "max_length", "runtime", "lineage")}
    rest = {key: manifest.get(key) for key in ("fingerprints", "versions", "licences", "edgekit")}
    return (
        {"kind": "bundle", "path": str(path), "intact": True}
        | own
        | rest
        | {"files": {name: entry.bytes for name, entry in (bundle.manifest.files or {}).items()}}
        | {"tokenizer": _tokenizer(bundle.folder), "model": _model_in(bundle.folder, bundle.manifest.model)}
    )


def _model_in(folder: Path, name: str) -> dict[str, object]:
    """The main facts of an artifact's model, where it is a format that can be looked into."""
    readers = {".onnx": inspect_onnx, ".ort": inspect_onnx, ".gguf": inspect_gguf}
    reader = readers.get(Path(name).suffix)
    facts = {} if reader is None else reader(folder / name)
    return {key: value for key, value in facts.items() if key not in {"kind", "path", "metadata", "largest"}}


def _inspect_calibration(folder: Path) -> dict[str, object]:
    import numpy as np

    path = folder / "calibration.npz"
    if not path.is_file():
        raise EdgekitError(f"{folder}: no calibration.npz in it; run: edgekit calibrate")
    channels: dict[str, int] = {}
    widest: dict[str, float] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                name, _, statistic = key.rpartition("/")
                values = arrays[key]
                if statistic in {"min", "max"} and values.size:
                    channels[name] = values.size
                    widest[name] = max(widest.get(name, 0.0), float(np.abs(values).max()))
            statistics = sorted({key.rpartition("/")[2] for key in arrays.files})
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as bad:
        raise EdgekitError(f"{path}: not a calibration that edgekit wrote: {bad}") from bad
    ranked = sorted(widest, key=lambda name: (-widest[name], name))
    return {
        "kind": "calibration",
        "path": str(folder),
        "bytes": path.stat().st_size,
        "inputs": len(channels),
        "statistics": statistics,
        "widest_ranges": [
            {"input": name, "largest": widest[name], "channels": channels[name]} for name in ranked[:MOST_TENSORS]
        ],
        "facts": {
            key: value for key, value in _facts(folder, "calibrate").items() if not isinstance(value, list | dict)
        },
    }


def _inspect_reference(folder: Path) -> dict[str, object]:
    import numpy as np

    try:
        with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
            shapes = {key: f"{arrays[key].dtype} {list(arrays[key].shape)}" for key in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as bad:
        raise EdgekitError(f"{folder}: its reference.npz cannot be read: {bad}") from bad
    facts = _facts(folder, "record")
    return {"kind": "reference", "path": str(folder), "output": facts.get("output"), "arrays": shapes}


def _inspect_report(path: Path) -> dict[str, object]:
    from edgekit.evidence import read_report
    from edgekit.typed_json import to_table

    table = to_table(read_report(path))
    keys = ("verdict", "accuracy_only", "accuracy", "latency_ms", "shape", "memory_mb", "artifact", "runtime", "device")
    return {"kind": "report", "path": str(path)} | {key: table.get(key) for key in (*keys, "checks")}


def _inspect_prompts(folder: Path) -> dict[str, object]:
    from edgekit.prompts import SPLITS, PromptSet

    splits, labels = {}, Counter[str]()
    for name in SPLITS:
        try:
            rows = PromptSet(folder=folder).split(name)
        except (ValueError, TypeError) as bad:
            raise EdgekitError(f"{folder / name}.jsonl: not lines of {{text, label}}: {bad}") from bad
        if rows:
            lengths = sorted(len(row.text.split()) for row in rows)
            labels.update(str(row.label) for row in rows if row.label is not None)
            classes = len({row.label for row in rows} - {None})
            splits[name] = {
                "rows": len(rows),
                "labels": classes,
                "words_median": lengths[len(lengths) // 2],
                "words_most": lengths[-1],
            }
    return {"kind": "prompts", "path": str(folder), "splits": splits, "rows_of_label": dict(sorted(labels.items()))}


def _inspect_toml(path: Path) -> dict[str, object]:
    table = read_toml(path)
    if "hardware" in table:
        from edgekit.target import load_target

        target = load_target(str(path))
        return {"kind": "target", "path": str(path), "title": target.title} | {
            key: value for key, value in table.items() if key != "title"
        }
    if "teacher" in table:
        from edgekit.recipe import load_recipe

        load_recipe(path)
        return {"kind": "recipe", "path": str(path)} | table
    raise EdgekitError(f"{path}: neither a target ([hardware]) nor a recipe ([teacher])")


def _facts(folder: Path, step: str) -> dict[str, object]:
    path = folder / f"{step}.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("facts"), dict):
        raise EdgekitError(f"{path}: not a manifest that edgekit wrote")
    return dict(content["facts"])


def _tokenizer(folder: Path) -> dict[str, object]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    content = as_table(read_json(path))
    model, added = as_table(content.get("model")), map(as_table, as_list(content.get("added_tokens")))
    vocabulary = model.get("vocab")
    return {
        "model": model.get("type"),
        "vocabulary": len(vocabulary) if isinstance(vocabulary, dict | list) else 0,
        "truncation": as_table(content.get("truncation")).get("max_length"),
        "padding": content.get("padding") is not None,
        "special": [token.get("content") for token in added if token.get("special")],
    }
