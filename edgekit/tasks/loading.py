"""Checkpoints as transformers loads them, held to its own report of what it did not load."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import torch

from edgekit.architectures import find_architecture
from edgekit.errors import EdgekitError
from edgekit.model import Model, load_model
from edgekit.owners_tokenizer import quiet

# What transformers raises for a configuration that it cannot make a model of.
_REFUSALS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, AssertionError),
    *(OSError, ImportError, NameError, RuntimeError),
)
# Tensors that a model does without: numbers that it computes itself now, and a pooler that its class does not use.
_COMPUTED = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq|masked_bias)$|(^|\.)pooler\.")
# Heads by transformers' names: those of pretraining, which a classifier leaves out, and those that a new head replaces.
_PRETRAINING = re.compile(
    r"^(cls|lm_head|vocab_transform|vocab_layer_norm|vocab_projector|generator_predictions|generator_lm_head"
    r"|discriminator_predictions|lm_predictions|mask_predictions|head|decoder)\."
)
_TASKS = re.compile(r"^(classifier|pre_classifier|qa_outputs|score|span_classifier|sequence_summary)\.")
# What a user is told about the first tensor that a checkpoint lacks.
_LACKS = {
    "text-classification": "the checkpoint has no trained classifier (it lacks {}); add a [teacher.finetune] table to the recipe,"
    " or name a fine-tuned model",
    "feature-extraction": "the checkpoint lacks the weights {}; not a whole encoder",
    "text-generation": "the weights do not fit config.json: {} is missing or of another shape",
}


class _Loaded(TypedDict):
    """What transformers says of a checkpoint that it loaded: names of tensors; of another shape with both shapes."""

    mismatched_keys: Collection[str | tuple[object, ...]]
    missing_keys: Collection[str]
    unexpected_keys: Collection[str]


def load_checkpoint(folder: Path, task: str, head: Mapping[str, object] | None = None) -> Any:
    """A checkpoint's model of transformers for a task, in float32 with eager attention.

    head: configuration keys such as num_labels of a new head, for which an old one is left out. Raises EdgekitError for what
    `load_model` refuses, a family that is not in ARCHITECTURES, a configuration that transformers refuses, tensors that are
    missing, have another shape than config.json says, or are not a part of the model that transformers makes of it.
    """
    checked = load_model(folder)
    return _read(checked, task, head, folder, {})


def check_checkpoint(folder: Path, task: str, head: Mapping[str, object] | None = None) -> None:
    """Raises EdgekitError as `load_checkpoint` does, by names and shapes alone: no weight is read."""
    checked = load_model(folder)
    with torch.device("meta"):
        tensors = {name: torch.empty(info.shape, dtype=torch.float32) for name, info in checked.tensors.items()}
    _read(checked, task, head, None, {"state_dict": tensors, "device_map": {"": "meta"}})


@cache
def model_class(task: str) -> Any:
    """transformers' auto class for a task, as optimum names it."""
    with quiet():
        from optimum.exporters.tasks import TasksManager
    return TasksManager.get_model_class_for_task(task, framework="pt")


def _read(
    checked: Model, task: str, head: Mapping[str, object] | None, source: Path | None, options: Mapping[str, object]
) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.auto_factory import _get_model_class

    from edgekit.tasks import ngrams

    where = checked.folder / "config.json"
    find_architecture(checked.architecture, str(where))
    ngrams.register()
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                checked.folder, local_files_only=True, trust_remote_code=False, **(head or {})
            )
            known = model_class(task)._model_mapping
            if type(config) not in known:
                raise EdgekitError(f"{where}: model_type {checked.architecture}: transformers has no {task} of it")
            model, report = _get_model_class(config, known).from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",  # the one that all families have, Gemma 2 with its soft caps too
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except (*_REFUSALS, StrictDataclassError) as refused:
        raise _refusal(checked, refused) from refused
    _judge(checked, task, model, report, new_head=head is not None)
    return model


def _refusal(checked: Model, refused: BaseException) -> EdgekitError:
    """What transformers said in one line, behind the key that it is about where its value tells."""
    said = " ".join(line.strip() for line in str(refused).splitlines()[:2]).strip() or type(refused).__name__
    keys = [key for key, value in checked.config.items() if isinstance(value, str) and repr(value) in said]
    blamed = f"{keys[0]}: " if len(keys) == 1 else ""
    return EdgekitError(
        f"{checked.folder / 'config.json'}: {blamed}transformers cannot make this model: {said[:300]}; mend the file, or fetch it"
        " again"
    )


def _judge(checked: Model, task: str, model: Any, report: _Loaded, *, new_head: bool) -> None:
    """Refuse a model that is not the whole checkpoint."""
    folder, body = checked.folder, f"{model.base_model_prefix}."
    bare = task == "feature-extraction"
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"])
    missing = sorted(report["missing_keys"])
    if new_head:
        wrong, missing = ([key for key in keys if key.startswith(body)] for keys in (wrong, missing))
    if bare or new_head:
        missing = [key for key in missing if not re.search(r"(^|\.)pooler\.", key)]
    if wrong:
        raise EdgekitError(
            f"{folder}: the weights do not fit config.json: {wrong[0]} is of another shape; fetch both from one place"
        )
    harmless = [_COMPUTED] + ([] if task == "text-generation" else [_PRETRAINING])
    if left := _left(report["unexpected_keys"], [*harmless, *([_TASKS] if bare or new_head else [])]):
        raise EdgekitError(
            f"{folder}: tensor {left[0]}: transformers' {checked.architecture} has no place for it as config.json stands, so its"
            f" answers would not be this model's ({len(left)} such); mend config.json, or take the tensor out if it means nothing"
        )
    if missing:
        lacks = _LACKS["feature-extraction" if new_head else task]
        raise EdgekitError(f"{folder}: {lacks.format(missing[0])}")


def _left(names: Iterable[str], harmless: Iterable[re.Pattern[str]]) -> list[str]:
    return sorted(name for name in names if not any(pattern.search(name) for pattern in harmless))
