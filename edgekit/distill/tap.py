"""Taps: what lets losses see inside a student and its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgekit.architectures import Architecture, find_architecture
from edgekit.distill.chunked import Head
from edgekit.distill.signals import Batch, Signal
from edgekit.tasks.encoders import dimensions
from edgekit.tasks.pooling import POOLINGS


class Tap:
    """Runs a module and collects the signals that the losses need.

    module: holds transformers' model as `model`. needs: fields of Signal. blocks: whose outputs are `hidden`, in rising order.
    `projections` are the last block's, `views` pooled by `pooling`, an entry of POOLINGS. device: where the module is, and its
    signals; it is moved there. tokens: the module's own ids of a batch's, where it has others.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        needs: frozenset[str] = frozenset(),
        blocks: Sequence[int] = (),
        device: str = "cpu",
        precision: str = "fp32",
        tokens: Tensor | None = None,
    ) -> None:
        self.module = module.to(device)
        self.device = device
        self._bf16 = precision == "bf16"
        self._tokens = None if tokens is None else tokens.to(device)
        self._hidden: dict[int, Tensor] = {}
        self._projections: dict[int, Tensor] = {}
        self._heads = dimensions(cast(Any, module.model).config).heads if "projections" in needs else 0
        if "hidden" in needs:
            for index in blocks:
                find_blocks(module)[index].register_forward_hook(_keep_first(self._hidden, index))
        self.pooling = "mean"
        self._views: dict[str, Tensor] = {}
        if "views" in needs:
            model: Any = module.model
            model.base_model.register_forward_hook(self._keep_states)
            find_head(model).register_forward_pre_hook(self._keep_read)
        if "projections" in needs:
            last = find_blocks(module)[-1]
            for index, path in enumerate(find_family(module).PROJECTIONS):
                last.get_submodule(path).register_forward_hook(_keep_first(self._projections, index))

    def __call__(self, batch: Batch) -> Signal:
        """The module's signal for a batch that is on its device, always in float32."""
        self._hidden.clear()
        self._projections.clear()
        self._views.clear()
        with self.autocast():
            tokens = batch.tokens if self._tokens is None else self._tokens[batch.tokens]
            output = self.module(tokens, batch.mask, *(() if batch.packed is None else (batch.packed.positions,)))
        projections = [self._projections[index].float() for index in sorted(self._projections)]
        if len(projections) == 1:
            projections = list(projections[0].chunk(3, dim=-1))
        return Signal(
            output=output.float(),
            hidden=tuple(self._hidden[index].float() for index in sorted(self._hidden)),
            projections=tuple(
                tensor.view(*tensor.shape[:2], self._heads, -1).transpose(1, 2) for tensor in projections
            ),
            views=self._pooled(batch) if self._views else (),
        )

    def _pooled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        states = self._views["states"].float()
        return POOLINGS[self.pooling](states, batch.mask[:, :, None].to(states.dtype)), self._views["read"].float()

    def _keep_states(self, _model: nn.Module, _inputs: object, output: Any) -> None:
        self._views["states"] = output[0]

    def _keep_read(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._views["read"] = inputs[0]

    def logits(self, states: Tensor) -> Tensor:
        """Of a decoder: last hidden states [tokens, channels] -> float32 logits [tokens, vocabulary]."""
        return self.head(states)

    @property
    def head(self) -> Head:
        """Of a decoder: what makes its logits."""
        head: Head = cast(Any, self.module).head
        return replace(head, dtype=torch.bfloat16) if self._bf16 else head

    def autocast(self) -> torch.autocast:
        """The precision of the tap's calls."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self._bf16)


def find_blocks(module: nn.Module) -> nn.ModuleList:
    """The model's list of transformer blocks."""
    model: Any = module.model
    return cast(nn.ModuleList, model.base_model.get_submodule(find_family(module).LAYERS))


def find_head(model: nn.Module) -> nn.Linear:
    """The layer of a classifier that makes its logits: the last linear one behind its encoder."""
    body = {id(part) for part in cast(Any, model).base_model.modules()}
    linear = [part for part in model.modules() if isinstance(part, nn.Linear) and id(part) not in body]
    return linear[-1]


def find_family(module: nn.Module) -> Architecture:
    """The entry of ARCHITECTURES that a module's model belongs to."""
    config: Any = cast(Any, module.model).config
    return find_architecture(config.model_type, "model")


def _keep_first(seen: dict[int, Tensor], key: int) -> Callable[[nn.Module, object, object], None]:
    """A hook that keeps a layer's first output of a call (DeBERTa calls a projection again for its relative positions)."""

    def keep(_layer: nn.Module, _inputs: object, output: object) -> None:
        seen.setdefault(key, cast(Tensor, output[0] if isinstance(output, tuple) else output))

    return keep
