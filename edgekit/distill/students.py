"""A student cut from its teacher's blocks, and the taps that let losses see inside both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgekit.architectures import Architecture, find_architecture
from edgekit.distill.losses import Signal
from edgekit.tasks.encoders import dimensions


def cut(module: nn.Module, keep: Sequence[int]) -> None:
    """Leave only the named blocks in a loaded model, and make its configuration say so."""
    model: Any = module.model
    architecture = _architecture(module)
    blocks = [find_blocks(module)[index] for index in keep]
    architecture.cut(model.config, blocks, keep)
    for place, block in enumerate(blocks):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                setattr(part, "layer_idx", place)  # noqa: B010 - nn.Module's type knows no such attribute
    path, _, name = architecture.LAYERS.rpartition(".")
    setattr(model.base_model.get_submodule(path), name, nn.ModuleList(blocks))


def find_blocks(module: nn.Module) -> nn.ModuleList:
    """The model's list of transformer blocks."""
    model: Any = module.model
    return cast(nn.ModuleList, model.base_model.get_submodule(_architecture(module).LAYERS))


def match_blocks(depth: int, keep: Sequence[int]) -> list[int]:
    """For each student block the teacher's block whose output it learns: the one that it was cut from; for the last, the last.

    On the example, 6 to 3 layers, this ended at a held-out loss of 1.04; even shares of the depth ([1, 3, 5] for blocks cut
    from [0, 2, 5]) ended at 1.12.
    """
    return [*keep[:-1], depth - 1]


class Tap:
    """Runs a module and collects what the losses compare: outputs of some blocks, and the last block's query, key, value."""

    def __init__(
        self, module: nn.Module, *, blocks: Sequence[int] = (), relations: bool = False, precision: str = "fp32"
    ) -> None:
        self.module = module
        self._bf16 = precision == "bf16"
        self._hidden: dict[int, Tensor] = {}
        self._projections: dict[int, Tensor] = {}
        self._heads = dimensions(cast(Any, module.model).config).heads if relations else 0
        for index in blocks:
            find_blocks(module)[index].register_forward_hook(_keep_first(self._hidden, index))
        if relations:
            found = find_blocks(module)
            for place, path in enumerate(_architecture(module).PROJECTIONS):
                found[-1].get_submodule(path).register_forward_hook(_keep_first(self._projections, place))

    def __call__(self, tokens: Tensor, mask: Tensor) -> Signal:
        """input_ids and attention_mask [batch, sequence] -> the module's signal, always in float32."""
        self._hidden.clear()
        self._projections.clear()
        with self.autocast():
            output = self.module(tokens, mask)
        projections = [self._projections[place].float() for place in sorted(self._projections)]
        if len(projections) == 1:
            projections = list(projections[0].chunk(3, dim=-1))
        return Signal(
            output=output.float(),
            hidden=tuple(self._hidden[index].float() for index in sorted(self._hidden)),
            projections=tuple(one.view(*one.shape[:2], self._heads, -1).transpose(1, 2) for one in projections),
        )

    def autocast(self) -> torch.autocast:
        """The precision of the tap's calls, for what belongs to the same model."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self._bf16)


def _keep_first(seen: dict[int, Tensor], key: int) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that keeps a layer's first output of a call (DeBERTa calls a projection again for its relative positions)."""

    def keep(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        seen.setdefault(key, output[0] if isinstance(output, tuple) else output)

    return keep


def _architecture(module: nn.Module) -> Architecture:
    config: Any = cast(Any, module.model).config
    return find_architecture(config.model_type, "model")
