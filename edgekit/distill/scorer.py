"""A scorer: a classifier, or a model with one output, that says what a student's own answer to a prompt is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.architectures import find_architecture, is_decoder
from edgekit.errors import EdgekitError
from edgekit.model import Model, load_model
from edgekit.schema import nearest
from edgekit.typed_json import as_list

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.distill.rewards import Reward

TASK = "text-classification"
MULTI_LABEL = "multi_label_classification"
# Texts that are scored at a time; and tokens of a text that is not cut.
_AT_A_TIME, _WHOLE = 32, 1 << 20


def check_scorer(folder: Path, reward: Reward, where: str) -> None:
    """Refuse (EdgekitError, beginning with `where`) what is no scorer for this reward; reads no weight.

    A scorer is an encoder with a head that transformers calls ...ForSequenceClassification. One output is the score itself, as
    models of rewards give it; of several, `label` names the one whose log-probability is the score.
    """
    if not folder.is_dir():
        raise EdgekitError(f"{where}.scorer: no such folder: {folder}; give that of a checkpoint")
    model = load_model(folder)
    if is_decoder(find_architecture(model.architecture, str(folder / "config.json"))):
        raise EdgekitError(
            f"{where}.scorer: {folder} is a {model.architecture}: a decoder; take an encoder that classifies or has one output"
        )
    named = as_list(model.config.get("architectures"))
    if not any("ForSequenceClassification" in str(name) for name in named):
        raise EdgekitError(
            f"{where}.scorer: {folder} has no head that scores texts (architectures: {named}); take a classifier, or a model with"
            " one output (...ForSequenceClassification)"
        )
    labels = model.labels
    if len(labels) == 1 and reward.label is not None:
        raise EdgekitError(f"{where}.label: {folder} has one output, which is the score; remove this key")
    if len(labels) > 1 and reward.label is None:
        raise EdgekitError(
            f"{where}.label: missing; {folder} tells {len(labels)} labels apart: name the one that a good answer has"
            f" ({', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''})"
        )
    if reward.label is not None and reward.label not in labels:
        raise EdgekitError(f"{where}.label: {folder} has no label {reward.label!r}{nearest(reward.label, labels)}")


def make_scorer(folder: Path, label: str | None, device: str) -> Callable[[Sequence[str]], list[float]]:
    """What a scorer says of texts, each a prompt with its answer behind it: its output, or a label's log-probability (of a model
    that gives each label for itself, by itself).

    Raises EdgekitError for a text that the scorer cannot read whole, and for scores that are no numbers.
    """
    import torch

    from edgekit.modalities.text import of_tokens
    from edgekit.tasks import tensors
    from edgekit.tasks.encoders import load_encoder
    from edgekit.tasks.padding import find_pad_id

    model, module = load_model(folder), load_encoder(folder, TASK).to(device)
    pad_id, several = find_pad_id(model), model.config.get("problem_type") == MULTI_LABEL

    def read(output: Tensor) -> Tensor:
        if label is None:
            return output[:, 0]
        likely = torch.nn.functional.logsigmoid(output) if several else output.log_softmax(dim=-1)
        return likely[:, model.labels.index(label)]

    def score(texts: Sequence[str]) -> list[float]:
        ids = model.encode(list(texts), _WHOLE)
        _check_length(model, texts, ids)
        encoded, found = of_tokens(ids, pad_id), [0.0] * len(texts)
        with torch.no_grad():
            for indices, arrays in encoded.batches(_AT_A_TIME):
                inputs = {name: tensor.to(device) for name, tensor in tensors(arrays).items()}
                for index, value in zip(indices, read(module(**inputs).float()).tolist(), strict=True):
                    found[index] = value
        if not all(abs(value) < torch.inf for value in found):
            raise EdgekitError(
                f"{folder}: the scorer says NaN or infinity of an answer: it overflows, or its training went wrong; take another"
            )
        return found

    return score


def _check_length(model: Model, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
    """A text that was cut would be scored for what is left of it."""
    longest = max(range(len(ids)), key=lambda index: len(ids[index]), default=0)
    limit = model.max_positions
    if ids and limit is not None and len(ids[longest]) > limit:
        raise EdgekitError(
            f"{model.folder}: the scorer reads {limit} tokens, and a prompt with its answer has {len(ids[longest])}"
            f" ({texts[longest]!r:.60}); set on_policy.new_tokens or data.max_length lower, or take a scorer that reads more"
        )
