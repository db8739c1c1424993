"""What a decoder's Linears read, rounded as the engine of its file rounds it, for the time of a training on a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.distill.reads import round_between


class DecoderInputs:
    """Rounds what Linears of a decoder read, while `rounded` lasts; gradients pass straight through.

    block: so many values of a token share a scale (onnxruntime's MatMulNBits, accuracy_level 4). None: a text has one scale and
    one zero (DynamicQuantizeLinear), as a prefill reads it in one piece; a step that reads one token rounds finer.

    linears: those whose weights are rounded. A decoder in training gives hidden states, and its head is no call of it (see
    `decoders.Body`), so that those are rounded where they leave the module.
    """

    def __init__(self, module: nn.Module, linears: Sequence[nn.Linear], block: int | None) -> None:
        self._module, self._linears, self._block = module, linears, block
        head = cast(Any, module).head.weight
        self._head = any(part.weight is head for part in linears)
        self._texts = torch.zeros(0)
        self._last: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Inputs rounded; afterwards they are what they were."""
        hooks = [part.register_forward_pre_hook(self._round_read) for part in self._linears]
        hooks.append(self._module.register_forward_pre_hook(self._see))
        if self._head:
            hooks.append(self._module.register_forward_hook(self._round_given))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._last = None

    def _see(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._texts = number_texts(inputs[1], inputs[2] if len(inputs) > 2 else None)

    def _round_read(self, _linear: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values, *others = inputs
        # Query, key and value read the same.
        if self._last is None or self._last[0] is not values:
            self._last = values, self._round(values)
        return (self._last[1], *others)

    def _round_given(self, _module: nn.Module, _inputs: object, states: Tensor) -> Tensor:
        return self._round(states)

    def _round(self, values: Tensor) -> Tensor:
        with torch.no_grad():
            how: Callable[[Tensor], Tensor] = (
                (lambda read: round_texts(read, self._texts))
                if self._block is None
                else (lambda read: round_blocks(read, cast(int, self._block)))
            )
            error = how(values.detach().float()).to(values.dtype) - values
        return values + error


def number_texts(mask: Tensor, positions: Tensor | None) -> Tensor:
    """Which text of its row each token is of, int64 [batch, sequence]; padding is a text of its own each.

    mask: [batch, sequence], padded on the right; positions: of rows that hold several texts, each token's place in its own.
    """
    begins = mask == 0 if positions is None else positions == 0
    return begins.long().cumsum(dim=1)


def round_texts(values: Tensor, texts: Tensor) -> Tensor:
    """Values [batch, sequence, channels] rounded as onnxruntime's DynamicQuantizeLinear does, each text by itself: between its
    least and its greatest value, zero among them, in steps of 1/255.

    texts: as `number_texts` gives them.
    """
    count = int(texts.max()) + 1
    places = (texts + count * torch.arange(len(texts), device=texts.device)[:, None]).flatten()

    def reach(ends: Tensor, how: str) -> Tensor:
        """Of each token's text the least or the greatest of the ends [batch, sequence]."""
        most = ends.new_zeros(count * len(texts)).scatter_reduce(0, places, ends.flatten(), how)
        return most[places].view(*texts.shape, 1)

    # Beside the zeros that `reach` begins with.
    low, high = reach(values.amin(dim=-1), "amin"), reach(values.amax(dim=-1), "amax")
    return round_between(values, low, high)


def round_blocks(values: Tensor, block: int) -> Tensor:
    """Values [..., channels] rounded as onnxruntime's MatMulNBits does with accuracy_level 4 (mlas, QuantizeARow_CompInt8).

    Of each block of a row, the last one filled up with zeros, the largest magnitude is 127 steps.
    """
    width = values.shape[-1]
    blocks = functional.pad(values, (0, -width % block)).view(*values.shape[:-1], -1, block)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    steps = torch.round(blocks * torch.where(scale == 0, 0.0, 1 / scale))
    return (steps * scale).flatten(-2)[..., :width]
