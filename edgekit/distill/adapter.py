"""An adapter of PEFT (LoRA, arXiv:2106.09685, and its kin) merged into its base: from then on a checkpoint like any other.

PEFT itself merges: W + alpha / r * B A, or alpha / sqrt(r) (rsLoRA), with heads and embeddings that were saved beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Required, TypedDict, cast

from edgekit.checkpoint_keys import CHECKPOINT_KEYS
from edgekit.distill.files import CHAT_FILES, EMBEDDING_FILES, TOKENIZER_FILES, copy_files
from edgekit.errors import EdgekitError, first_line, require
from edgekit.inputs import Content
from edgekit.owners_tokenizer import quiet
from edgekit.progress import Progress, silent
from edgekit.schema import nearest, read_json
from edgekit.tasks.loading import load_checkpoint
from edgekit.weights import ADAPTER, ADAPTER_CONFIG, TensorInfo, check_finite, read_header

# Adapters of another kind change what the model is given, not its weights.
_MERGED = ("LORA",)
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError, ImportError, OSError)


class AdapterConfig(TypedDict, total=False):
    """What is read here of an adapter_config.json, whose keys PEFT knows."""

    base_model_name_or_path: Required[str]
    revision: str | None
    r: int
    lora_alpha: float


def read_adapter(folder: Path) -> AdapterConfig:
    """An adapter's adapter_config.json.

    Raises EdgekitError where PEFT is not installed, for adapters that are no LoRA, without weights in safetensors, with keys that
    PEFT does not know, and where no base is named.
    """
    peft = require("peft", extra="adapters")
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("base_model_name_or_path"), str):
        raise EdgekitError(f"{path}: base_model_name_or_path: missing; not an adapter that PEFT saved")
    if config.get("peft_type") not in _MERGED:
        raise EdgekitError(
            f"{path}: peft_type: {config.get('peft_type')!r} cannot be merged here, only {', '.join(_MERGED)}; merge it with PEFT"
            " (merge_and_unload), if it can be, and name what it gives"
        )
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    for key, value in config.items():
        if key not in known:
            raise EdgekitError(f"{path}: {key}: PEFT {peft.__version__} does not know this key{nearest(key, known)}")
        use = CHECKPOINT_KEYS[ADAPTER_CONFIG].get(key, "")
        if use.startswith("refused") and value:
            raise EdgekitError(f"{path}: {key}: {use.partition(': ')[2]}; edgekit cannot merge this adapter")
    if not (folder / ADAPTER).is_file():
        raise EdgekitError(
            f"{folder}: no {ADAPTER} in it; pickled weights are never loaded: save the adapter as safetensors"
        )
    return cast("AdapterConfig", config)


@dataclass(frozen=True, kw_only=True)
class MergeInputs:
    """What `merge` is given: an adapter, and the checkpoint that it adapts."""

    STEP: ClassVar[str] = "merge"
    adapter: Content
    base: Content
    task: str


def merge(inputs: MergeInputs, out: Path, progress: Progress = silent) -> dict[str, object]:  # noqa: ARG001 - quick
    """Write the checkpoint that a LoRA and its base make, in float32, to `out`: weights, configuration, tokenizer, templates.

    The adapter's own files of the tokenizer come before its base's. Raises EdgekitError for whatever `read_adapter` and
    `load_checkpoint` refuse, and for an adapter that does not fit its base.
    """
    peft = require("peft", extra="adapters")
    adapter, base, task = inputs.adapter.path, inputs.base.path, inputs.task
    config, where = read_adapter(adapter), adapter / ADAPTER
    header = read_header(where)
    check_finite([where])
    model = load_checkpoint(base, task, _head(adapter, task, header))
    try:
        with quiet():
            wrapped = peft.PeftModel.from_pretrained(model, adapter, local_files_only=True)
            own, whole = (
                set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=also)) for also in (False, True)
            )
            merged = wrapped.merge_and_unload(safe_merge=True)
    except _REFUSALS as refused:
        raise EdgekitError(
            f"{where}: does not fit {base}: {first_line(refused)[:300]}; is this the adapter's base?"
        ) from refused
    if wrong := sorted((set(header) - whole) | (own - set(header))):
        why = "PEFT finds no place for it" if wrong[0] in header else "missing"
        raise EdgekitError(f"{where}: tensor {wrong[0]}: {why}; is {base} the adapter's base?")
    # Where a model was loaded from is this machine's business: without it equal models are equal bytes.
    merged.config._name_or_path = ""
    with quiet():
        merged.save_pretrained(out)
    _copy_files(adapter, base, out)
    return {"base": config["base_model_name_or_path"], "rank": config.get("r"), "alpha": config.get("lora_alpha")}


def _head(adapter: Path, task: str, header: Mapping[str, TensorInfo]) -> dict[str, object] | None:
    """The classes of a head that was trained with the adapter: its rows tell how many, a config.json beside it their names."""
    rows = next(
        (info.shape[0] for name, info in header.items() if name.endswith(("classifier.weight", "score.weight"))), None
    )
    rows = rows or next(
        (info.shape[0] for name, info in header.items() if name.endswith("classifier.out_proj.weight")), None
    )
    if task != "text-classification" or rows is None:
        return None
    config = read_json(adapter / "config.json") if (adapter / "config.json").is_file() else {}
    named = {int(index): name for index, name in (config.get("id2label") or {}).items()}
    names = named if len(named) == rows else {index: f"LABEL_{index}" for index in range(rows)}
    return {"num_labels": rows, "id2label": names, "label2id": {name: index for index, name in names.items()}}


def _copy_files(adapter: Path, base: Path, out: Path) -> None:
    tokenizer = adapter if (adapter / "tokenizer.json").is_file() else base
    chat = adapter if any(path for pattern in CHAT_FILES for path in adapter.glob(pattern)) else base
    copy_files(tokenizer, out, TOKENIZER_FILES)
    copy_files(chat, out, CHAT_FILES)
    copy_files(base, out, (*EMBEDDING_FILES, "README.md"))
