"""Slimming: a loaded model becomes the model of its own family that has some of its channels."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.architectures.widths import Sizes
from edgekit.distill.importance import Chosen, find_sizes
from edgekit.distill.tap import find_family
from edgekit.errors import EdgekitError


def slim(module: nn.Module, chosen: Chosen, after: Sizes) -> None:
    """Leave only the chosen channels in a loaded model, and make its configuration say so.

    transformers makes the narrower model of the changed configuration, so that it is what a checkpoint of these sizes is.
    """
    old: Any = module.model
    known = find_sizes(module)
    if known is None:
        raise EdgekitError(f"{type(old).__name__}: edgekit cuts no widths of this family")
    widths, before = known
    config = deepcopy(old.config)
    for key, value in widths.changed(before, after).items():
        setattr(config.get_text_config(), key, value)
    layers = find_family(module).LAYERS
    weights = {}
    for name, weight in old.state_dict().items():
        block, axes = widths.axes(name, layers)
        weights[name] = _cut(weight, [_indices(chosen, block, axis, before) for axis in axes])
    # What the new model is drawn from must not move what is drawn later.
    with torch.random.fork_rng(devices=[]):
        new = type(old)(config)
    if getattr(old, "pooler", new) is None:
        new.pooler = None
    new.load_state_dict(weights, strict=True)
    module.model = new.eval()


def _indices(chosen: Chosen, block: int | None, axis: str, before: Sizes) -> Tensor | None:
    return chosen.indices(block, axis, before) if axis else None


def _cut(weight: Tensor, kept: list[Tensor | None]) -> Tensor:
    for dimension, indices in enumerate(kept):
        if indices is not None:
            weight = weight.index_select(dimension, indices)
    return weight.contiguous()
